"use strict";
// The network 2-10-5-1 in float64: its training and what its units have in common.
// The arithmetic is that of arithmetic.py, operation by operation: each sum runs from its first
// term to its last, the exponential is a formula of basic operations. So the bits agree with
// Python's, and equal units stay equal in every bit, as they do in exact arithmetic.

const data = JSON.parse(document.getElementById("data").textContent);

const WIDTHS = [2, 10, 5, 1];
const LAYERS = WIDTHS.length - 1;
// Place of each layer's weights [out][in] and biases [out] in the one array of all parameters.
const PLACES = [];
let SIZE = 0;
for (let k = 0; k < LAYERS; k++) {
  const fanIn = WIDTHS[k], fanOut = WIDTHS[k + 1];
  PLACES.push({fanIn, fanOut, weight: SIZE, bias: SIZE + fanIn * fanOut});
  SIZE += fanOut * (fanIn + 1);
}

const decoded = (text) =>
  new Float64Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
// Two rows of coordinates, and the labels.
const samples = ({points, labels}) => {
  const flat = decoded(points), y = decoded(labels);
  return {x: [0, 1].map((i) => y.map((_, n) => flat[2 * n + i])), y};
};
const TRAIN = samples(data.train), TEST = samples(data.test);

// eˣ ------------------------------------------------------------------------------------------

const LIMIT = 708, LN2_HIGH = 6.93147180369123816490e-01, LN2_LOW = 1.90821492927058770002e-10;
const LOG2_E = 1.4426950408889634;
const POWERS = new Float64Array(2046); // 2⁻¹⁰²² to 2¹⁰²³
for (let i = 1022, p = 1; i < 2046; i++, p *= 2) POWERS[i] = p;
for (let i = 1022, p = 1; i >= 0; i--, p /= 2) POWERS[i] = p;

function exponential(x) {
  if (x > LIMIT) return Infinity;
  if (x < -LIMIT) return 0;
  const power = Math.floor(x * LOG2_E + 0.5);
  const rest = (x - power * LN2_HIGH) - power * LN2_LOW;
  let result = 1 / 6227020800; // 1 / 13!, and so on to 1 / 0!
  result = result * rest + 1 / 479001600;
  result = result * rest + 1 / 39916800;
  result = result * rest + 1 / 3628800;
  result = result * rest + 1 / 362880;
  result = result * rest + 1 / 40320;
  result = result * rest + 1 / 5040;
  result = result * rest + 1 / 720;
  result = result * rest + 1 / 120;
  result = result * rest + 1 / 24;
  result = result * rest + 1 / 6;
  result = result * rest + 0.5;
  result = result * rest + 1;
  result = result * rest + 1;
  return result * POWERS[power + 1022];
}

// Each fills a row: `value` the outputs of pre-activations z, `gradient` turns the cotangents g of
// the outputs a into those of z.
const ACTIVATIONS = {
  relu: {
    value(z, a) { for (let n = 0; n < z.length; n++) a[n] = z[n] > 0 ? z[n] : 0; },
    gradient(g, z) { for (let n = 0; n < z.length; n++) if (!(z[n] > 0)) g[n] = 0; },
  },
  leaky_relu: {
    value(z, a) { for (let n = 0; n < z.length; n++) a[n] = z[n] > 0 ? z[n] : z[n] * 0.01; },
    gradient(g, z) { for (let n = 0; n < z.length; n++) if (!(z[n] > 0)) g[n] *= 0.01; },
  },
  tanh: {
    value(z, a) { for (let n = 0; n < z.length; n++) a[n] = Math.tanh(z[n]); },
    gradient(g, z, a) { for (let n = 0; n < z.length; n++) g[n] *= 1 - a[n] * a[n]; },
  },
  sigmoid: {
    value(z, a) { for (let n = 0; n < z.length; n++) a[n] = 1 / (1 + exponential(-z[n])); },
    gradient(g, z, a) { for (let n = 0; n < z.length; n++) g[n] *= a[n] * (1 - a[n]); },
  },
};

// Forward and backward ------------------------------------------------------------------------

const rows = (count, width) => Array.from({length: width}, () => new Float64Array(count));

// The arrays of one pass, one row of `count` samples for each unit: pre-activations z, outputs a,
// cotangents d of z.
function workspace(count) {
  const layers = () => WIDTHS.slice(1).map((width) => rows(count, width));
  return {z: layers(), a: layers(), d: layers()};
}

function forward(w, x, activation, room) {
  let input = x;
  for (let k = 0; k < LAYERS; k++) {
    const {fanIn, fanOut, weight, bias} = PLACES[k];
    const {value} = ACTIVATIONS[k === LAYERS - 1 ? "sigmoid" : activation];
    for (let j = 0; j < fanOut; j++) {
      const z = room.z[k][j].fill(0);
      for (let i = 0; i < fanIn; i++) addScaled(z, input[i], w[weight + j * fanIn + i]);
      for (let n = 0; n < z.length; n++) z[n] += w[bias + j];
      value(z, room.a[k][j]);
    }
    input = room.a[k];
  }
}

// Fills room.d and `gradient`. The cost's gradient is that of the logit: see fanin.demo.Cost.
function backward(w, x, y, activation, room, gradient) {
  const top = room.d[LAYERS - 1][0], output = room.a[LAYERS - 1][0];
  for (let n = 0; n < y.length; n++) top[n] = (output[n] - y[n]) / y.length;
  for (let k = LAYERS - 1; k >= 0; k--) {
    const {fanIn, fanOut, weight, bias} = PLACES[k];
    const d = room.d[k], input = k ? room.a[k - 1] : x;
    for (let j = 0; j < fanOut; j++) {
      for (let i = 0; i < fanIn; i++) gradient[weight + j * fanIn + i] = product(d[j], input[i]);
      gradient[bias + j] = total(d[j]);
    }
    if (k === 0) continue;
    for (let i = 0; i < fanIn; i++) {
      const g = room.d[k - 1][i].fill(0);
      for (let j = 0; j < fanOut; j++) addScaled(g, d[j], w[weight + j * fanIn + i]);
      ACTIVATIONS[activation].gradient(g, room.z[k - 1][i], input[i]);
    }
  }
}

function addScaled(sum, row, factor) {
  for (let n = 0; n < sum.length; n++) sum[n] += row[n] * factor;
}

function product(one, other) {
  let sum = 0;
  for (let n = 0; n < one.length; n++) sum += one[n] * other[n];
  return sum;
}

function total(row) {
  let sum = 0;
  for (let n = 0; n < row.length; n++) sum += row[n];
  return sum;
}

// Mean cross-entropy in nats. The sum is compensated (Neumaier), as good as Python's exact one.
function costOf(outputs, y) {
  let sum = 0, rest = 0;
  for (let n = 0; n < y.length; n++) {
    const term = -Math.log(y[n] ? outputs[n] : 1 - outputs[n]);
    if (term === Infinity) return Infinity;
    const next = sum + term;
    rest += Math.abs(sum) >= Math.abs(term) ? sum - next + term : term - next + sum;
    sum = next;
  }
  return (sum + rest) / y.length;
}

function accuracyOf(logits, y) {
  let right = 0;
  for (let n = 0; n < y.length; n++) right += logits[n] > 0 === y[n] > 0.5;
  return right / y.length;
}

// Units that are one --------------------------------------------------------------------------

// A class number for each unit, as fanin.sketch.labels gives it to rows of values: they are parted
// at gaps, sample by sample, measured against their norms.
function parted(values) {
  const squares = values.map((row) => product(row, row));
  if (!squares.every(Number.isFinite)) return [...values.keys()];
  const norms = squares.map(Math.sqrt);
  const floor = data.tolerance * 0.1 * Math.sqrt(total(squares) / values.length);
  // Units equal in every bit stand for one another from the start: most symmetric starts end here.
  const first = [];
  values.forEach((row, j) => {
    const twin = first.find((i) => i !== undefined && equal(values[i], row));
    first.push(twin ?? j);
  });
  let groups = [[...new Set(first)]];
  for (let n = 0; n < values[0].length && groups.some((group) => group.length > 1); n++)
    groups = groups.flatMap((group) => split(group, (j) => values[j][n], norms, floor));
  const leader = [];
  for (const group of groups) for (const j of group) leader[j] = Math.min(...group);
  return first.map((j) => leader[j]);
}

function split(group, value, norms, floor) {
  group.sort((i, j) => value(i) - value(j) || i - j);
  const parts = [[group[0]]];
  for (let p = 1; p < group.length; p++) {
    const i = group[p - 1], j = group[p];
    const gap = value(j) - value(i) > data.tolerance * Math.max(norms[i], norms[j]) + floor;
    if (gap) parts.push([j]);
    else parts.at(-1).push(j);
  }
  return parts;
}

function equal(one, other) {
  for (let n = 0; n < one.length; n++) if (one[n] !== other[n]) return false;
  return true;
}

// The class of each unit of layer k, numbered by first member: same where pre-activations and
// cotangents agree.
function classes(room, k) {
  const z = parted(room.z[k]), d = parted(room.d[k]);
  const numbers = new Map();
  return z.map((label, j) => {
    const both = `${label} ${d[j]}`;
    if (!numbers.has(both)) numbers.set(both, numbers.size);
    return numbers.get(both);
  });
}

// Largest difference between any two rows, over all entries.
function spread(values) {
  let worst = 0;
  for (let n = 0; n < values[0].length; n++) {
    let low = Infinity, high = -Infinity;
    for (const row of values) {
      if (row[n] < low) low = row[n];
      if (row[n] > high) high = row[n];
    }
    if (high - low > worst) worst = high - low;
  }
  return worst;
}

// One training --------------------------------------------------------------------------------

function startOf(start, change) {
  const w = decoded(data.starts[start].weights);
  const [what, layer] = change.split(" ");
  if (layer) {
    const {weight, bias} = PLACES[layer - 1];
    if (what === "break") w[weight] += data.nudge;
    else w.fill(0, weight, bias);
  }
  return w;
}

// A training that knows all its weights, cost and distinct units so far; grow() adds to them.
class Training {
  constructor(start, activation, change) {
    Object.assign(this, {start, activation, change, done: -1});
    this.weights = new Float64Array((data.steps + 1) * SIZE);
    this.cost = new Float64Array(data.steps + 1);
    this.distinct = WIDTHS.slice(1).map(() => new Uint8Array(data.steps + 1));
    this.room = workspace(TRAIN.y.length);
    this.gradient = new Float64Array(SIZE);
    this.weights.set(startOf(start, change));
  }

  at(step) {
    return this.weights.subarray(step * SIZE, (step + 1) * SIZE);
  }

  pass(step) {
    const w = this.at(step);
    forward(w, TRAIN.x, this.activation, this.room);
    backward(w, TRAIN.x, TRAIN.y, this.activation, this.room, this.gradient);
  }

  // Computes up to `step`, or as far as `milliseconds` allow.
  grow(step, milliseconds = Infinity) {
    const end = performance.now() + milliseconds;
    while (this.done < Math.min(step, data.steps) && performance.now() < end) {
      const now = ++this.done;
      this.pass(now);
      this.cost[now] = costOf(this.room.a[LAYERS - 1][0], TRAIN.y);
      for (let k = 0; k < LAYERS; k++)
        this.distinct[k][now] = 1 + Math.max(...classes(this.room, k));
      if (now === data.steps) break;
      const w = this.at(now), next = this.at(now + 1);
      for (let i = 0; i < SIZE; i++) next[i] = w[i] - data.rate * this.gradient[i];
    }
  }

  // Everything about one step, as fanin.lab.run tells it.
  state(step) {
    this.grow(step);
    this.pass(step);
    const w = this.at(step), {room, gradient} = this;
    const update = w.map((value, i) => value - data.rate * gradient[i] - value);
    const layers = PLACES.map(({fanIn, fanOut, weight, bias}, k) => {
      const cut = (values) => Array.from({length: fanOut}, (_, j) =>
        Array.from(values.subarray(weight + j * fanIn, weight + (j + 1) * fanIn)));
      const label = classes(room, k), gradients = cut(gradient), updates = cut(update);
      return {
        weights: cut(w),
        biases: Array.from(w.subarray(bias, bias + fanOut)),
        gradient: gradients,
        update: updates,
        classes: label,
        distinct: 1 + Math.max(...label),
        inputs: spread(room.z[k]),
        outputs: spread(room.a[k]),
        gradients: spread(gradients),
        updates: spread(updates),
      };
    });
    const train = accuracyOf(room.z[LAYERS - 1][0], TRAIN.y);
    return {step, cost: this.cost[step], train, test: this.test(step), layers};
  }

  test(step) {
    const room = workspace(TEST.y.length);
    forward(this.at(step), TEST.x, this.activation, room);
    return accuracyOf(room.z[LAYERS - 1][0], TEST.y);
  }
}

// A trained net keeps 11 MB of weights; the last few are kept, so that going back is free.
const KEPT = 4;
const trainings = new Map();
function training(start, activation, change) {
  const key = `${start}/${activation}/${change}`;
  const found = trainings.get(key) ?? new Training(start, activation, change);
  trainings.delete(key);
  trainings.set(key, found);
  if (trainings.size > KEPT) trainings.delete(trainings.keys().next().value);
  return found;
}
