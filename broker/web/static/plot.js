"use strict";
// Plots in SVG: points with error bars, limits, lines; axes that may be inverted; zoom by pointer and keyboard.
//
// plot(element, options): options.series = [{name, colour, marker, points: [[x, y, error, text]], line, limit}],
// options.x and options.y = {label, invert, range}. Returns {update(options)}.
const PLOT_NS = "http://www.w3.org/2000/svg";
const PLOT_MARKERS = {
  circle: (x, y, r) => `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`,
  square: (x, y, r) => `M${x - r * 0.9},${y - r * 0.9}h${r * 1.8}v${r * 1.8}h${-r * 1.8}z`,
  diamond: (x, y, r) => `M${x},${y - r * 1.3}l${r * 1.3},${r * 1.3}l${-r * 1.3},${r * 1.3}l${-r * 1.3},${-r * 1.3}z`,
  triangle: (x, y, r) => `M${x},${y - r * 1.2}l${r * 1.15},${r * 2.1}h${-r * 2.3}z`,
  down: (x, y, r) => `M${x},${y}v${r * 2.6}m${-r},${-r}l${r},${r}l${r},${-r}`,
};

// Whether a range is so small that its ends have hardly a digit in which they differ: steps within it would add nothing.
const plotFlat = (low, high) => !(high - low > 1e-12 * Math.max(Math.abs(low), Math.abs(high)));

function plotTicks(low, high, most) {
  if (plotFlat(low, high)) return [];
  const raw = (high - low) / Math.max(most, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((s) => s >= raw * (1 - 1e-9));
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (String(step / power).startsWith("2.5") ? 1 : 0));
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) {
    found.push([n * step, (Object.is(n * step, -0) ? 0 : n * step).toFixed(Math.min(digits, 8)).replace("-", "−")]);
  }
  return found;
}

function plot(element, first) {
  let options = first;
  let view = null; // what is zoomed to: [x0, x1, y0, y1]
  const hidden = new Set(first.series.filter((s) => s.quiet).map((s) => s.name));
  const make = (name, attributes = {}, parent = null) => {
    const node = document.createElementNS(PLOT_NS, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (parent) parent.append(node);
    return node;
  };
  const html = (name, text, parent) => {
    const node = document.createElement(name);
    node.textContent = text;
    parent.append(node);
    return node;
  };
  element.replaceChildren();
  const legend = html("div", "", element);
  legend.className = "legend";
  const frame = html("div", "", element);
  frame.className = "frame";
  frame.tabIndex = 0;
  frame.setAttribute("role", "group");
  const tools = html("div", "", element);
  tools.className = "tools";
  for (const [sign, label, action] of [["+", "Zoom in", () => zoom(0.5)], ["−", "Zoom out", () => zoom(2)], ["⟲", "Show all", () => show(null)]]) {
    const button = html("button", sign, tools);
    button.type = "button";
    button.setAttribute("aria-label", label);
    button.title = label;
    button.addEventListener("click", action);
  }
  const readout = html("output", "", tools);
  readout.className = "readout";

  const shown = () => options.series.filter((s) => !hidden.has(s.name));
  function whole() {
    const xs = [], ys = [];
    for (const s of shown()) for (const [x, y, e] of s.points) if (x !== null && y !== null) {
      xs.push(x);
      const reach = s.line || !e ? 0 : Math.min(e, s.most ?? Infinity);
      ys.push(y - reach, y + reach);
    }
    const range = (values, fixed) => {
      if (fixed) return fixed;
      let low = Infinity, high = -Infinity;
      for (const v of values) { if (v < low) low = v; if (v > high) high = v; }
      if (!(low <= high)) return [0, 1];
      const room = plotFlat(low, high) ? Math.abs(low) * 0.01 || 0.5 : (high - low) * 0.05;
      return [low - room, high + room];
    };
    return [...range(xs, options.x.range), ...range(ys, options.y.range)];
  }
  function show(next) {
    if (next && (plotFlat(next[0], next[1]) || plotFlat(next[2], next[3]))) return;
    view = next;
    draw();
  }
  function zoom(factor, atX = 0.5, atY = 0.5) {
    const [x0, x1, y0, y1] = view ?? whole();
    const cx = x0 + (x1 - x0) * atX, cy = y0 + (y1 - y0) * atY;
    const all = whole();
    if (factor > 1 && (x1 - x0) * factor >= all[1] - all[0]) { show(null); return; }
    show([cx - (cx - x0) * factor, cx + (x1 - cx) * factor, cy - (cy - y0) * factor, cy + (y1 - cy) * factor]);
  }
  function pan(dx, dy) {
    const [x0, x1, y0, y1] = view ?? whole();
    const mx = (x1 - x0) * dx, my = (y1 - y0) * dy * (options.y.invert ? -1 : 1);
    show([x0 + mx, x1 + mx, y0 + my, y1 + my]);
  }

  let area = null, nearest = () => null;
  function draw() {
    const width = Math.max(frame.clientWidth, 200);
    const height = element.classList.contains("square") ? Math.min(width, 420) : element.classList.contains("tall") ? Math.min(420, Math.max(280, width * 0.5)) : 260;
    const ends = view ?? whole();
    const [x0, x1, y0, y1] = ends;
    const yTicks = plotTicks(y0, y1, Math.floor(height / 55));
    const left = 26 + 7 * Math.max(...yTicks.map(([, t]) => t.length), 3), right = 16, top = 10, bottom = 44;
    area = { left, top, width: width - left - right, height: height - top - bottom };
    const flip = (t, yes) => (yes ? 1 - t : t);
    const px = (x) => left + flip((x - x0) / (x1 - x0), options.x.invert) * area.width;
    const py = (y) => top + flip((y - y0) / (y1 - y0), !options.y.invert) * area.height;
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": options.label });
    const clip = `clip-${element.id}`;
    make("rect", { x: left, y: top, width: area.width, height: area.height }, make("clipPath", { id: clip }, make("defs", {}, svg)));
    const grid = make("g", { class: "grid" }, svg), text = make("g", { class: "ticks" }, svg);
    for (const [value, label] of plotTicks(x0, x1, Math.max(3, Math.floor(area.width / 85)))) {
      make("line", { x1: px(value), x2: px(value), y1: top, y2: top + area.height }, grid);
      make("text", { x: px(value), y: top + area.height + 16, "text-anchor": "middle" }, text).textContent = label;
    }
    for (const [value, label] of yTicks) {
      make("line", { x1: left, x2: left + area.width, y1: py(value), y2: py(value) }, grid);
      make("text", { x: left - 6, y: py(value) + 4, "text-anchor": "end" }, text).textContent = label;
    }
    make("rect", { x: left, y: top, width: area.width, height: area.height, class: "axes" }, svg);
    make("text", { x: left + area.width / 2, y: height - 6, "text-anchor": "middle", class: "name" }, svg).textContent = options.x.label;
    make("text", { x: 0, y: 0, transform: `translate(13 ${top + area.height / 2}) rotate(-90)`, "text-anchor": "middle", class: "name" }, svg).textContent = options.y.label;
    const inside = make("g", { "clip-path": `url(#${clip})` }, svg);
    for (const [n, mark] of (options.marks ?? []).entries()) {
      if (mark.x < x0 || mark.x > x1) continue;
      make("line", { x1: px(mark.x), x2: px(mark.x), y1: top, y2: top + area.height, class: "mark-line" }, inside);
      make("text", { x: px(mark.x) + 3, y: top + 12 + 13 * (n % 3), class: "mark-name" }, inside).textContent = mark.name;
    }
    const where = [];
    for (const s of shown()) {
      const r = s.size ?? 2.7, marks = [], bars = [];
      let line = "", pen = "M";
      for (const point of s.points) {
        const [x, y, e] = point;
        if (x === null || y === null) { pen = "M"; continue; }
        const sx = px(x), sy = py(y);
        if (s.line) { line += `${pen}${sx.toFixed(1)},${sy.toFixed(1)}`; pen = "L"; }
        if (x < x0 || x > x1) continue;
        if (s.marker) marks.push(PLOT_MARKERS[s.marker](sx, sy, r));
        if (e && !s.line) bars.push(`M${sx.toFixed(1)},${py(y - e).toFixed(1)}V${py(y + e).toFixed(1)}`);
        where.push([sx, sy, s, point]);
      }
      if (bars.length) make("path", { d: bars.join(""), stroke: s.colour, class: "error-bars" }, inside);
      if (line) make("path", { d: line, stroke: s.colour, class: "line" }, inside);
      if (marks.length) make("path", { d: marks.join(""), fill: s.limit || s.open ? "none" : s.colour, stroke: s.colour, class: "points" }, inside);
    }
    const ring = make("circle", { r: 6, class: "ring", visibility: "hidden" }, inside);
    const box = make("rect", { class: "zoom-box", visibility: "hidden" }, svg);
    nearest = (sx, sy) => {
      let best = null, least = 900;
      for (const one of where) {
        const d = (one[0] - sx) ** 2 + (one[1] - sy) ** 2;
        if (d < least) { least = d; best = one; }
      }
      ring.setAttribute("visibility", best ? "visible" : "hidden");
      if (best) { ring.setAttribute("cx", best[0]); ring.setAttribute("cy", best[1]); }
      readout.textContent = best ? options.read(best[2], best[3]) : "";
      return best;
    };
    svg.zoomBox = box;
    svg.back = (sx, sy) => [x0 + flip((sx - left) / area.width, options.x.invert) * (x1 - x0), y0 + flip((sy - top) / area.height, !options.y.invert) * (y1 - y0)];
    frame.replaceChildren(svg);
    frame.setAttribute("aria-label", `${options.label}. Plus and minus zoom, arrows move, 0 shows all.`);
    element.dataset.points = String(where.length);
    element.dataset.view = ends.map((n) => n.toPrecision(8)).join(" ");
  }
  function names() {
    legend.replaceChildren();
    if (options.series.length < 2 && !options.legend) return;
    for (const s of options.series) {
      const button = html("button", "", legend);
      button.type = "button";
      button.setAttribute("aria-pressed", String(!hidden.has(s.name)));
      const key = make("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true" });
      make("path", s.marker ? { d: PLOT_MARKERS[s.marker](0, s.marker === "down" ? -4 : 0, 3.5), fill: s.limit || s.open ? "none" : s.colour, stroke: s.colour } : { d: "M-6,0H6", stroke: s.colour, "stroke-width": 2 }, key);
      button.append(key, s.name);
      button.addEventListener("click", () => {
        if (hidden.has(s.name)) hidden.delete(s.name); else hidden.add(s.name);
        button.setAttribute("aria-pressed", String(!hidden.has(s.name)));
        view = null;
        draw();
      });
    }
  }
  let begin = null;
  const at = (event) => { const r = frame.getBoundingClientRect(); return [event.clientX - r.left, event.clientY - r.top]; };
  frame.addEventListener("pointerdown", (event) => { if (event.pointerType !== "touch" && event.button === 0) { begin = at(event); frame.setPointerCapture(event.pointerId); } });
  frame.addEventListener("pointermove", (event) => {
    const [sx, sy] = at(event);
    if (!begin) { nearest(sx, sy); return; }
    const box = frame.firstChild.zoomBox;
    box.setAttribute("visibility", "visible");
    for (const [key, value] of Object.entries({ x: Math.min(sx, begin[0]), y: Math.min(sy, begin[1]), width: Math.abs(sx - begin[0]), height: Math.abs(sy - begin[1]) })) box.setAttribute(key, value);
  });
  frame.addEventListener("pointerup", (event) => {
    const end = at(event);
    if (begin && Math.abs(end[0] - begin[0]) > 8 && Math.abs(end[1] - begin[1]) > 8) {
      const a = frame.firstChild.back(...begin), b = frame.firstChild.back(...end);
      begin = null;
      show([Math.min(a[0], b[0]), Math.max(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[1], b[1])]);
      return;
    }
    begin = null;
    const found = nearest(...end);
    if (found && options.open) options.open(found[2], found[3]);
  });
  frame.addEventListener("pointercancel", () => { begin = null; });
  frame.addEventListener("dblclick", () => show(null));
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[event.key];
    if (step) pan(options.x.invert ? -step[0] : step[0], step[1]);
    else if (event.key === "+" || event.key === "=") zoom(0.5);
    else if (event.key === "-") zoom(2);
    else if (event.key === "0" || event.key === "Escape") show(null);
    else return;
    event.preventDefault();
  });
  names();
  draw();
  let wide = frame.clientWidth;
  new ResizeObserver(() => { if (frame.clientWidth !== wide) { wide = frame.clientWidth; draw(); } }).observe(frame);
  return { update(next) { options = next; view = null; names(); draw(); } };
}
