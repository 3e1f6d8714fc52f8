// The panel of one subset: its classes and its losses of accuracy.

function select(name) {
  state.subset = name ?? "";
  FORM.elements.subset.value = state.subset;
  writeState();
  showSubset(null);
}

function showSubset(name) {
  preview = name;
  const shown = preview ?? state.subset;
  const point = drawn.find((one) => one.name === shown);
  const halo = PLOT.querySelector(".halo");
  halo.setAttribute("visibility", point ? "visible" : "hidden");
  if (point) halo.setAttribute("transform", `translate(${point.left},${point.top})`);
  showPanel(SUBSETS.name.indexOf(shown));
  drawMap();
}

function showPanel(i) {
  if (i < 0) {
    byId("panel").replaceChildren(element("p", { class: "quiet" }, "Hover over a point or tap it to see the subset's classes and losses here, and its classes in the map below."));
    return;
  }
  const [kind, classes] = [SUBSETS.kind[i], SUBSETS.classes[i]];
  const facts = `${kind} classes, ${classes.length} of ${DATA.classes.length}; median divergence ${nats(SUBSETS.divergence[i])}`;
  byId("panel").replaceChildren(
    element("h3", {}, key(kind), SUBSETS.name[i]),
    element("p", { class: "quiet" }, facts),
    beforeAndAfter(i),
    element("ul", { class: "chips" }, ...classes.map((c) => element("li", {}, DATA.classes[c]))),
    element("div", { class: "wide", tabindex: 0 }, everySetting(i)));
}

function beforeAndAfter(i) {
  const now = settingNumber(state);
  const before = settingNumber(DATA.settings[DATA.settings[now].base]);
  const row = (name, score, drop) => {
    const values = [DATA.scores[score][before][i], DATA.scores[score][now][i], DATA.scores[drop][now][i]];
    const cells = values.map((value) => element("td", { class: "number" }, value === null ? "–" : signed(value, 1)));
    return element("tr", {}, element("th", {}, name), ...cells);
  };
  return table("Top-1, %", ["", "before", "after", "drop"],
    [row("restricted", "top1_sub_percent", "drop_sub_points"), row("among all", "top1_all_percent", "drop_all_points")]);
}

function table(caption, heads, rows) {
  const cells = heads.map((head, i) => element("th", { class: i ? "number" : "" }, head));
  return element("table", {}, element("caption", {}, caption), element("thead", {}, element("tr", {}, ...cells)),
    element("tbody", {}, ...rows));
}

function everySetting(i) { // the chosen score at all bits, by all methods
  const alike = DATA.settings.filter((setting) => setting.method !== "float" && setting.variant === state.variant &&
    ["none", DATA.settings[settingNumber(state)].calibration].includes(setting.calibration));
  const bits = DATA.choices.bits.filter(([value]) => alike.some((setting) => setting.bits === value));
  const methods = DATA.choices.method.filter(([value]) => alike.some((setting) => setting.method === value));
  const cell = (method, width) => {
    const at = alike.find((setting) => setting.method === method && setting.bits === width);
    const value = at && DATA.scores[state.y][settingNumber(at)][i];
    const shown = value == null ? "–" : signed(value, 1);
    const here = at && settingNumber(at) === settingNumber(state);
    return element("td", { class: "number" }, here ? element("mark", {}, shown) : shown);
  };
  const rows = methods.map(([method, name]) => element("tr", {}, element("th", {}, name), ...bits.map(([width]) => cell(method, width))));
  return table(`At all bits: ${SCORES[state.y]}`, ["", ...bits.map(([value]) => value)], rows);
}
