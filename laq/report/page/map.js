// The heat map of the divergence between every two classes.

const PLACE = Object.fromEntries(DATA.order.map((c, place) => [c, place])); // of a class, in the map
const cellOf = (row, column) => DATA.matrix[DATA.order[row]][DATA.order[column]];
const apart = DATA.matrix.flatMap((row, i) => row.filter((_, j) => j !== i)).sort((a, b) => a - b);
const LOWEST = Math.max(apart[Math.floor(0.001 * apart.length)], 1e-3);
const HIGHEST = Math.max(apart.at(-1), 2 * LOWEST);
let image; // a pixel for each pair
let pair = null; // the row and column looked at
let side = 0; // of the map, in pixels

function colour(value) {
  const part = Math.log(Math.max(value, LOWEST) / LOWEST) / Math.log(HIGHEST / LOWEST) * (MAGMA.length - 1);
  const [from, to] = [MAGMA[Math.floor(part)], MAGMA[Math.ceil(part)]];
  return [0, 2, 4].map((at) => {
    const [a, b] = [from, to].map((hex) => parseInt(hex.slice(at, at + 2), 16));
    return Math.round(a + (b - a) * (part % 1));
  });
}

function drawMapImage() {
  const n = DATA.order.length;
  image = element("canvas", { width: n, height: n });
  const pixels = new ImageData(n, n);
  for (let at = 0; at < n * n; at += 1) {
    const [row, column] = [Math.floor(at / n), at % n];
    if (row !== column) pixels.data.set([...colour(cellOf(row, column)), 255], 4 * at);
  }
  image.getContext("2d").putImageData(pixels, 0, 0);
  const [low, high] = byId("scale").querySelectorAll("span");
  [low.textContent, high.textContent] = [LOWEST, HIGHEST].map((value) => String(Number(value.toPrecision(2))));
  byId("scale").querySelector("i").style.background = `linear-gradient(90deg, ${MAGMA.map((hex) => `#${hex}`)})`;
}

function drawMap() {
  const room = MAP.parentElement.clientWidth;
  const margin = room > 640 ? 190 : 0; // for names
  side = Math.min(room - margin, 760);
  const ratio = window.devicePixelRatio || 1;
  Object.assign(MAP, { width: (side + margin) * ratio, height: side * ratio });
  Object.assign(MAP.style, { width: `${side + margin}px`, height: `${side}px` });
  const pen = MAP.getContext("2d");
  pen.scale(ratio, ratio);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(image, 0, 0, side, side);
  const marked = (SUBSETS.classes[SUBSETS.name.indexOf(preview ?? state.subset)] ?? []).map((c) => PLACE[c]);
  MAP.dataset.marked = marked.map((place) => DATA.classes[DATA.order[place]]).join("|");
  if (marked.length) markClasses(pen, marked.sort((a, b) => a - b));
  if (margin) nameClasses(pen, marked);
  if (pair) crossHair(pen);
}

function markClasses(pen, places) { // all pairs but theirs fade
  const cell = side / DATA.order.length;
  pen.fillStyle = cssColour("--surface");
  pen.globalAlpha = 0.72;
  pen.fillRect(0, 0, side, side);
  pen.globalAlpha = 1;
  pen.strokeStyle = cssColour("--ink");
  pen.lineWidth = 0.5;
  for (const row of places) {
    for (const column of places) {
      const box = [column * cell, row * cell, cell, cell];
      if (row !== column) pen.drawImage(image, column, row, 1, 1, ...box);
      pen.strokeRect(...box);
    }
  }
}

function nameClasses(pen, marked) {
  const cell = side / DATA.order.length;
  const gap = 17;
  const places = cell >= gap ? DATA.order.map((_, place) => place) : marked;
  const lines = spread(places.map((place) => (place + 0.5) * cell), gap);
  pen.font = `14px ${getComputedStyle(document.body).fontFamily}`;
  pen.textBaseline = "middle";
  pen.fillStyle = cssColour("--ink");
  pen.strokeStyle = cssColour("--quiet");
  places.forEach((place, i) => {
    pen.beginPath();
    pen.moveTo(side + 1, (place + 0.5) * cell);
    pen.lineTo(side + 16, lines[i]);
    pen.stroke();
    pen.fillText(DATA.classes[DATA.order[place]], side + 21, lines[i], 165);
  });
}

function spread(wanted, gap) { // as near to where they are wanted as a gap between them lets
  const runs = []; // of neighbours that touch
  for (const at of wanted) {
    let run = [at];
    while (runs.length && topOf(runs.at(-1), gap) + runs.at(-1).length * gap > topOf(run, gap)) run = [...runs.pop(), ...run];
    runs.push(run);
  }
  return runs.flatMap((run) => run.map((_, i) => topOf(run, gap) + i * gap));
}

function topOf(run, gap) { // where a run's first one goes, that all of it be seen
  const middle = run.reduce((sum, at) => sum + at, 0) / run.length;
  return Math.max(Math.min(middle - gap * (run.length - 1) / 2, side - gap * (run.length - 0.5)), gap / 2);
}

function crossHair(pen) {
  const cell = side / DATA.order.length;
  const [row, column] = pair;
  pen.lineWidth = 3;
  for (const style of ["#000", "#fff"]) {
    pen.strokeStyle = style;
    pen.strokeRect(column * cell - 1, row * cell - 1, cell + 2, cell + 2);
    pen.lineWidth = 1;
  }
}

const cssColour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function showPair(row, column) {
  const last = DATA.order.length - 1;
  pair = [row, column].map((place) => Math.min(Math.max(place, 0), last));
  const [a, b] = pair.map((place) => DATA.classes[DATA.order[place]]);
  byId("pair").textContent = a === b ? a : `${a} and ${b}: ${nats(cellOf(...pair))}`;
  drawMap();
}

function pairAt({ offsetX, offsetY }) {
  const places = [offsetY, offsetX].map((at) => Math.floor((at / side) * DATA.order.length));
  if (Math.max(...places) < DATA.order.length) showPair(...places);
}

function onMapKey(event) {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  const [row, column] = pair ?? [0, 0];
  showPair(row + step[0], column + step[1]);
}
