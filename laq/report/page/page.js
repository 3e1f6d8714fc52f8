// Shows charts, controls and tables, at the start and after each change.

const VIEWS = {}; // by the names of the charts
const ROWS = { points_lost: shownRows, lost_by_divergence: cellRows, lost_by_size: shownRows, divergence_matrix: pairs,
  ...(CHARTS.class_map ? { class_map: mapped } : {}) }; // which pages of former reports lack
const DARK = matchMedia("(prefers-color-scheme: dark)");

async function startVega() {
  const packed = Uint8Array.from(atob(byId("vega").textContent.trim()), (sign) => sign.charCodeAt(0));
  const text = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(element("script", {}, text));
}

const SIZES = { // of charts that are as large as their classes need, and scroll where there is less room
  divergence_matrix(specification, room) {
    const names = [...new Set(pairs().map((pair) => pair.class))];
    const beside = 7 * Math.max(...names.map((name) => Math.min(name.length, 22))) + 10;
    const step = Math.max(10, Math.min(32, Math.floor((room - beside) / names.length)));
    const { x, y, color } = specification.encoding;
    specification.width = specification.height = { step };
    for (const { axis } of [x, y]) axis.labelFontSize = Math.min(14, step - 1);
    if (room < 480) Object.assign(color.legend, { titleOrient: "top", gradientLength: 160 });
  },
  class_map(specification, room) {
    specification.width = Math.max(CHARTS.map_width, Math.min(room, 1000));
    specification.height = 0.8 * specification.width;
  },
};

async function show(name) { // anew, where what is drawn has other axes or colours
  const specification = structuredClone(CHARTS[name]);
  SIZES[name]?.(specification, byId(name).clientWidth - 24 /* padding */);
  VIEWS[name]?.finalize();
  const made = await vegaEmbed(byId(name), specification, {
    mode: "vega-lite", ast: true, actions: false, tooltip: { formatTooltip: tooltip }, logLevel: 1 /* errors */, renderer: "canvas", config: themeFor(byId(name)),
    patch: (made) => { made.data.find((one) => one.name === "rows").values = ROWS[name](); return made; },
  });
  VIEWS[name] = made.view;
  made.view.addEventListener("click", (_, item) => picked(name, item?.datum));
  if (name === "class_map") center(byId(name).parentElement);
}

function center(around) { // the classes that stand out, where the map is wider than the screen
  const places = mapped().filter((row) => row.chosen).map((row) => row.mean_x / CHARTS.map_width);
  around.scrollLeft = (Math.min(...places) + Math.max(...places)) / 2 * around.scrollWidth - around.clientWidth / 2;
}

function tooltip(row, safe) { // what the chart tells of a point, and a picture of each of its classes
  const lines = Object.entries(row).map(([key, value]) => `<tr><td class="key">${safe(key)}</td><td>${safe(value)}</td></tr>`);
  const classes = SUBSETS.classes[SUBSETS.name.indexOf(row.subset)] ?? [row.class, row.other].map((name) => DATA.classes.indexOf(name));
  const examples = element("div", { class: "examples" }, ...classes.filter((c) => c >= 0).flatMap(example));
  return `<table>${lines.join("")}</table>${examples.outerHTML}`;
}

function example(c) { // the picture of a class, if the page has pictures
  if (!byId("examples")) return [];
  const columns = Math.ceil(Math.sqrt(DATA.classes.length));
  const place = `background-position: ${-48 * (c % columns)}px ${-48 * Math.floor(c / columns)}px`;
  return [element("span", { class: "example", style: place })];
}

function themeFor(place) { // narrow screens have room for two methods beside each other
  const theme = CHARTS.themes[DARK.matches ? "dark" : "light"];
  return { ...theme, legend: { ...theme.legend, columns: place.clientWidth < 480 ? 2 : 3 } };
}

function picked(name, row) {
  if (name in SIZES) return;
  const { subset = "", method, bits } = row ?? {};
  if (method && name !== "lost_by_divergence") Object.assign(state, nearest({ ...state, method, bits }, ["method", "bits"]));
  state.subset = subset === state.subset ? "" : subset;
  render();
}

const drawing = { now: Promise.resolve(), next: null };

function draw() { // one drawing after the other; of those that wait, the last
  drawing.next ??= drawing.now.then(() => {
    drawing.next = null;
    drawing.now = Promise.all(Object.keys(ROWS).map(show));
    return drawing.now;
  });
  return drawing.next;
}

function render() {
  writeState();
  showControls();
  showPanel(SUBSETS.name.indexOf(state.subset));
  const cell = cellRows();
  byId("status").textContent = `${label("variant", state.variant)} network, ${label("method", state.method)}, ` +
    `${/^\d+$/.test(state.bits) ? `${state.bits} bits` : state.bits}: ${cell.length} subsets lose ` +
    `${cell.length ? signed(cell.reduce((sum, row) => sum + row.lost_points, 0) / cell.length, 1) : "–"} points on average.` +
    (filtered() ? " Intervals are of all subsets, so that they are not shown; the line is still of all." : "");
  return draw();
}

/* ---- controls ---- */

function fillControls() {
  for (const field of Object.keys(SETTING)) fill(field, DATA.choices[field].filter(([value]) =>
    DATA.settings.some((setting) => setting.method !== "float" && setting[field] === value)));
  const sizes = [...new Set(SUBSETS.classes.map((classes) => classes.length))].sort((a, b) => a - b);
  fill("size", [["", "any size"], ...sizes.map((size) => [String(size), `${size} classes`])]);
  fill("subset", [["", "none selected"], ...SUBSETS.name.map((name) => [name, name])]);
  const box = (name, value, text) => byId(`${name}-boxes`).append(
    element("label", {}, element("input", { type: "checkbox", name, value }), text));
  for (const kind of KINDS) box("kind", kind, `${kind} (${SUBSETS.kind.filter((other) => other === kind).length})`);
  for (const method of METHODS) box("methods", method, label("method", method));
}

function fill(name, choices) {
  FORM.elements[name].append(...choices.map(([value, text]) => element("option", { value }, text)));
}

function showControls() {
  for (const select of FORM.querySelectorAll("select")) select.value = state[select.name];
  for (const box of FORM.querySelectorAll("input")) box.checked = state[box.name].includes(box.value);
}

function changed({ target }) {
  if (target.type === "checkbox") {
    state[target.name] = [...FORM.querySelectorAll(`input[name=${target.name}]:checked`)].map((box) => box.value);
  } else {
    state[target.name] = target.value;
    Object.assign(state, nearest(state, [target.name]));
  }
  render();
}

function walk(event) { // by arrow keys from subset to subset, in the order of their divergence
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step && event.key !== "Escape") return;
  event.preventDefault();
  const names = cellRows().sort((a, b) => a.nats - b.nats).map((row) => row.subset);
  const at = names.indexOf(state.subset);
  state.subset = step && names.length ? names[at < 0 ? 0 : (at + step + names.length) % names.length] : "";
  render();
}

/* ---- the selected subset ---- */

function showPanel(i) {
  if (i < 0) {
    byId("panel").replaceChildren(element("p", { class: "quiet" },
      "Click or tap a point, or choose a subset above, to see its classes and what it loses here. The address of this page then leads to it."),
      element("div", { class: "wide", tabindex: 0 }, lossesOf(members(), `Mean points lost by the ${members().length} subsets shown`)));
    return;
  }
  const classes = SUBSETS.classes[i];
  const base = DATA.settings.find((setting) => setting.method === "float" && setting.variant === state.variant);
  const before = DATA.scores.top1_sub_percent[DATA.settings.indexOf(base)][i];
  const caption = `Points lost of ${before === null ? "–" : signed(before, 1)} % top-1 in float`;
  byId("panel").replaceChildren(
    element("h3", {}, SUBSETS.name[i]),
    element("p", { class: "quiet" }, `${SUBSETS.kind[i]} classes, ${classes.length} of ${DATA.classes.length}; ` +
      `median divergence ${Number(SUBSETS.divergence[i].toPrecision(3))} nats`),
    element("ul", { class: "chips" }, ...classes.map((c) => element("li", {}, ...example(c), DATA.classes[c]))),
    element("div", { class: "wide", tabindex: 0 }, lossesOf([i], caption)));
}

function lossesOf(subsets, caption) { // means by all methods, at all bits
  const alike = DATA.settings.filter((setting) => setting.method !== "float" && setting.variant === state.variant &&
    ["none", state.calibration].includes(setting.calibration));
  const [bits, methods] = ["bits", "method"].map((field) => DATA.choices[field].filter(
    ([value]) => alike.some((setting) => setting[field] === value)));
  const cell = (method, width) => {
    const at = alike.find((setting) => setting.method === method && setting.bits === width);
    const lost = at ? DATA.scores.drop_sub_points[DATA.settings.indexOf(at)] : [];
    const known = subsets.map((i) => lost[i]).filter((value) => value != null);
    const shown = known.length ? signed(known.reduce((sum, value) => sum + value, 0) / known.length, 1) : "–";
    return element("td", { class: "number" }, at && isSame(at) ? element("mark", {}, shown) : shown);
  };
  return element("table", {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, element("th", {}, "bits"), ...bits.map(([width]) => element("th", { class: "number" }, width)))),
    element("tbody", {}, ...methods.map(([method, name]) => element("tr", {}, element("th", {}, name), ...bits.map(([width]) => cell(method, width))))));
}

/* ---- tables ---- */

function sortTable(head) {
  const rows = head.closest("table").tBodies[0];
  const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
  const value = (row) => row.cells[head.cellIndex].dataset.value ?? row.cells[head.cellIndex].textContent;
  rows.append(...[...rows.rows].sort((a, b) => compare(value(a), value(b), way)));
}

function compare(a, b, way) { // the empty ones are last both ways
  if (a === "" || b === "") return (a === "") - (b === "");
  return way * (a - b || (isNaN(a) || isNaN(b) ? a.localeCompare(b) : 0));
}

function csvOf(table) {
  const quoted = (cell) => `"${cell.textContent.replaceAll("−", "-").replaceAll('"', '""')}"`;
  return [...table.rows].map((row) => [...row.cells].map(quoted).join(",")).join("\r\n");
}

function saveTable(link) { // when it is about to be followed
  const table = link.closest("section").querySelector("table");
  link.href = `data:text/csv;charset=utf-8,${encodeURIComponent(csvOf(table))}`;
}

/* ---- the start ---- */

function listen() {
  FORM.addEventListener("change", changed);
  FORM.addEventListener("submit", (event) => event.preventDefault());
  byId("lost_by_divergence").addEventListener("keydown", walk);
  for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sortTable(button.parentElement));
  for (const link of document.querySelectorAll("a[download]")) link.addEventListener("click", () => saveTable(link));
  window.addEventListener("hashchange", () => { state = readState(); render(); });
  DARK.addEventListener("change", draw);
}

state = readState();
fillControls();
listen();
const started = startVega().then(render);
