"use strict";
// Drawing: maps over the plane on canvas, planes of weights and curves as SVG.

const REACH = 1.4; // the plane shown is [-REACH, REACH]²
const GRID = 81; // points of the plane along each side
const LETTERS = "ABCDEFGHIJ";

// The points of the plane, from the upper left, row by row.
const PLANE = [0, 1].map((axis) => {
  const values = new Float64Array(GRID * GRID);
  for (let n = 0; n < values.length; n++) {
    const share = (axis ? Math.floor(n / GRID) : n % GRID) / (GRID - 1);
    values[n] = (axis ? 1 - 2 * share : 2 * share - 1) * REACH;
  }
  return values;
});

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isDark = () => getComputedStyle(document.documentElement).colorScheme === "dark";

// A number as a reader wants it: 0 is exactly 0.
function shown(value, digits = 3) {
  if (value === Infinity) return "∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e5) return String(Number(value.toPrecision(digits))).replace("-", "−");
  const [mantissa, power] = value.toExponential(digits - 2).split("e");
  return `${mantissa}e${power.replace("+", "")}`.replaceAll("-", "−");
}

const counted = (number) => number.toLocaleString("en");

// Colours ---------------------------------------------------------------------------------------

const mixed = (one, other, share) => one.map((value, i) => value + (other[i] - value) * share);

// The position of a share from 0 to 1 among colours, as [r, g, b].
function between(colours, share) {
  const at = Math.min(Math.max(share, 0), 1) * (colours.length - 1);
  const low = Math.min(Math.floor(at), colours.length - 2);
  return mixed(colours[low], colours[low + 1], at - low);
}

const table = (colours) => Array.from({length: 256}, (_, i) => between(colours, i / 255));
const CERTAIN = {
  light: table([[31, 111, 180], [138, 183, 219], [247, 247, 245], [247, 185, 131], [214, 96, 20]]),
  dark: table([[70, 150, 225], [38, 84, 130], [24, 28, 34], [128, 70, 26], [232, 128, 54]]),
};
// Dark to light, so that shades can be told apart in grey too (viridis).
const OUTPUT = table([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]);

function paint(context, values, low, high, colours) {
  const image = context.createImageData(GRID, GRID);
  const span = high - low || 1;
  for (let n = 0; n < values.length; n++) {
    const colour = colours[Math.round(Math.min(Math.max((values[n] - low) / span, 0), 1) * 255)];
    image.data.set(colour, 4 * n);
    image.data[4 * n + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

// Maps ------------------------------------------------------------------------------------------

const sheet = document.createElement("canvas");
sheet.width = sheet.height = GRID;

function drawDecision(canvas, outputs) {
  const context = canvas.getContext("2d"), side = canvas.width, dark = isDark();
  const small = sheet.getContext("2d");
  paint(small, outputs, 0, 1, dark ? CERTAIN.dark : CERTAIN.light);
  context.imageSmoothingQuality = "high";
  context.drawImage(sheet, 0, 0, side, side);
  drawBoundary(context, outputs, side);
  const place = (value) => ((value + REACH) / (2 * REACH)) * side;
  for (let n = 0; n < TRAIN.y.length; n++) {
    const x = place(TRAIN.x[0][n]), y = place(-TRAIN.x[1][n]);
    context.beginPath();
    if (TRAIN.y[n]) for (const [dx, dy] of [[0, -6], [6, 0], [0, 6], [-6, 0]]) context.lineTo(x + dx, y + dy);
    else context.arc(x, y, 4.5, 0, 7);
    context.closePath();
    context.fillStyle = TRAIN.y[n] ? (dark ? "#ff9b57" : "#b84a00") : dark ? "#6cb6ff" : "#0f5a9c";
    context.fill();
    context.lineWidth = 1.5;
    context.strokeStyle = dark ? "#0d1117" : "#fff";
    context.stroke();
  }
}

// The line where the output is 1/2, cell by cell (marching squares). A network that says 1/2
// everywhere draws none.
function drawBoundary(context, outputs, side) {
  const step = side / (GRID - 1);
  context.beginPath();
  for (let row = 0; row < GRID - 1; row++) {
    for (let column = 0; column < GRID - 1; column++) {
      const n = row * GRID + column;
      const corners = [n, n + 1, n + GRID + 1, n + GRID].map((i) => outputs[i] - 0.5);
      const crossings = [];
      for (let c = 0; c < 4; c++) {
        const one = corners[c], other = corners[(c + 1) % 4];
        if (one > 0 === other > 0) continue;
        const share = one / (one - other);
        const [dx, dy] = [[share, 0], [1, share], [1 - share, 1], [0, 1 - share]][c];
        crossings.push([(column + dx) * step, (row + dy) * step]);
      }
      for (let c = 0; c + 1 < crossings.length; c += 2) {
        context.moveTo(...crossings[c]);
        context.lineTo(...crossings[c + 1]);
      }
    }
  }
  context.lineWidth = 4;
  context.lineCap = "round";
  context.strokeStyle = css("--ink");
  context.stroke();
}

function drawMap(canvas, values, low, high) {
  paint(canvas.getContext("2d"), values, low, high, OUTPUT);
}

// Planes of weights -----------------------------------------------------------------------------

// The smallest of 1, 2, 5 × 10ᵏ that is not below the value.
function nice(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= value) ?? value;
}

// Points, trails and arrows of one layer. `units`: {at, path, gradient, update, label} each with
// coordinates [x, y] in weights; path a list of them.
function drawWeights(svg, units, axes) {
  const side = svg.clientWidth || 320, middle = side / 2, margin = 26;
  svg.setAttribute("viewBox", `0 0 ${side} ${side}`);
  const reach = nice(1.05 * Math.max(...units.flatMap(({path}) => path.flat().map(Math.abs))));
  const scale = (middle - margin) / reach;
  const place = ([x, y]) => [middle + x * scale, middle - y * scale];
  const longest = (name) => Math.max(...units.map((unit) => Math.hypot(...unit[name])));
  const [update, gradient] = [longest("update"), longest("gradient")];
  const parts = [frame(side, margin, reach, axes)];
  for (const {path, label} of units) {
    const points = path.map((point) => place(point).map((v) => v.toFixed(1)).join()).join(" ");
    parts.push(`<polyline class="path" stroke="var(--u${label})" opacity=".4" points="${points}"/>`);
  }
  for (const unit of units) {
    const [x, y] = place(unit.at), colour = `var(--u${unit.label})`;
    const scaled = (name, length) => unit[name].map((value) => value * length * side);
    // Each kind by its own longest: the update is the gradient times -0.01.
    if (gradient > 0) parts.push(arrow(x, y, scaled("gradient", 0.13 / gradient), colour, true));
    if (update > 0) parts.push(arrow(x, y, scaled("update", 0.2 / update), colour, false));
  }
  for (const {at, label} of units) {
    const [x, y] = place(at);
    parts.push(`<circle cx="${x.toFixed(1)}" cy="${y.toFixed(1)}" r="7" fill="var(--u${label})" stroke="var(--paper)" stroke-width="2"/>`);
  }
  for (const {x, y, text} of badges(units.map(({at, label}) => ({place: place(at), label})))) {
    const left = x > side - 90;
    parts.push(`<text class="strong halo" x="${x + (left ? -11 : 11)}" y="${y - 9}"${left ? ' text-anchor="end"' : ""}>${text}</text>`);
  }
  svg.innerHTML = parts.join("");
  return {gradient, update};
}

function frame(side, margin, reach, [across, up]) {
  const middle = side / 2, end = side - margin;
  return `<rect x="${margin}" y="${margin}" width="${side - 2 * margin}" height="${side - 2 * margin}" fill="none" class="grid"/>
<line class="grid" x1="${margin}" x2="${end}" y1="${middle}" y2="${middle}"/>
<line class="grid" y1="${margin}" y2="${end}" x1="${middle}" x2="${middle}"/>
<text x="${end}" y="${side - 8}" text-anchor="end">${across}: −${shown(reach)} to ${shown(reach)}</text>
<text x="${margin}" y="${margin - 9}">${up}</text>`;
}

function arrow(x, y, [dx, dy], colour, dashed) {
  const length = Math.hypot(dx, dy);
  if (length < 1) return "";
  const [ex, ey] = [x + dx, y - dy], angle = Math.atan2(-dy, dx);
  const wing = (turn) => `${(ex - 7 * Math.cos(angle + turn)).toFixed(1)},${(ey - 7 * Math.sin(angle + turn)).toFixed(1)}`;
  const tip = `${ex.toFixed(1)},${ey.toFixed(1)}`;
  return `<line x1="${x.toFixed(1)}" y1="${y.toFixed(1)}" x2="${ex.toFixed(1)}" y2="${ey.toFixed(1)}" stroke="${colour}" stroke-width="2"${dashed ? ' stroke-dasharray="3 3"' : ""}/>
<polyline points="${wing(0.5)} ${tip} ${wing(-0.5)}" fill="none" stroke="${colour}" stroke-width="2"/>`;
}

// One label for each heap of points that lie on one another: its letters, each with its count.
function badges(points) {
  const heaps = [];
  for (const {place: [x, y], label} of points) {
    const heap = heaps.find((other) => Math.hypot(other.x - x, other.y - y) < 12);
    if (heap) heap.labels.push(label);
    else heaps.push({x, y, labels: [label]});
  }
  return heaps.map(({x, y, labels}) => {
    const kinds = [...new Set(labels)];
    const parts = kinds.map((label) => {
      const count = labels.filter((other) => other === label).length;
      return LETTERS[label] + (count > 1 ? ` ×${count}` : "");
    });
    return {x: Math.round(x), y: Math.round(y), text: parts.length > 3 ? `${LETTERS[kinds[0]]} and ${labels.length - 1} more` : parts.join(", ")};
  });
}

// Curves ----------------------------------------------------------------------------------------

// Steps on a logarithmic axis from 0, which the slider shares.
const shareOf = (step) => Math.log1p(step) / Math.log1p(data.steps);
const stepOf = (share) => Math.round(Math.expm1(share * Math.log1p(data.steps)));
const SAMPLED = [...new Set(Array.from({length: 301}, (_, i) => stepOf(i / 300)))];

// lines: {name, values (by step), colour, dash, stepped}; range: [low, high]; `here` is marked.
function drawCurve(svg, lines, {low, high, ticks, done, here, reference}) {
  const width = svg.clientWidth || 480, height = svg.clientHeight || 176;
  const left = 34, right = width - 62, top = 8, bottom = height - 22;
  const x = (step) => left + (right - left) * shareOf(step);
  const y = (value) => bottom - ((bottom - top) * (Math.min(value, high) - low)) / (high - low);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const parts = [];
  for (const tick of ticks)
    parts.push(`<line class="grid" x1="${left}" x2="${right}" y1="${y(tick)}" y2="${y(tick)}"/><text x="${left - 6}" y="${y(tick) + 4}" text-anchor="end">${shown(tick)}</text>`);
  for (const step of [0, 10, 100, 1000, 10_000])
    parts.push(`<text x="${x(step)}" y="${height - 4}" text-anchor="middle">${counted(step)}</text>`);
  if (reference !== undefined)
    parts.push(`<line class="reference" x1="${left}" x2="${right}" y1="${y(reference)}" y2="${y(reference)}"/>`);
  const steps = SAMPLED.filter((step) => step <= done);
  for (const line of lines) parts.push(curve(line, steps, x, y));
  parts.push(`<line class="here" x1="${x(here)}" x2="${x(here)}" y1="${top}" y2="${bottom}"/>`);
  for (const {values, colour} of lines)
    if (Number.isFinite(values[here]))
      parts.push(`<circle cx="${x(here)}" cy="${y(values[here])}" r="5" fill="${colour}" stroke="var(--paper)" stroke-width="2"/>`);
  svg.innerHTML = parts.join("");
}

function curve({name, values, colour, dash, stepped}, steps, x, y) {
  const finite = steps.filter((step) => Number.isFinite(values[step]));
  if (!finite.length) return "";
  const points = finite.map((step, i) => {
    const point = `${x(step).toFixed(1)},${y(values[step]).toFixed(1)}`;
    return stepped && i ? `${x(step).toFixed(1)},${y(values[finite[i - 1]]).toFixed(1)} ${point}` : point;
  });
  const last = finite.at(-1);
  return `<polyline class="path" stroke="${colour}"${dash ? ` stroke-dasharray="${dash}"` : ""} points="${points.join(" ")}"/>
<text class="halo" x="${x(last) + 9}" y="${y(values[last]) + 4}" style="fill:${colour}">${name}</text>`;
}
