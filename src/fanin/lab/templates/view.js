"use strict";
// The page: what is chosen, at which step, and everything that shows it.

const find = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const still = matchMedia("(prefers-reduced-motion: reduce)");
const system = matchMedia("(prefers-color-scheme: dark)");

const HIDDEN = [0, 1]; // the two hidden layers
const SLICE = 12; // milliseconds of training in one frame
const REST = 400; // milliseconds without a change before the page is told to screen readers
const PLAY = 14_000; // milliseconds from step 0 to the last
const PATIENCE = 1000; // steps, after which a cost this near to ln 2 is worth a word
const GUESSING = 1e-3;
const DIRECTIONS = (() => {
  const flat = decoded(data.directions);
  return [flat.subarray(0, 10), flat.subarray(10)];
})();

const chosen = {start: "constant", activation: "tanh", change: "none", step: 0};
let current = null; // the Training of what is chosen
let equalAtStart = []; // for each hidden layer, whether all its units receive the same at step 0
let playing = null; // while it plays: the time and step of its beginning
let drawnStep = -1, drawnDone = -1;

// What is chosen --------------------------------------------------------------------------------

function allowed(name, value) {
  if (name === "start") return Object.hasOwn(data.starts, value);
  if (name === "activation") return Object.hasOwn(ACTIVATIONS, value);
  if (name === "change") return /^(none|(break|zero) [123])$/.test(value);
  return Number.isInteger(value) && value >= 0 && value <= data.steps;
}

// Takes what is allowed of `wanted`, and shows it.
function show(wanted) {
  for (const [name, value] of Object.entries(wanted)) if (allowed(name, value)) chosen[name] = value;
  const {start, activation, change} = chosen;
  current = training(start, activation, change);
  equalAtStart = current.state(0).layers.map(({inputs}) => inputs === 0);
  drawnStep = drawnDone = -1;
  const [what, layer] = change.split(" ");
  check("start", start);
  check("activation", activation);
  check("what", what);
  if (layer) check("layer", layer);
  find("#which").hidden = !layer;
  find("#formula").textContent = data.starts[start].formula + "; biases 0";
  showVerdict();
  wake();
}

const check = (name, value) => {
  for (const input of all(`input[name=${name}]`)) input.checked = input.value === value;
};

function readChoices() {
  const picked = (name) => find(`input[name=${name}]:checked`)?.value;
  const what = picked("what");
  const change = what === "none" ? "none" : `${what} ${picked("layer") ?? 1}`;
  show({start: picked("start"), activation: picked("activation"), change});
}

function goTo(step) {
  chosen.step = Math.min(Math.max(step, 0), data.steps);
  wake();
}

let address = null; // the address that was read or written last

function fromHash() {
  address = location.hash;
  const wanted = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if ("step" in wanted) wanted.step = Number(wanted.step);
  show(wanted);
}

// An address that has not been read yet stays.
function toHash() {
  if (location.hash !== address) return;
  history.replaceState(null, "", `#${new URLSearchParams(chosen)}`);
  address = location.hash;
}

// One frame after another, while there is something to do ----------------------------------------

let frameAsked = 0, rest = 0;

function wake() {
  frameAsked ||= requestAnimationFrame(frame_);
}

function frame_(time) {
  frameAsked = 0;
  if (playing) advance(time);
  current.grow(data.steps, SLICE);
  const step = Math.min(chosen.step, current.done);
  const moved = step !== drawnStep;
  if (moved) drawStep(step);
  // While it trains, the curves follow every few hundred steps, and at its end.
  const due = current.done === data.steps ? drawnDone < data.steps : current.done > drawnDone + 200;
  if (moved || due) {
    drawCurves(step);
    drawnDone = current.done;
  }
  drawnStep = step;
  if (playing || current.done < data.steps) wake();
}

function advance(time) {
  playing.since ??= time;
  const share = playing.from + (time - playing.since) / PLAY;
  // Without motion it goes from picture to picture, one a second.
  const eased = still.matches ? Math.floor(share * PLAY / 1000) * 1000 / PLAY : share;
  chosen.step = share >= 1 ? data.steps : stepOf(eased);
  if (share >= 1) play(false);
}

function play(on) {
  const from = chosen.step === data.steps ? 0 : shareOf(chosen.step);
  playing = on ? {from} : null;
  find("#play").textContent = on ? "Pause" : "Play";
  wake();
}

// What one step shows ---------------------------------------------------------------------------

const room = workspace(GRID * GRID);

function drawStep(step) {
  const state = current.state(step);
  forward(current.at(step), PLANE, chosen.activation, room);
  find("#step").value = 1000 * shareOf(step);
  find("#step").setAttribute("aria-valuetext", `step ${counted(step)} of ${counted(data.steps)}`);
  find("#now").textContent = `step ${counted(step)}`;
  for (const button of all("[data-step]")) {
    if (Number(button.dataset.step) === step) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  drawDecision(find("#decision canvas"), room.a[LAYERS - 1][0]);
  for (const k of HIDDEN) drawLayer(k, step, state);
  showHead(state);
  showChain(state);
  clearTimeout(rest);
  rest = setTimeout(() => atRest(state), REST);
}

// The point in the plane of a unit's weights: themselves, or along two directions.
function flat(k, values) {
  if (k === 0) return values;
  return DIRECTIONS.map((direction) => values.reduce((sum, value, i) => sum + value * direction[i], 0));
}

function drawLayer(k, step, state) {
  const section = find(`#layer${k + 1}`), layer = state.layers[k];
  const {fanIn, weight} = PLACES[k];
  const steps = [...SAMPLED.filter((each) => each < step), step];
  const units = layer.weights.map((values, j) => ({
    at: flat(k, values),
    path: steps.map((each) => {
      const from = each * SIZE + weight + j * fanIn;
      return flat(k, current.weights.subarray(from, from + fanIn));
    }).map((point) => [...point]),
    gradient: flat(k, layer.gradient[j]),
    update: flat(k, layer.update[j]),
    label: layer.classes[j],
  }));
  const axes = k ? ["first direction", "second direction"] : ["weight of x", "weight of y"];
  const {gradient, update} = drawWeights(section.querySelector(".plane svg"), units, axes);
  section.querySelector(".arrows").textContent = gradient > 0
    ? `Dashed: the gradient, at most ${shown(gradient)}. Solid: the update against it, at most ${shown(update)}.`
    : "No arrows: the gradient of these weights is 0.";
  drawMaps(section, k, layer.classes);
}

function drawMaps(section, k, classes) {
  let low = Infinity, high = -Infinity;
  for (const row of room.a[k])
    for (const value of row) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  // Rounding alone is no picture.
  const flatMap = high - low <= 1e-9 * Math.max(Math.abs(high), Math.abs(low));
  section.querySelectorAll(".map").forEach((map, j) => {
    drawMap(map.querySelector("canvas"), room.a[k][j], low, flatMap ? Infinity : high);
    map.style.setProperty("--frame", `var(--u${classes[j]})`);
    map.querySelector("span").textContent = `${j + 1} · ${LETTERS[classes[j]]}`;
  });
  section.querySelector(".range").textContent = flatMap
    ? `Everywhere ${shown(low)}. Same letter and frame: copies.`
    : `Dark ${shown(low)}, bright ${shown(high)}. Same letter and frame: copies.`;
}

function drawCurves(step) {
  const {cost, distinct, done} = current;
  const costs = SAMPLED.filter((each) => each <= done).map((each) => cost[each]).filter(Number.isFinite);
  const high = nice(Math.max(...costs, 0.7) * 1.02);
  drawCurve(find("#curve svg"), [{name: "cost", values: cost, colour: "var(--u0)"}], {
    low: 0, high, ticks: [0, high / 2, high], done, here: step, reference: Math.LN2,
  });
  const lines = HIDDEN.map((k) => ({
    name: `layer ${k + 1}`, values: distinct[k], colour: `var(--u${k})`, dash: k ? "7 4" : "", stepped: true,
  }));
  if (distinct[0][done] === distinct[1][done]) [lines[0].name, lines[1].name] = ["layers 1, 2", ""];
  drawCurve(find("#width svg"), lines, {low: 0, high: 10, ticks: [0, 1, 5, 10], done, here: step});
  const {published} = data.starts[chosen.start];
  const known = published && chosen.activation === "relu" && chosen.change === "none";
  find("#later").textContent = done >= data.printed ? printed(cost[data.printed]) : "training …";
  find("#published").textContent = known ? `printed in the article: ${published}` : "";
}

const printed = (cost) => (Number.isFinite(cost) ? String(cost) : "∞");

// In words ---------------------------------------------------------------------------------------

const many = (count, of) => `${count} of ${of}`;

function showHead(state) {
  const [first, second] = HIDDEN.map((k) => state.layers[k]);
  const copies = first.distinct < 10 || second.distinct < 5;
  const single = first.distinct === 1 && second.distinct === 1;
  const silent = [first, second].every(({gradient}) => gradient.flat().every((value) => value === 0));
  const poor = lacking(state);
  const tone = single || silent ? "error" : copies || poor ? "warning" : "ok";
  const said = single
    ? "Fifteen hidden units, and each hidden layer is worth one"
    : copies
      ? `Worth ${many(first.distinct, 10)} units in layer 1, ${many(second.distinct, 5)} in layer 2`
      : "All units differ: 10 of 10 and 5 of 5";
  find(".hero").className = `hero ${tone}`;
  find("#headline").textContent = `${data.marks[tone]} ${said}`;
  const story = HIDDEN.map((k) => told(k, state.step));
  if (silent) story.push("No gradient reaches the hidden weights, so they stay as they are.");
  else if (!copies) story.push(poor);
  find("#story").textContent = story.filter(Boolean).join(" ");
  find("#cost").textContent = Number.isFinite(state.cost) ? state.cost.toFixed(6) : "∞";
  find("#train").textContent = `${(100 * state.train).toFixed(1)} %`;
  find("#test").textContent = `${(100 * state.test).toFixed(0)} %`;
}

// Units that differ are needed, and not enough: what else is wrong, from the cost alone.
function lacking({step, cost}) {
  if (cost > 2 * Math.LN2) return "But differing is not enough: these answers are sure and often wrong, and cost more than guessing.";
  if (step >= PATIENCE && Math.abs(cost - Math.LN2) < GUESSING)
    return `But differing is not enough: after ${counted(step)} steps the cost is still that of guessing.`;
  return "";
}

// What became of the copies of one layer up to a step.
function told(k, step) {
  const distinct = current.distinct[k], units = WIDTHS[k + 1], name = `Layer ${k + 1}`;
  const first = distinct[0], now = distinct[step];
  if (now < first) return `${name} has lost units: ${many(now, units)} differ.`;
  if (first === units && !equalAtStart[k]) return "";
  // All receive the same, yet are told apart by what reads them.
  if (first === units) return step === 0
    ? `${name} starts with equal inputs, but different gradients reach its units: it will break by itself.`
    : `${name} started with equal inputs, and its symmetry broke by itself.`;
  if (step === 0) return first === 1 ? `${name} starts as ${units} copies of one unit.` : `${name} starts with ${first} different units among ${units}.`;
  if (now === first) return `${name}: its copies have stayed copies for ${counted(step)} step${step > 1 ? "s" : ""}.`;
  let since = step;
  while (distinct[since - 1] === now) since--;
  return `${name}: ${now === units ? "its symmetry broke" : `it went from ${first} to ${now} different units`} at step ${counted(since)}.`;
}

function showChain(state) {
  const names = ["inputs", "outputs", "gradients", "updates"];
  all("#chain li").forEach((item, index) => {
    let every = true;
    item.querySelectorAll("dd").forEach((cell, k) => {
      const layer = state.layers[k], units = WIDTHS[k + 1];
      const value = index < 4 ? layer[names[index]] : layer.distinct;
      const holds = index < 4 ? value === 0 : value < units;
      cell.textContent = index < 4 ? shown(value) : many(value, units);
      cell.classList.toggle("true", holds);
      every &&= holds;
    });
    item.classList.toggle("true", every);
  });
  const holding = all("#chain li.true").length;
  find("#holding").textContent = holding === 0
    ? "None of the five holds here: no hidden layer is made of copies alone."
    : `Marked: what holds here in both layers, ${holding} of five.`;
}

function showVerdict() {
  const {start, activation, change} = chosen;
  // A start without copies has nothing to break: its verdict is the one before the change.
  const key = `${start}/${activation}/${change}`;
  find("#before").hidden = key in data.verdicts;
  const found = data.verdicts[key] ?? data.verdicts[`${start}/${activation}/none`];
  const items = found.map((index) => data.findings[index]);
  if (!items.length) items.push({severity: "ok", code: "Sound", name: "start", message: "– nothing is found."});
  find("#verdict").replaceChildren(...items.map(({severity, code, name, message}) => {
    const item = document.createElement("li"), head = document.createElement("strong");
    item.className = severity;
    head.textContent = `${data.marks[severity]} ${code} ${name}`;
    item.append(head, ` ${message}`);
    return item;
  }));
}

// Once the slider rests: the address, and what a screen reader says of the pictures.
function atRest(state) {
  const [first, second] = HIDDEN.map((k) => many(state.layers[k].distinct, WIDTHS[k + 1]));
  const cost = Number.isFinite(state.cost) ? state.cost.toFixed(4) : "infinite";
  toHash();
  find("#status").textContent = `Step ${counted(state.step)}: cost ${cost}; units that differ: ${first} in layer 1, ${second} in layer 2.`;
  find("#decision canvas").setAttribute("aria-label",
    `The plane with 300 points. The network is right on ${(100 * state.train).toFixed(1)} % of them.`);
  find("#curve svg").setAttribute("aria-label", `Cost at step ${counted(state.step)}: ${cost}; at the start ${shown(current.cost[0], 5)}.`);
  find("#width svg").setAttribute("aria-label", `Units that differ at step ${counted(state.step)}: ${first} in layer 1, ${second} in layer 2.`);
  for (const k of HIDDEN) {
    const {classes, weights} = state.layers[k], section = find(`#layer${k + 1}`);
    section.querySelector(".plane svg").setAttribute("aria-label",
      `The weights of layer ${k + 1}: ${classes.map((label, j) => `unit ${j + 1} (${LETTERS[label]}) at ${flat(k, weights[j]).map((v) => shown(v)).join(", ")}`).join("; ")}.`);
    section.querySelectorAll(".map canvas").forEach((map, j) => {
      const twins = classes.flatMap((label, i) => (label === classes[j] && i !== j ? [i + 1] : []));
      map.setAttribute("aria-label", `Output of unit ${j + 1}${twins.length ? `: the same as unit${twins.length > 1 ? "s" : ""} ${twins.join(", ")}` : ": like no other unit"}.`);
    });
  }
}

// Controls ---------------------------------------------------------------------------------------

// 1, 2, 5, 10, 20, 50 … up or down from a step.
function leap(step, up) {
  const stops = [0, ...[0, 1, 2, 3, 4].flatMap((k) => [1, 2, 5].map((n) => n * 10 ** k)), data.steps]
    .filter((stop) => stop <= data.steps);
  return up ? stops.find((stop) => stop > step) ?? data.steps : stops.findLast((stop) => stop < step) ?? 0;
}

const KEYS = {
  ArrowRight: (step) => step + 1, ArrowUp: (step) => step + 1,
  ArrowLeft: (step) => step - 1, ArrowDown: (step) => step - 1,
  PageUp: (step) => leap(step, true), PageDown: (step) => leap(step, false),
  Home: () => 0, End: () => data.steps,
};

find("#choices").addEventListener("change", readChoices);
find("#choices").addEventListener("submit", (event) => event.preventDefault());
find("#play").addEventListener("click", () => play(!playing));
find("#step").addEventListener("input", (event) => {
  play(false);
  goTo(stepOf(event.target.value / 1000));
});
find("#step").addEventListener("keydown", (event) => {
  const key = KEYS[event.key];
  if (!key || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  play(false);
  goTo(key(chosen.step));
});
for (const button of all("[data-step]"))
  button.addEventListener("click", () => {
    play(false);
    goTo(Number(button.dataset.step));
  });
window.addEventListener("hashchange", fromHash);
window.addEventListener("resize", redraw);

function redraw() {
  drawnStep = drawnDone = -1;
  wake();
}

// Theme: that of the system until the reader chooses ---------------------------------------------

const STORE = "fanin-theme";
const root = document.documentElement;
const theme = () => root.dataset.theme || (system.matches ? "dark" : "light");

function stored(value) {
  try {
    if (value) localStorage.setItem(STORE, value);
    return localStorage.getItem(STORE);
  } catch {
    return null; // some browsers give pages from disk no storage
  }
}

function themed() {
  find("#theme").textContent = theme() === "dark" ? "Light theme" : "Dark theme";
  redraw();
}

if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
find("#theme").addEventListener("click", () => {
  root.dataset.theme = stored(theme() === "dark" ? "light" : "dark") ?? (theme() === "dark" ? "light" : "dark");
  themed();
});
system.addEventListener("change", themed);

find("#scriptless").remove();
fromHash();
themed();

// For tests and for the curious, in the browser's console.
window.lab = {
  state: (step) => current.state(step),
  run: (start, activation, change, steps) => {
    const run = new Training(start, activation, change);
    return steps.map((step) => run.state(step));
  },
  show,
  get chosen() {
    return {...chosen};
  },
};
