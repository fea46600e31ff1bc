"use strict";
// The operators that our exporter writes, over tensors {shape, data}. Python reads their names off OPERATORS.

const size = shape => shape.reduce((product, length) => product * length, 1);
const tensor = (shape, data = new Float32Array(size(shape))) => ({ shape, data });
const vector = numbers => tensor([numbers.length], Float32Array.from(numbers));
const steps = shape => shape.map((_, axis) => size(shape.slice(axis + 1)));
const from = (axis, shape) => axis < 0 ? axis + shape.length : axis;

// Where each element of a shape is in data that has these steps.
function places(shape, steps, start = 0) {
  let found = Int32Array.of(start);
  shape.forEach((length, axis) => {
    const finer = new Int32Array(found.length * length);
    let next = 0;
    for (const place of found) for (let i = 0; i < length; i++) finer[next++] = place + i * steps[axis];
    found = finer;
  });
  return found;
}

function view(x, shape, steps, start = 0) {
  const result = tensor(shape);
  places(shape, steps, start).forEach((place, i) => { result.data[i] = x.data[place]; });
  return result;
}

function elementwise(compute, ...inputs) {
  const rank = Math.max(...inputs.map(x => x.shape.length));
  const shapes = inputs.map(x => [...Array(rank - x.shape.length).fill(1), ...x.shape]);
  const result = tensor(shapes[0].map((_, axis) => Math.max(...shapes.map(shape => shape[axis]))));
  const spread = inputs.map((x, i) => {
    if (x.data.length === result.data.length) return x.data;
    const repeated = steps(shapes[i]).map((step, axis) => shapes[i][axis] === 1 ? 0 : step);
    return view(x, result.shape, repeated).data;
  });
  for (let i = 0; i < result.data.length; i++) result.data[i] = compute(...spread.map(data => data[i]));
  return result;
}

function each(compute, x) {
  const result = tensor(x.shape);
  for (let i = 0; i < x.data.length; i++) result.data[i] = compute(x.data[i]);
  return result;
}

function part(x, axis, start, length, step = 1) {
  const own = steps(x.shape), shape = [...x.shape], wide = [...own];
  shape[axis] = length;
  wide[axis] *= step;
  return view(x, shape, wide, start * own[axis]);
}

// The rows along an axis, each as the places of its numbers.
function rows(shape, axis) {
  const own = steps(shape), others = shape.map((length, i) => i === axis ? 1 : length);
  return Array.from(places(others, own), start => places([shape[axis]], [own[axis]], start));
}

// erf(x) = 2 / sqrt(pi) exp(-x^2) sum of 2^n x^(2n + 1) / (2n + 1)!!; Abramowitz & Stegun 7.1.6. Beyond 5 it is 1 in float32.
function erf(x) {
  if (Math.abs(x) > 5) return Math.sign(x);
  let term = x, sum = x;
  for (let n = 3; Math.abs(term) > 1e-10; n += 2) sum += term *= 2 * x * x / n;
  return 2 / Math.sqrt(Math.PI) * Math.exp(-x * x) * sum;
}

function roundToEven(x) {
  const below = Math.floor(x), rest = x - below;
  return rest < 0.5 || (rest === 0.5 && below % 2 === 0) ? below : below + 1;
}

function gemm({ transB = 0 }, x, weight, bias) {
  const [batch, depth] = x.shape, width = weight.shape[transB ? 0 : 1];
  const result = tensor([batch, width]);
  const [along, down] = transB ? [depth, 1] : [1, width];
  for (let row = 0; row < batch; row++) {
    for (let column = 0; column < width; column++) {
      let sum = bias ? bias.data[bias.data.length === 1 ? 0 : column] : 0;
      for (let i = 0, at = column * along; i < depth; i++, at += down) sum += x.data[row * depth + i] * weight.data[at];
      result.data[row * width + column] = sum;
    }
  }
  return result;
}

// Matrices by matrices: of each in a batch, or all by one.
function matmul(_, x, y) {
  const [depth, width] = y.shape.slice(-2), rows = tensor([x.data.length / depth, depth], x.data);
  const shape = [...x.shape.slice(0, -1), width], count = size(y.shape.slice(0, -2)), height = rows.shape[0] / count;
  const result = tensor(shape);
  for (let i = 0; i < count; i++) {
    const left = tensor([height, depth], x.data.subarray(i * height * depth, (i + 1) * height * depth));
    const right = tensor([depth, width], y.data.subarray(i * depth * width, (i + 1) * depth * width));
    result.data.set(gemm({}, left, right).data, i * height * width);
  }
  return result;
}

// Each pixel repeated along each axis: mode nearest, rounded down.
function resize(_, x, roi, scales) {
  const shape = x.shape.map((length, axis) => Math.floor(length * scales.data[axis])), own = steps(x.shape), result = tensor(shape);
  let found = Int32Array.of(0);
  shape.forEach((length, axis) => {
    const finer = new Int32Array(found.length * length);
    let next = 0;
    for (const place of found) for (let i = 0; i < length; i++) finer[next++] = place + Math.floor(i / scales.data[axis]) * own[axis];
    found = finer;
  });
  found.forEach((place, i) => { result.data[i] = x.data[place]; });
  return result;
}

// Where each weight of a kernel meets each pixel of the small image in a plane of the large one; -1 is beyond its edge.
function taps({ strides = [1, 1], pads = [0, 0, 0, 0], dilations = [1, 1] }, kernel, small, large) {
  const [y, x] = [0, 1].map(i => Array.from({ length: kernel[i] }, (_, k) =>
    Array.from({ length: small[i] }, (_, at) => at * strides[i] + k * dilations[i] - pads[i])));
  const inside = (row, column) => row >= 0 && row < large[0] && column >= 0 && column < large[1];
  return y.flatMap(rows => x.map(columns => Int32Array.from(rows.flatMap(row =>
    columns.map(column => inside(row, column) ? row * large[1] + column : -1)))));
}

function addTimes(target, start, factor, source, from, length) {
  for (let i = 0; i < length; i++) target[start + i] += factor * source[from + i];
}

// What a convolution sums up, as doubles, -> single precision, with the bias of each channel.
function withBias(shape, sums, bias) {
  const area = size(shape.slice(2));
  return tensor(shape, Float32Array.from(sums, (sum, i) => bias ? sum + bias.data[Math.floor(i / area) % shape[1]] : sum));
}

function conv(attributes, x, weight, bias) {
  const { strides = [1, 1], pads = [0, 0, 0, 0], dilations = [1, 1], group = 1 } = attributes;
  const [batch, channels, ...large] = x.shape, [outputs, inputs, ...kernel] = weight.shape;
  const small = large.map((side, i) => Math.floor((side + pads[i] + pads[i + 2] - dilations[i] * (kernel[i] - 1) - 1) / strides[i]) + 1);
  const places = taps(attributes, kernel, small, large), area = size(small), row = new Float32Array(area);
  const sums = new Float64Array(batch * outputs * area);
  for (let n = 0; n < batch; n++) for (let c = 0; c < channels; c++) places.forEach((place, k) => {
    const plane = (n * channels + c) * size(large), members = outputs / group, first = Math.floor(c / inputs) * members;
    for (let i = 0; i < area; i++) row[i] = place[i] < 0 ? 0 : x.data[plane + place[i]];
    for (let o = first; o < first + members; o++) {
      addTimes(sums, (n * outputs + o) * area, weight.data[(o * inputs + c % inputs) * places.length + k], row, 0, area);
    }
  });
  return withBias([batch, outputs, ...small], sums, bias);
}

function convTranspose(attributes, x, weight, bias) {
  const { strides = [1, 1], pads = [0, 0, 0, 0], dilations = [1, 1], output_padding = [0, 0], group = 1 } = attributes;
  const [batch, channels, ...small] = x.shape, [, outputs, ...kernel] = weight.shape;
  const large = small.map((side, i) => (side - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 + output_padding[i] - pads[i] - pads[i + 2]);
  const places = taps(attributes, kernel, small, large), area = size(small), row = new Float64Array(area);
  const sums = new Float64Array(batch * outputs * group * size(large));
  for (let n = 0; n < batch; n++) for (let o = 0; o < outputs * group; o++) places.forEach((place, k) => {
    const plane = (n * outputs * group + o) * size(large), members = channels / group, first = Math.floor(o / outputs) * members;
    row.fill(0);
    for (let c = first; c < first + members; c++) {
      addTimes(row, 0, weight.data[(c * outputs + o % outputs) * places.length + k], x.data, (n * channels + c) * area, area);
    }
    for (let i = 0; i < area; i++) if (place[i] >= 0) sums[plane + place[i]] += row[i];
  });
  return withBias([batch, outputs * group, ...large], sums, bias);
}

// Rows of consecutive numbers to mean 0 and variance 1.
function normalise(x, length, epsilon) {
  const result = tensor(x.shape);
  for (let start = 0; start < x.data.length; start += length) {
    const row = x.data.subarray(start, start + length);
    const mean = row.reduce((sum, value) => sum + value, 0) / length;
    const variance = row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / length;
    row.forEach((value, i) => { result.data[start + i] = (value - mean) / Math.sqrt(variance + epsilon); });
  }
  return result;
}

// A vector with one number for each channel, as it is multiplied with images.
const perChannel = (vector, x) => tensor([vector.data.length, ...x.shape.slice(2).map(() => 1)], vector.data);
const scaled = (x, scale, shift) => elementwise((value, by, plus) => value * by + plus, x, scale, shift);

function reshape({ allowzero = 0 }, x, wanted) {
  const shape = Array.from(wanted.data, (length, axis) => length === 0 && !allowzero ? x.shape[axis] : length);
  const open = shape.indexOf(-1);
  if (open >= 0) shape[open] = x.data.length / -size(shape);
  return tensor(shape, x.data);
}

function slice(_, x, starts, ends, axes, by) {
  const along = axes ? Array.from(axes.data) : Array.from(starts.data, (_, i) => i);
  return along.reduce((result, axis, i) => {
    axis = from(axis, x.shape);
    const length = x.shape[axis], step = by ? by.data[i] : 1;
    const [start, end] = [starts, ends].map(given => Math.min(length, Math.max(0, from(given.data[i], { length }))));
    return part(result, axis, start, Math.ceil((end - start) / step), step);
  }, x);
}

function split({ axis = 0, num_outputs }, x, lengths) {
  axis = from(axis, x.shape);
  const each = Math.ceil(x.shape[axis] / num_outputs);
  const wanted = lengths ? Array.from(lengths.data) : Array.from({ length: num_outputs }, (_, i) => Math.min(each, x.shape[axis] - i * each));
  let start = 0;
  return wanted.map(length => part(x, axis, (start += length) - length, length));
}

function concat({ axis }, ...inputs) {
  axis = from(axis, inputs[0].shape);
  const shape = [...inputs[0].shape];
  shape[axis] = inputs.reduce((sum, x) => sum + x.shape[axis], 0);
  const result = tensor(shape), row = size(shape.slice(axis));
  let start = 0;
  for (const x of inputs) {
    const length = size(x.shape.slice(axis));
    for (let i = 0; i * length < x.data.length; i++) {
      result.data.set(x.data.subarray(i * length, (i + 1) * length), i * row + start);
    }
    start += length;
  }
  return result;
}

function logSoftmax({ axis = -1 }, x) {
  const result = tensor(x.shape);
  for (const row of rows(x.shape, from(axis, x.shape))) {
    const top = row.reduce((most, place) => Math.max(most, x.data[place]), -Infinity);
    const all = top + Math.log(row.reduce((sum, place) => sum + Math.exp(x.data[place] - top), 0));
    row.forEach(place => { result.data[place] = x.data[place] - all; });
  }
  return result;
}

function squeeze(_, x, axes) {
  const gone = Array.from(axes.data, axis => from(axis, x.shape));
  return tensor(x.shape.filter((_, axis) => !gone.includes(axis)), x.data);
}

function reduceSum({ keepdims = 1 }, x, axes) {
  const sum = Array.from(axes.data).reduce((result, axis) => {
    axis = from(axis, x.shape);
    const shape = result.shape.map((length, i) => i === axis ? 1 : length);
    const totals = rows(result.shape, axis).map(row => row.reduce((total, place) => total + result.data[place], 0));
    return tensor(shape, Float32Array.from(totals));
  }, x);
  return keepdims ? sum : squeeze({}, sum, { data: Array.from(axes.data, axis => from(axis, x.shape)) });
}

const unary = compute => (_, x) => each(compute, x);
const sigmoid = x => 1 / (1 + Math.exp(-x));

// Of each row along an axis, where its largest number is; the first, if several are.
function argMax({ axis = 0, keepdims = 1 }, x) {
  const along = from(axis, x.shape), shape = x.shape.flatMap((length, i) => i !== along ? [length] : keepdims ? [1] : []);
  return tensor(shape, Float32Array.from(rows(x.shape, along), places =>
    places.reduce((best, place, i) => x.data[place] > x.data[places[best]] ? i : best, 0)));
}

// Parts of x at whole numbers along its first axis.
function gather({ axis = 0 }, x, indices) {
  if (axis !== 0) throw new Error("Gather: only along the first axis");
  const width = size(x.shape.slice(1)), result = tensor([...indices.shape, ...x.shape.slice(1)]);
  indices.data.forEach((index, i) => { result.data.set(x.data.subarray(index * width, (index + 1) * width), i * width); });
  return result;
}

const OPERATORS = {
  Abs: unary(Math.abs),
  ArgMax: argMax,
  Add: (_, x, y) => elementwise((a, b) => a + b, x, y),
  BatchNormalization: ({ epsilon = 1e-5 }, x, scale, shift, mean, variance) => {
    const factor = elementwise((s, v) => s / Math.sqrt(v + epsilon), scale, variance);
    const plus = elementwise((b, m, f) => b - m * f, shift, mean, factor);
    return scaled(x, perChannel(factor, x), perChannel(plus, x));
  },
  Cast: (_, x) => x, // to and from bytes, which Round has made whole
  Clip: (_, x, low, high) => each(value => Math.min(high ? high.data[0] : Infinity, Math.max(low ? low.data[0] : -Infinity, value)), x),
  Concat: concat,
  Conv: conv,
  ConvTranspose: convTranspose,
  Div: (_, x, y) => elementwise((a, b) => a / b, x, y),
  Erf: unary(erf),
  Exp: unary(Math.exp),
  Expand: (_, x, shape) => elementwise(value => value, x, tensor(Array.from(shape.data))),
  Gather: gather,
  Gelu: unary(x => x * (1 + erf(x / Math.SQRT2)) / 2),
  Gemm: gemm,
  Greater: (_, x, y) => elementwise((a, b) => a > b, x, y),
  GreaterOrEqual: (_, x, y) => elementwise((a, b) => a >= b, x, y),
  GroupNormalization: ({ epsilon = 1e-5, num_groups }, x, scale, shift) =>
    scaled(normalise(x, size(x.shape.slice(1)) / num_groups, epsilon), perChannel(scale, x), perChannel(shift, x)),
  InstanceNormalization: ({ epsilon = 1e-5 }, x, scale, shift) =>
    scaled(normalise(x, size(x.shape.slice(2)), epsilon), perChannel(scale, x), perChannel(shift, x)),
  LayerNormalization: ({ epsilon = 1e-5, axis = -1 }, x, scale, shift) =>
    scaled(normalise(x, size(x.shape.slice(from(axis, x.shape))), epsilon), scale, shift ?? tensor([1])),
  Less: (_, x, y) => elementwise((a, b) => a < b, x, y),
  Log: unary(Math.log),
  LogSoftmax: logSoftmax,
  MatMul: matmul,
  Min: (_, x, y) => elementwise(Math.min, x, y),
  Mul: (_, x, y) => elementwise((a, b) => a * b, x, y),
  Neg: unary(x => -x),
  Pow: (_, x, y) => elementwise((a, b) => a ** b, x, y),
  Reciprocal: unary(x => 1 / x),
  ReduceSum: reduceSum,
  Relu: unary(x => Math.max(0, x)),
  Reshape: reshape,
  Resize: resize,
  Round: unary(roundToEven),
  Shape: ({ start = 0, end }, x) => vector(x.shape.slice(start, end)),
  Sigmoid: unary(sigmoid),
  Slice: slice,
  Softmax: (attributes, x) => each(Math.exp, logSoftmax(attributes, x)),
  Softplus: unary(x => Math.max(0, x) + Math.log1p(Math.exp(-Math.abs(x)))),
  Split: split,
  Sqrt: unary(Math.sqrt),
  Squeeze: squeeze,
  Sub: (_, x, y) => elementwise((a, b) => a - b, x, y),
  Tanh: unary(Math.tanh),
  Transpose: ({ perm }, x) => view(x, perm.map(axis => x.shape[axis]), perm.map(axis => steps(x.shape)[axis])),
  Where: (_, condition, x, y) => elementwise((is, a, b) => is ? a : b, condition, x, y),
};

function bytes(base64) {
  return Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
}

// A graph as Python wrote it -> a function of tensors by name.
function network({ nodes, constants, weights, outputs }) {
  const numbers = new Float32Array(bytes(weights).buffer);
  const known = Object.fromEntries(Object.entries(constants).map(([name, { shape, start, values }]) =>
    [name, tensor(shape, values ? Float64Array.from(values) : numbers.subarray(start, start + size(shape)))]));
  return inputs => {
    const values = { ...known, ...inputs };
    for (const { op, inputs: given, outputs: wanted, attributes } of nodes) {
      const found = OPERATORS[op](attributes, ...given.map(name => values[name]));
      [found].flat().forEach((value, i) => { values[wanted[i]] = value; });
    }
    return Object.fromEntries(outputs.map(name => [name, values[name]]));
  };
}
