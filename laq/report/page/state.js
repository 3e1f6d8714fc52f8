// The state of the page: it is read from the address's fragment and written back, and decides all that is drawn.

const byId = (id) => document.getElementById(id);
const DATA = JSON.parse(byId("data").textContent);
const CHARTS = JSON.parse(byId("charts").textContent);
const SUBSETS = DATA.subsets;
const FORM = byId("controls");
const SETTING = { bits: 8, method: 4, variant: 2, calibration: 1 }; // and what each weighs when not all can be had
const KINDS = [...new Set(SUBSETS.kind)];
const METHODS = DATA.choices.method.map(([name]) => name).filter((name) => name !== "float");

let state; // the setting's four fields, and kind, size, methods, subset

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const signed = (value, digits) => value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1").replace("-", "−");
const label = (field, value) => DATA.choices[field].find((choice) => choice[0] === value)[1];

function nearest(wanted, asked) {
  const fit = (setting) => Object.keys(SETTING).reduce(
    (sum, field) => sum + (setting[field] === wanted[field]) * SETTING[field] * (asked.includes(field) ? 16 : 1), 0);
  const quantized = DATA.settings.filter((setting) => setting.method !== "float");
  return quantized.reduce((best, setting) => (fit(setting) > fit(best) ? setting : best));
}

function readState() {
  const asked = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const some = (name, all) => (name in asked ? all.filter((one) => asked[name].split(",").includes(one)) : all);
  return {
    ...nearest({ ...DATA.settings[DATA.start], ...asked }, Object.keys(asked)),
    kind: some("kind", KINDS),
    methods: some("methods", METHODS),
    size: SUBSETS.classes.some((classes) => String(classes.length) === asked.size) ? asked.size : "",
    subset: SUBSETS.name.includes(asked.subset) ? asked.subset : "",
  };
}

function writeState() {
  const told = [...Object.keys(SETTING), "size", "subset"].map((name) => [name, state[name]]);
  if (state.kind.length < KINDS.length) told.push(["kind", state.kind.join(",")]);
  if (state.methods.length < METHODS.length) told.push(["methods", state.methods.join(",")]);
  try {
    history.replaceState(null, "", `#${new URLSearchParams(told.filter((entry) => entry[1] !== "" || entry[0] === "kind"))}`);
  } catch { /* a page inside another may have no address to write to */ }
}

const isSame = (setting) => Object.keys(SETTING).every((field) => setting[field] === state[field]);
const filtered = () => state.size !== "" || state.kind.length < KINDS.length;

/* ---- the rows that charts show, in the columns of laq/report/plotted.py ---- */

function members() {
  return SUBSETS.name.map((_, i) => i).filter((i) => state.kind.includes(SUBSETS.kind[i]) &&
    ["", String(SUBSETS.classes[i].length)].includes(state.size));
}

function rowsOf(setting, number) {
  const [lost, left] = ["drop_sub_points", "top1_sub_percent"].map((score) => DATA.scores[score][number]);
  const [low, high] = (!filtered() && setting.mean) || [null, null];
  const fit = fitOf(setting, lost);
  return members().filter((i) => lost[i] !== null).map((i) => ({
    network: setting.variant, method: setting.method, method_place: METHODS.indexOf(setting.method),
    bits: setting.bits, bits_place: DATA.choices.bits.findIndex((choice) => choice[0] === setting.bits),
    subset: SUBSETS.name[i], kind: SUBSETS.kind[i], classes: SUBSETS.classes[i].length,
    names: SUBSETS.classes[i].map((c) => DATA.classes[c]).join(", "), nats: SUBSETS.divergence[i],
    lost_points: lost[i], float_percent: left[i] + lost[i], kib: setting.kib, mean_low: low, mean_high: high,
    chosen: SUBSETS.name[i] === state.subset, ...fit(i),
  }));
}

function fitOf(setting, lost) { // the line of the report, through the mean of the subsets of each size
  if (!setting.slope || SUBSETS.divergence.some((nats) => nats <= 0)) return () => ({});
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const halvings = SUBSETS.divergence.map((nats) => -Math.log2(nats));
  return (i) => {
    const alike = SUBSETS.name.map((_, j) => j).filter((j) => lost[j] !== null &&
      SUBSETS.classes[j].length === SUBSETS.classes[i].length);
    const away = halvings[i] - mean(alike.map((j) => halvings[j]));
    const [fit, ...ends] = setting.slope.map((slope) => mean(alike.map((j) => lost[j])) + away * slope);
    return { fit, fit_low: Math.min(...ends), fit_high: Math.max(...ends) };
  };
}

function shownRows() { // of one network, by all methods at all bits
  return DATA.settings.flatMap((setting, number) => (setting.variant === state.variant &&
    state.methods.includes(setting.method) && ["none", state.calibration].includes(setting.calibration)
    ? rowsOf(setting, number) : []));
}

const cellRows = () => rowsOf(DATA.settings.find(isSame), DATA.settings.findIndex(isSame));

function mapped() { // all classes; those that are not in the selected subset are drawn faintly
  const chosen = SUBSETS.classes[SUBSETS.name.indexOf(state.subset)];
  return CHARTS.class_map.data.values.map((row) => ({ ...row, chosen: !chosen || chosen.includes(row.number) }));
}

function pairs() { // the divergences of all classes, or of the selected subset's
  const chosen = SUBSETS.classes[SUBSETS.name.indexOf(state.subset)] ?? DATA.order;
  const order = DATA.order.filter((c) => chosen.includes(c));
  return order.flatMap((a) => order.filter((b) => a !== b).map(
    (b) => ({ class: DATA.classes[a], other: DATA.classes[b], nats: DATA.matrix[a][b] })));
}
