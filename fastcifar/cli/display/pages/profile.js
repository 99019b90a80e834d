// --- Icicle plots of a profile: a click zooms, a click on what is above or Escape zooms out, search sums ---

const ROW = 27; // height of a box, pixels, as in page_icicle.py
const NARROW = 0.004; // of the width: boxes below that are folded
const LABELLED = 26; // pixels from which a box has a label

function timeText(ms) {
  if (ms >= 99.95) return Math.round(ms).toLocaleString("en-US");
  return ms.toFixed(ms >= 9.995 ? 1 : ms >= 0.0995 ? 2 : ms >= 0.00995 || !ms ? 3 : 4);
}

function shareText(part, whole) {
  return `${((100 * part) / (whole || 1)).toFixed(1)} %`;
}

// A node of the page's data, [name, ms, bound, lines, below], as an object that knows what it lies in.
function grow([name, ms, bound, lines, below = []], names, labels, up = null) {
  const box = { name: names[name], label: labels[name], ms, bound, lines, up, level: up ? up.level + 1 : 0 };
  box.below = below.map((node) => grow(node, names, labels, box));
  return box;
}

// Neighbours narrower than `least` as one box, as `fold` in profile_tree.py; `members` open when it is clicked.
function fold(boxes, least, plain, idle) {
  const folded = [];
  let run = [];
  const close = () => {
    if (run.length < 2) folded.push(...run);
    else {
      const ms = run.reduce((sum, box) => sum + box.ms, 0);
      const lines = `${run[0].name} … ${run[run.length - 1].name}`;
      const { up, level } = run[0];
      const bound = run.every((box) => box.bound === run[0].bound) ? run[0].bound : plain;
      const name = `${run.length} others`;
      folded.push({ name, label: name, ms, bound, lines, up, level, below: [], members: run });
    }
    run = [];
  };
  for (const box of boxes) {
    const narrow = box.ms < least && box.bound !== idle;
    if (!narrow || run.reduce((sum, each) => sum + each.ms, 0) >= least) close();
    if (narrow) run.push(box);
    else folded.push(box);
  }
  close();
  return folded;
}

function found(box, wanted) {
  return box.name.toLowerCase().includes(wanted) ? [box] : box.below.flatMap((child) => found(child, wanted));
}

function prepareIcicle(svg) {
  const { extent, tree, names, labels, bounds } = data.icicles[Number(svg.dataset.tree)];
  const root = grow(tree, names, labels);
  const [plain, idle] = [bounds.findIndex(([name]) => name === "plain"), bounds.findIndex(([name]) => name === "idle")];
  let shown = [root]; // neighbours over the whole width
  let wanted = "";
  let room = 0; // pixels of the whole width, read once a drawing: each reading lays the page out anew

  const search = element("input", { type: "search", placeholder: "search", "aria-label": "Search layers and kernels" });
  const back = element("button", { type: "button", class: "hidden" }, "whole step");
  const sum = element("output");
  const tools = element("div", { class: "tools" });
  tools.append(search, back, sum);
  svg.before(tools);

  function drawBox(box, start, width, kind = "") {
    const place = { x: `${start}%`, y: box.level * ROW, width: `${width}%`, height: ROW - 1 };
    const hit = wanted && (box.members ? box.members.some((each) => found(each, wanted).length) : isHit(box));
    const part = drawn(svg, "svg", { class: `box ${kind}${hit ? " hit" : ""}`, ...place });
    drawn(part, "title", {}, tipFor(box));
    drawn(part, "rect", { width: "100%", height: "100%", fill: bounds[box.bound][1] });
    if ((width / 100) * room >= LABELLED) {
      drawn(part, "text", { x: 4, y: 18 }, box.label);
      part.setAttribute("tabindex", "0");
    }
    const open = () => show(box.members ?? [box]);
    part.addEventListener("click", open);
    part.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      open();
      svg.querySelector("[tabindex]")?.focus();
    });
  }

  // A kernel of a layer that was found was found with it.
  function isHit(box) {
    return box.name.toLowerCase().includes(wanted) || (box.up !== null && isHit(box.up));
  }

  function tipFor(box) {
    const whole = box.level ? `, ${shareText(box.ms, root.ms)} of the step` : "";
    const inside = box.level > 1 && box.up ? `, ${shareText(box.ms, box.up.ms)} of ${box.up.name}` : "";
    return `${box.name}: ${timeText(box.ms)} ms${whole}${inside}\n${box.lines}`;
  }

  function drawRow(boxes, start, scale) {
    for (const box of fold(boxes, NARROW * (100 / scale), plain, idle)) {
      drawBox(box, start, box.ms * scale);
      drawRow(box.below, start, scale);
      start += box.ms * scale;
    }
  }

  function draw() {
    room = svg.clientWidth;
    svg.replaceChildren();
    svg.classList.toggle("searched", wanted !== "");
    const above = [];
    for (let box = shown[0].up; box; box = box.up) above.unshift(box);
    for (const box of above) drawBox(box, 0, 100, "above");
    const time = shown.reduce((total, box) => total + box.ms, 0);
    const scale = 100 / ((shown[0] === root ? extent : time) || 1);
    drawRow(shown, 0, scale);
  }

  function show(boxes) {
    shown = boxes;
    back.classList.toggle("hidden", shown[0] === root);
    tip.classList.add("hidden");
    draw();
  }

  search.addEventListener("input", () => {
    wanted = search.value.trim().toLowerCase();
    const matches = wanted ? found(root, wanted) : [];
    const time = matches.reduce((total, box) => total + box.ms, 0);
    const count = matches.length === 1 ? "1 match" : `${matches.length} matches`;
    sum.textContent = wanted ? `${count}: ${timeText(time)} ms, ${shareText(time, root.ms)} of the step` : "";
    draw();
  });
  back.addEventListener("click", () => show([root]));
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && shown[0] !== root) show([root]);
  });
  addEventListener("resize", draw);
  draw();
}

document.querySelectorAll("svg.icicle").forEach(prepareIcicle);
