// Makes tables sortable, then draws everything, at the start and after each change.

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

function render() {
  writeState();
  showControls();
  drawPlot();
  showSubset(null);
}

const hover = (name) => name !== preview && showSubset(name);

function listen() {
  FORM.addEventListener("change", changed);
  FORM.addEventListener("submit", (event) => event.preventDefault());
  PLOT.addEventListener("pointermove", (event) => event.pointerType === "mouse" && hover(pointAt(event)));
  PLOT.addEventListener("pointerleave", () => hover(null));
  PLOT.addEventListener("click", (event) => select(pointAt(event)));
  PLOT.addEventListener("focusin", (event) => hover(event.target.dataset.subset ?? null));
  PLOT.addEventListener("focusout", () => hover(null));
  PLOT.addEventListener("keydown", onPlotKey);
  for (const kind of ["pointermove", "pointerdown"]) MAP.addEventListener(kind, pairAt);
  MAP.addEventListener("keydown", onMapKey);
  for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sortTable(button.parentElement));
  window.addEventListener("hashchange", () => { state = readState(); render(); });
  window.addEventListener("resize", () => { drawPlot(); showSubset(preview); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
}

fillControls();
drawMapImage();
listen();
state = readState();
render();
