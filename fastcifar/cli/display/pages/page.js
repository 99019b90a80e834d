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

// --- Plots: a part is enlarged by dragging over it, by buttons and by keys; a finger moves it then ---

// Round values across low..high, as `Axis.ticks` in chart.py.
function ticks(low, high) {
  const rough = (high - low) / 7;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * (1 - 1e-9)) ?? 10 * power;
  const found = [];
  for (let i = Math.ceil(low / step); i <= Math.floor(high / step); i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

const STEP = 1.5; // by which a button enlarges
const MOST = 1000; // times that a plot is enlarged

function preparePlot(svg) {
  const axes = { x: svg.dataset.x.split(" ").map(Number), y: svg.dataset.y.split(" ").map(Number) }; // low high start end
  const zoomed = svg.querySelector(".zoom");
  const grid = svg.querySelector(".ticks");
  const original = grid.innerHTML;
  const [, , left, right] = axes.x;
  const [, , bottom, top] = axes.y;
  const whole = { x: [left, right], y: [bottom, top] };
  const view = { ...whole }; // the pixels shown, of the plot as it was drawn

  function value(name, pixel) {
    const [low, high, start, end] = axes[name];
    return low + ((pixel - start) / (end - start)) * (high - low);
  }

  function axisPixel(name, tick) {
    const [low, high, start, end] = axes[name];
    return start + ((tick - low) / (high - low)) * (end - start);
  }

  function show() {
    const sx = (right - left) / (view.x[1] - view.x[0]);
    const sy = (top - bottom) / (view.y[1] - view.y[0]);
    const all = Math.max(sx, sy) < 1 + 1e-9;
    zoomed.setAttribute("transform", `matrix(${sx} 0 0 ${sy} ${left - sx * view.x[0]} ${bottom - sy * view.y[0]})`);
    reset.classList.toggle("hidden", all);
    svg.classList.toggle("zoomed", !all);
    if (all) {
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

  // Shows what lies so many widths to the right and heights below, so many times as large, inside the whole.
  function look(times, across = 0, down = 0) {
    for (const [name, shift] of Object.entries({ x: across, y: -down })) {
      const [start, end] = whole[name];
      const [a, b] = view[name];
      const size = Math.min(1, Math.max(1 / MOST, (b - a) / (end - start) / times));
      const first = ((a + b) / 2 - start) / (end - start) + (shift * (b - a)) / (end - start) - size / 2;
      const place = start + Math.max(0, Math.min(1 - size, first)) * (end - start);
      view[name] = [place, place + size * (end - start)];
    }
    show();
  }

  const buttons = element("div", { class: "zooms" });
  const actions = { "+": () => look(STEP), "-": () => look(1 / STEP), Escape: () => look(1 / MOST) };
  const button = (key, text, name) => {
    const made = element("button", { type: "button", "aria-label": name, title: name }, text);
    made.addEventListener("click", actions[key]);
    buttons.append(made);
    return made;
  };
  button("+", "+", "Zoom in");
  button("-", "\u2212", "Zoom out");
  const reset = button("Escape", "all", "Whole picture");
  reset.classList.add("reset", "hidden");
  svg.parentElement.append(buttons);
  svg.parentElement.classList.add("zooming");

  const moves = { ArrowLeft: [-0.2, 0], ArrowRight: [0.2, 0], ArrowUp: [0, -0.2], ArrowDown: [0, 0.2] };
  svg.setAttribute("tabindex", "0");
  svg.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return; // those are the browser's
    const key = event.key === "=" ? "+" : event.key;
    if (actions[key]) actions[key]();
    else if (moves[key] && svg.classList.contains("zoomed")) look(1, ...moves[key]);
    else return;
    event.preventDefault();
  });

  function place(event) {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return [Math.max(left, Math.min(right, point.x)), Math.max(top, Math.min(bottom, point.y))];
  }

  let from = null;
  let frame = null; // of what a mouse chooses; a finger moves the picture
  svg.addEventListener("pointerdown", (event) => {
    const mouse = event.pointerType === "mouse";
    if (mouse && event.button !== 0) return;
    from = place(event);
    frame = mouse ? drawn(svg, "rect", { class: "select" }) : null;
    if (!mouse) return; // unless the plot is enlarged, the browser takes a finger for its own scrolling
    event.preventDefault(); // it would select text
    svg.focus({ preventScroll: true });
  });
  addEventListener("pointermove", (event) => {
    if (!from) return;
    const [x, y] = place(event);
    if (!frame) {
      look(1, (from[0] - x) / (right - left), (from[1] - y) / (bottom - top));
      from = [x, y];
      return;
    }
    frame.setAttribute("x", Math.min(x, from[0]));
    frame.setAttribute("y", Math.min(y, from[1]));
    frame.setAttribute("width", Math.abs(x - from[0]));
    frame.setAttribute("height", Math.abs(y - from[1]));
  });
  addEventListener("pointercancel", () => {
    frame?.remove();
    from = null;
  });
  addEventListener("pointerup", (event) => {
    if (!from) return;
    const [x, y] = place(event);
    const [x0, y0] = from;
    from = null;
    if (!frame) return;
    frame.remove();
    if (Math.abs(x - x0) < 8 || Math.abs(y - y0) < 8) return; // a click, or a stripe
    const back = (pixel, start, end, [a, b]) => a + ((pixel - start) / (end - start)) * (b - a);
    const xs = [Math.min(x, x0), Math.max(x, x0)].map((pixel) => back(pixel, left, right, view.x));
    const ys = [Math.max(y, y0), Math.min(y, y0)].map((pixel) => back(pixel, bottom, top, view.y));
    Object.assign(view, { x: xs, y: ys });
    show();
  });
  svg.classList.add("live");
}

document.querySelectorAll("svg.plot[data-x]").forEach(preparePlot);
