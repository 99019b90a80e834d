"use strict";
// Adds to a page that is whole without it: tooltips, sorting and filtering of tables, hiding of series, zoom of plots.

const SVG = "http://www.w3.org/2000/svg";
const dataBlock = document.getElementById("data");
const data = dataBlock ? JSON.parse(dataBlock.textContent) : null;

function element(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function drawn(parent, name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  parent.append(made);
  return made;
}

// --- Tooltips: the <title> of a shape, or a `data-tip`, beside the pointer ---

const tip = element("div", { id: "tip", role: "tooltip", class: "hidden" });
document.body.append(tip);

// The browser would show a <title> too, so it becomes an attribute when the pointer first comes by.
function tipOf(target) {
  for (let at = target; at instanceof Element; at = at.parentElement) {
    const title = at instanceof SVGElement ? at.querySelector(":scope > title") : null;
    if (title) {
      at.dataset.tip = title.textContent;
      at.setAttribute("aria-label", title.textContent);
      title.remove();
    }
    if (at.dataset.tip) return at.dataset.tip;
  }
  return "";
}

document.addEventListener("pointerover", (event) => {
  const text = tipOf(event.target);
  tip.textContent = text;
  tip.classList.toggle("hidden", !text);
});
document.addEventListener("pointermove", (event) => {
  if (tip.classList.contains("hidden")) return;
  const box = tip.getBoundingClientRect();
  const left = event.clientX + 14 + box.width > innerWidth ? event.clientX - 14 - box.width : event.clientX + 14;
  const top = event.clientY + 18 + box.height > innerHeight ? event.clientY - 10 - box.height : event.clientY + 18;
  tip.style.left = `${Math.max(4, Math.min(left, innerWidth - box.width - 4))}px`;
  tip.style.top = `${Math.max(4, top)}px`;
});
document.addEventListener("pointerleave", () => tip.classList.add("hidden"));

// --- Tables ---

function sortTable(table, index) {
  const heading = table.tHead.rows[0].cells[index];
  const numeric = heading.classList.contains("number");
  const before = heading.getAttribute("aria-sort");
  // The first click on figures shows the largest first, on names the first.
  const descending = before ? before === "ascending" : numeric;
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const key = (row) => (numeric ? row.cells[index].dataset.value : row.cells[index].textContent);
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (!x || !y) return (x ? 0 : 1) - (y ? 0 : 1); // what is missing comes last either way
    const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true });
    return descending ? -order : order;
  });
  table.tBodies[0].append(...rows);
}

function prepareTable(table) {
  const rows = [...table.tBodies[0].rows];
  [...table.tHead.rows[0].cells].forEach((heading, index) => {
    if (rows.some((row) => row.cells[index]?.classList.contains("number"))) heading.classList.add("number");
    if (!heading.textContent || rows.length < 2) return;
    const button = element("button", { type: "button" }, heading.textContent);
    button.addEventListener("click", () => sortTable(table, index));
    heading.replaceChildren(button);
  });
  if (rows.length > 15) {
    const search = element("input", { type: "search", placeholder: "search", "aria-label": "Search this table" });
    search.addEventListener("input", () => {
      const wanted = search.value.toLowerCase();
      for (const row of rows) row.classList.toggle("hidden", !row.textContent.toLowerCase().includes(wanted));
    });
    table.parentElement.before(search);
  }
}

document.querySelectorAll("table.sortable").forEach(prepareTable);

// --- Legends: a click hides a series in all pictures of its section ---

function prepareKey(key) {
  const button = element("button", { type: "button", "aria-pressed": "true" }, key.textContent);
  button.addEventListener("click", () => {
    const off = key.classList.toggle("off");
    button.setAttribute("aria-pressed", String(!off));
    const marks = key.closest("section").querySelectorAll(`svg [data-series="${key.dataset.series}"]`);
    for (const mark of marks) mark.classList.toggle("hidden", off);
  });
  key.replaceChildren(button);
}

document.querySelectorAll(".legend li[data-series]").forEach(prepareKey);

// --- Plots: drag over a part to zoom into it ---

// Round values across low..high, as `Axis.ticks` in chart.py.
function ticks(low, high) {
  const rough = (high - low) / 7;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * (1 - 1e-9)) ?? 10 * power;
  const found = [];
  for (let i = Math.ceil(low / step); i <= Math.floor(high / step); i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function preparePlot(svg) {
  const axes = { x: svg.dataset.x.split(" ").map(Number), y: svg.dataset.y.split(" ").map(Number) }; // low high start end
  const zoomed = svg.querySelector(".zoom");
  const grid = svg.querySelector(".ticks");
  const original = grid.innerHTML;
  const [, , left, right] = axes.x;
  const [, , bottom, top] = axes.y;
  const view = { x: [left, right], y: [bottom, top] }; // the pixels shown, of the plot as it was drawn
  const reset = element("button", { type: "button", class: "reset hidden" }, "whole picture");
  svg.parentElement.append(reset);

  function value(name, pixel) {
    const [low, high, start, end] = axes[name];
    return low + ((pixel - start) / (end - start)) * (high - low);
  }

  function show() {
    const sx = (right - left) / (view.x[1] - view.x[0]);
    const sy = (top - bottom) / (view.y[1] - view.y[0]);
    const whole = sx === 1 && sy === 1;
    zoomed.setAttribute("transform", `matrix(${sx} 0 0 ${sy} ${left - sx * view.x[0]} ${bottom - sy * view.y[0]})`);
    reset.classList.toggle("hidden", whole);
    if (whole) {
      grid.innerHTML = original;
      return;
    }
    grid.replaceChildren();
    for (const tick of ticks(value("x", view.x[0]), value("x", view.x[1]))) {
      const at = left + sx * (axisPixel("x", tick) - view.x[0]);
      drawn(grid, "line", { class: "grid", x1: at, x2: at, y1: top, y2: bottom });
      drawn(grid, "text", { class: "faint", x: at, y: bottom + 20, "text-anchor": "middle" }, String(tick));
    }
    for (const tick of ticks(value("y", view.y[0]), value("y", view.y[1]))) {
      const at = bottom + sy * (axisPixel("y", tick) - view.y[0]);
      drawn(grid, "line", { class: "grid", x1: left, x2: right, y1: at, y2: at });
      drawn(grid, "text", { class: "faint", x: left - 8, y: at + 4, "text-anchor": "end" }, String(tick));
    }
  }

  function axisPixel(name, tick) {
    const [low, high, start, end] = axes[name];
    return start + ((tick - low) / (high - low)) * (end - start);
  }

  function place(event) {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return [Math.max(left, Math.min(right, point.x)), Math.max(top, Math.min(bottom, point.y))];
  }

  let from = null;
  let frame = null;
  svg.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button !== 0) return; // a finger scrolls the page
    from = place(event);
    frame = drawn(svg, "rect", { class: "select" });
    event.preventDefault();
  });
  addEventListener("pointermove", (event) => {
    if (!from) return;
    const [x, y] = place(event);
    frame.setAttribute("x", Math.min(x, from[0]));
    frame.setAttribute("y", Math.min(y, from[1]));
    frame.setAttribute("width", Math.abs(x - from[0]));
    frame.setAttribute("height", Math.abs(y - from[1]));
  });
  addEventListener("pointerup", (event) => {
    if (!from) return;
    const [x, y] = place(event);
    const [x0, y0] = from;
    frame.remove();
    from = null;
    if (Math.abs(x - x0) < 8 || Math.abs(y - y0) < 8) return; // a click, or a stripe
    const back = (pixel, start, end, [a, b]) => a + ((pixel - start) / (end - start)) * (b - a);
    const xs = [Math.min(x, x0), Math.max(x, x0)].map((pixel) => back(pixel, left, right, view.x));
    const ys = [Math.max(y, y0), Math.min(y, y0)].map((pixel) => back(pixel, bottom, top, view.y));
    Object.assign(view, { x: xs, y: ys });
    show();
  });
  reset.addEventListener("click", () => {
    Object.assign(view, { x: [left, right], y: [bottom, top] });
    show();
  });
  svg.classList.add("live");
}

document.querySelectorAll("svg.plot[data-x]").forEach(preparePlot);
