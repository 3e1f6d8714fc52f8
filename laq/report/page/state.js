// The state of the page: it is read from the address's fragment and written back, and decides all that is drawn.

const byId = (id) => document.getElementById(id);
const DATA = JSON.parse(byId("data").textContent);
const SUBSETS = DATA.subsets;
const [FORM, PLOT, MAP] = ["controls", "plot", "map"].map(byId);
const SETTING = { bits: 8, method: 4, variant: 2, calibration: 1 }; // and what each weighs when not all can be had
const SCORES = Object.fromEntries(
  Object.entries({
    drop_sub_points: "drop of restricted top-1 (points)",
    top1_sub_percent: "restricted top-1 (%)",
    balanced_top1_sub_percent: "balanced restricted top-1 (%)",
    top1_all_percent: "top-1 among all classes (%)",
    balanced_top1_all_percent: "balanced top-1 among all classes (%)",
    drop_all_points: "drop of top-1 among all (points)",
  }).filter(([name]) => name in DATA.scores),
);
const KINDS = [...new Set(["similar", "dissimilar", "random", "even", "band", "given", "log", ...SUBSETS.kind])];
const MARKS = [
  "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0",
  "M0,-6.4L6.2,5H-6.2Z",
  "M-4.7,-4.7H4.7V4.7H-4.7Z",
  "M0,-6.8L6.8,0L0,6.8L-6.8,0Z",
  "M-2,-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
  "M-5.7,-2.9L-2.9,-5.7L0,-2.8L2.9,-5.7L5.7,-2.9L2.8,0L5.7,2.9L2.9,5.7L0,2.8L-2.9,5.7L-5.7,2.9L-2.8,0Z",
];
const MAGMA = "000004 140e36 3b0f70 641a80 8c2981 b73779 de4968 f7705c fe9f6d fecf92 fcfdbf".split(" ");
const REACH = 26; // pixels from a point within which a finger means it

let state; // the choices: the setting's four fields, kind, size, y, subset
let drawn = []; // the points in the plot, from left to right
let preview = null; // the subset under the pointer

/* ---- small helpers ---- */

function element(name, attributes = {}, ...children) {
  return withAttributes(document.createElement(name), attributes, children);
}

function shape(name, attributes = {}, ...children) {
  return withAttributes(document.createElementNS(PLOT.namespaceURI, name), attributes, children);
}

function withAttributes(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function mark(kind, attributes = {}) {
  const look = KINDS.indexOf(kind) % MARKS.length;
  return shape("path", { d: MARKS[look], class: `mark kind-${look}`, ...attributes });
}

const key = (kind) => shape("svg", { class: "key", viewBox: "-9 -9 18 18", "aria-hidden": "true" }, mark(kind));
const limits = (values) => [Math.min(...values), Math.max(...values)];
const signed = (value, digits) => value.toFixed(digits).replace("-", "−");
const nats = (value) => `${Number(value.toPrecision(3))} nats`;
const label = (field, value) => DATA.choices[field].find((choice) => choice[0] === value)[1];

/* ---- the state ---- */

function nearest(wanted, asked) {
  const fit = (setting) => Object.keys(SETTING).reduce(
    (sum, field) => sum + (setting[field] === wanted[field]) * SETTING[field] * (asked.includes(field) ? 16 : 1), 0);
  return DATA.settings.reduce((best, setting) => (fit(setting) > fit(best) ? setting : best));
}

function readState() {
  const asked = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const kinds = (asked.kind ?? "").split(",").filter((kind) => SUBSETS.kind.includes(kind));
  return {
    ...nearest({ ...DATA.settings[DATA.start], ...asked }, Object.keys(asked)),
    kind: "kind" in asked ? kinds : [...new Set(SUBSETS.kind)],
    size: SUBSETS.classes.some((classes) => String(classes.length) === asked.size) ? asked.size : "",
    y: asked.y in SCORES ? asked.y : "drop_sub_points",
    subset: SUBSETS.name.includes(asked.subset) ? asked.subset : "",
  };
}

function writeState() {
  const { kind, ...rest } = state;
  const told = Object.entries(rest).filter((entry) => entry[1] !== "");
  if (kind.length < new Set(SUBSETS.kind).size) told.push(["kind", kind.join(",")]);
  try {
    history.replaceState(null, "", `#${new URLSearchParams(told)}`);
  } catch { /* a page inside another may have no address to write to */ }
}

const settingNumber = (wanted) => DATA.settings.findIndex(
  (setting) => Object.keys(SETTING).every((field) => setting[field] === wanted[field]));

/* ---- controls ---- */

function fillControls() {
  for (const field of Object.keys(SETTING)) fill(field, DATA.choices[field]);
  const sizes = [...new Set(SUBSETS.classes.map((classes) => classes.length))].sort((a, b) => a - b);
  fill("size", [["", "any size"], ...sizes.map((size) => [String(size), `${size} classes`])]);
  fill("y", Object.entries(SCORES).map(([score, text]) => [score, text.replace(/ \(.*/, "")]));
  fill("subset", [["", "none selected"], ...SUBSETS.name.map((name) => [name, name])]);
  for (const kind of new Set(SUBSETS.kind)) {
    const count = SUBSETS.kind.filter((other) => other === kind).length;
    const box = element("input", { type: "checkbox", name: "kind", value: kind });
    byId("kinds").append(element("label", {}, box, key(kind), `${kind} (${count})`));
  }
}

function fill(name, choices) {
  FORM.elements[name].append(...choices.map(([value, text]) => element("option", { value }, text)));
}

function showControls() {
  for (const select of FORM.querySelectorAll("select")) select.value = state[select.name];
  for (const box of FORM.querySelectorAll("input")) box.checked = state.kind.includes(box.value);
}

function changed({ target }) {
  if (target.name === "kind") {
    state.kind = [...FORM.querySelectorAll("input:checked")].map((box) => box.value);
  } else {
    state[target.name] = target.value;
    Object.assign(state, nearest(state, [target.name]));
  }
  render();
}
