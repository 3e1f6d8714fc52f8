// The plot, with a point for each selected subset.

/* ---- statistics ---- */

function ranks(values) { // those of ties are averaged
  return values.map((value) => {
    const [below, same] = [values.filter((v) => v < value).length, values.filter((v) => v === value).length];
    return below + (same + 1) / 2;
  });
}

function moments(x, y) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [mx, my] = [mean(x), mean(y)];
  const about = (a, ma, b, mb) => a.reduce((sum, value, i) => sum + (value - ma) * (b[i] - mb), 0);
  return { mx, my, xx: about(x, mx, x, mx), xy: about(x, mx, y, my), yy: about(y, my, y, my) };
}

function spearman(x, y) { // null where undefined
  const { xx, xy, yy } = moments(ranks(x), ranks(y));
  return x.length < 3 || xx === 0 || yy === 0 ? null : xy / Math.sqrt(xx * yy);
}

/* ---- points and axes ---- */

function shownPoints() {
  const scores = DATA.scores[state.y][settingNumber(state)];
  return SUBSETS.name
    .map((name, i) => ({ i, name, kind: SUBSETS.kind[i], x: SUBSETS.divergence[i], y: scores[i] }))
    .filter(({ i, kind, y }) => y !== null && state.kind.includes(kind) &&
      ["", String(SUBSETS.classes[i].length)].includes(state.size));
}

function decimals(low, high, wanted) { // round numbers between two, about so many
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const first = Math.ceil(low / step), last = Math.floor(high / step);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function logTicks(low, high) {
  const powers = Array.from({ length: 40 }, (_, i) => i - 20);
  const within = (factors) => powers
    .flatMap((power) => factors.map((factor) => Number(`${factor}e${power}`)))
    .filter((tick) => tick >= low && tick <= high);
  return [[1], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]].map(within).find((ticks) => ticks.length >= 4)
    ?? decimals(low, high, 4);
}

function frame(points) {
  const width = PLOT.parentElement.clientWidth;
  const height = Math.round(Math.min(Math.max(width * 0.62, 320), 500));
  const [left, right, top, bottom] = [58, width - 16, 40, height - 52];
  const [x0, x1] = limits(points.map((point) => Math.log(point.x)));
  const [y0, y1] = limits([...points.map((point) => point.y), ...(state.y.startsWith("drop") ? [0] : [])]);
  const [padX, padY] = [0.04 * (x1 - x0) || 0.5, 0.06 * (y1 - y0) || 1];
  return {
    width, height, left, right, top, bottom,
    x: (value) => left + (Math.log(value) - x0 + padX) / (x1 - x0 + 2 * padX) * (right - left),
    y: (value) => bottom - (value - y0 + padY) / (y1 - y0 + 2 * padY) * (bottom - top),
    xTicks: logTicks(Math.exp(x0 - padX), Math.exp(x1 + padX)),
    yTicks: decimals(y0 - padY, y1 + padY, 6),
  };
}

function drawPlot() {
  const all = shownPoints();
  const points = all.filter((point) => point.x > 0).sort((a, b) => a.x - b.x);
  const area = frame(points.length ? points : [{ x: 1, y: 0 }]);
  drawn = points.map((point) => ({ ...point, left: area.x(point.x), top: area.y(point.y) }));
  PLOT.setAttribute("height", area.height);
  PLOT.replaceChildren(...axes(area), ...trend(area, points), ...drawn.map(pointMark),
    shape("circle", { class: "halo", r: 11, visibility: "hidden" }));
  showStatus(points, all.length - points.length);
}

function axes(area) {
  const parts = area.yTicks.flatMap((tick) => [
    line(area.left, area.y(tick), area.right, area.y(tick), tick === 0 ? "zero" : "grid"),
    text(signed(tick, 6).replace(/\.?0+$/, "") || "0", area.left - 8, area.y(tick) + 5, "end"),
  ]);
  let free = area.left - 20; // where the next number may begin
  for (const tick of area.xTicks) {
    const [place, half] = [area.x(tick), 4.5 * String(tick).length];
    parts.push(line(place, area.top, place, area.bottom + 5, "grid"));
    if (place - half < free) continue;
    parts.push(text(String(tick), place, area.bottom + 21, "middle"));
    free = place + half + 6;
  }
  const middle = (area.left + area.right) / 2;
  return [...parts, text("median divergence (nats, log scale)", middle, area.height - 8, "middle"), text(SCORES[state.y], 14, 24, "start")];
}

const line = (x1, y1, x2, y2, name) => shape("line", { x1, y1, x2, y2, class: name });
const text = (content, x, y, anchor) => shape("text", { x, y, "text-anchor": anchor }, content);

function trend(area, points) { // the least-squares a ln x + c
  if (new Set(points.map((point) => point.x)).size < 3) return [];
  const { mx, my, xx, xy } = moments(points.map((point) => Math.log(point.x)), points.map((point) => point.y));
  const [from, to] = [points[0].x, points.at(-1).x];
  const at = (x) => area.y(my + (xy / xx) * (Math.log(x) - mx));
  return [line(area.x(from), at(from), area.x(to), at(to), "trend")];
}

function pointMark(point, number) {
  const names = SUBSETS.classes[point.i].map((c) => DATA.classes[c]).join(", ");
  return mark(point.kind, {
    transform: `translate(${point.left.toFixed(1)},${point.top.toFixed(1)})`,
    "data-subset": point.name, "data-x": point.x, "data-y": point.y,
    role: "button", tabindex: number === 0 ? 0 : -1,
    "aria-label": `${point.name}: ${point.x} nats, ${SCORES[state.y]} ${point.y}; ${names}`,
  });
}

function showStatus(points, hidden) {
  const rho = spearman(points.map((point) => point.x), points.map((point) => point.y));
  PLOT.dataset.rho = rho ?? "undefined";
  const what = state.method === "float" ? "not quantized" : `${label("method", state.method)}, ${state.bits} bits`;
  byId("status").textContent =
    `${points.length} subsets, ${label("variant", state.variant)} network, ${what}: ` +
    `rho of the points shown ${rho === null ? "is undefined" : signed(rho, 2)}` +
    `${new Set(points.map((point) => point.x)).size < 3 ? "" : "; dashed, the fitted a ln x + c"}.` +
    `${hidden ? ` ${hidden} more have no divergence above 0.` : ""}`;
}

function pointAt(event) {
  const box = PLOT.getBoundingClientRect();
  const distance = (point) => Math.hypot(point.left - event.clientX + box.left, point.top - event.clientY + box.top);
  const closest = drawn.reduce((best, point) => (best && distance(best) <= distance(point) ? best : point), null);
  return closest && distance(closest) <= REACH ? closest.name : null;
}

function onPlotKey(event) {
  const here = drawn.findIndex((point) => point.name === event.target.dataset.subset);
  const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
  if (here >= 0 && step) focusPoint(drawn[(here + step + drawn.length) % drawn.length].name);
  else if (here >= 0 && ["Enter", " "].includes(event.key)) select(drawn[here].name);
  else if (event.key === "Escape") select("");
  else return;
  event.preventDefault();
}

const markOf = (name) => [...PLOT.querySelectorAll(".mark")].find((one) => one.dataset.subset === name);

function focusPoint(name) {
  for (const one of PLOT.querySelectorAll(".mark")) one.setAttribute("tabindex", -1);
  markOf(name).setAttribute("tabindex", 0);
  markOf(name).focus();
}
