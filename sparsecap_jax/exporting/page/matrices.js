// The file of a captioner, and arithmetic on its pruned matrices: float32 in, float32 out.

const TOGETHER = 4; // vectors that are multiplied at once
const LONGEST_GAP = 255; // as a byte: so many zeros, and no weight behind them

// A matrix of which only the weights that are not zero are kept, row by row; or, with `columnAt`
// null, all of them.
export class Matrix {
  constructor(rows, columns, starts, columnAt, values) {
    Object.assign(this, { rows, columns, starts, columnAt, values });
  }

  // The products with `count` vectors, which lie one after another.
  multiply(inputs, count = 1) {
    const result = new Float32Array(count * this.rows);
    const { columns } = this;
    for (let n = 0; n < count; n += TOGETHER) {
      const rows = inputs.subarray(n * columns, Math.min(n + TOGETHER, count) * columns);
      if (rows.length === columns) this.multiplyOne(rows, result.subarray(n * this.rows));
      else this.multiplyFour(rows, result.subarray(n * this.rows));
    }
    return result;
  }

  multiplyOne(input, result) {
    const { rows, columns, starts, columnAt, values } = this;
    for (let row = 0; row < rows; row++) {
      const start = columnAt ? starts[row] : row * columns;
      const end = columnAt ? starts[row + 1] : start + columns;
      let sum = 0;
      for (let i = start; i < end; i++) sum += values[i] * input[columnAt ? columnAt[i] : i - start];
      result[row] = sum;
    }
  }

  // As above, for up to four vectors: each weight is read once for all of them.
  multiplyFour(inputs, result) {
    const { rows, columns, starts, columnAt, values } = this;
    const count = inputs.length / columns;
    const turned = new Float64Array(TOGETHER * columns);
    inputs.forEach((value, i) => (turned[TOGETHER * (i % columns) + Math.floor(i / columns)] = value));
    for (let row = 0; row < rows; row++) {
      const start = columnAt ? starts[row] : row * columns;
      const end = columnAt ? starts[row + 1] : start + columns;
      let a = 0;
      let b = 0;
      let c = 0;
      let d = 0;
      for (let i = start; i < end; i++) {
        const value = values[i];
        const at = TOGETHER * (columnAt ? columnAt[i] : i - start);
        a += value * turned[at];
        b += value * turned[at + 1];
        c += value * turned[at + 2];
        d += value * turned[at + 3];
      }
      result[row] = a;
      result[rows + row] = b;
      if (count > 2) result[2 * rows + row] = c;
      if (count > 3) result[3 * rows + row] = d;
    }
  }

  // Some rows, one after another.
  take(rows) {
    const { columns, starts, columnAt, values } = this;
    const result = new Float32Array(rows.length * columns);
    rows.forEach((row, n) => {
      if (!columnAt) result.set(values.subarray(row * columns, (row + 1) * columns), n * columns);
      else {
        for (let i = starts[row]; i < starts[row + 1]; i++) {
          result[n * columns + columnAt[i]] = values[i];
        }
      }
    });
    return result;
  }
}

// The weights of a model by name, each taken as what it serves as.
export class Weights {
  constructor(matrices) {
    this.matrices = matrices;
  }

  matrix(name) {
    if (!this.matrices.has(name)) throw new Error(`weight ${name} is missing`);
    return this.matrices.get(name);
  }

  vector(name) {
    const one = this.matrix(name);
    return one.columnAt ? one.take([...Array(one.rows).keys()]) : one.values;
  }

  // The function from `count` vectors to their affine images.
  affine(name) {
    const matrix = this.matrix(`${name}/kernel`);
    const bias = this.vector(`${name}/bias`);
    return (inputs, count = 1) => addRow(matrix.multiply(inputs, count), bias);
  }
}

// Reads a file of a captioner, inflated: `{ header, weights }`.
export function unpack(buffer) {
  const bytes = new Uint8Array(buffer);
  const view = new DataView(buffer);
  const start = 4 + view.getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, start)));
  const width = { float16: 2, float32: 4 }[header.form];
  if (header.version !== 1 || !width) throw new Error("the captioner is of another version");
  const kept = header.tensors.map(({ rows, columns, kept }) => kept ?? rows * columns);
  const total = kept.reduce((sum, count) => sum + count, 0);
  const gapBytes = header.tensors.reduce((sum, { gaps }) => sum + gaps, 0);
  if (bytes.length !== start + gapBytes + width * total) throw new Error("the captioner is damaged");
  const values = joinBytes(bytes.subarray(start + gapBytes), total, width);
  const matrices = new Map();
  let gapsAt = start;
  let valuesAt = 0;
  header.tensors.forEach(({ name, rows, columns, kept: sparse, gaps }, number) => {
    const numbers = values.subarray(valuesAt, valuesAt + kept[number]);
    const coded = bytes.subarray(gapsAt, gapsAt + gaps);
    const places = sparse === null ? [null, null] : readGaps(coded, rows, columns, sparse);
    matrices.set(name, new Matrix(rows, columns, ...places, numbers));
    gapsAt += gaps;
    valuesAt += kept[number];
  });
  return { header, weights: new Weights(matrices) };
}

function readGaps(coded, rows, columns, kept) {
  const starts = new Uint32Array(rows + 1);
  const columnAt = new Uint16Array(kept);
  let cell = -1;
  let read = 0;
  for (const gap of coded) {
    cell += gap;
    if (gap === LONGEST_GAP) continue;
    cell += 1;
    const row = Math.floor(cell / columns);
    starts[row + 1] += 1;
    columnAt[read++] = cell - row * columns;
  }
  if (read !== kept) throw new Error("the captioner is damaged");
  for (let row = 0; row < rows; row++) starts[row + 1] += starts[row];
  return [starts, columnAt];
}

// Puts the bytes of numbers together: all first bytes come first, then all second ones, ...
function joinBytes(planes, count, width) {
  const joined = new Uint8Array(count * width);
  for (let place = 0; place < width; place++) {
    for (let n = 0; n < count; n++) joined[n * width + place] = planes[place * count + n];
  }
  if (width === 4) return new Float32Array(joined.buffer);
  return Float32Array.from(new Uint16Array(joined.buffer), fromHalf);
}

function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 25) * (1024 + fraction) : sign * 2 ** -24 * fraction;
}

export function addRow(values, row) {
  for (let i = 0; i < values.length; i++) values[i] += row[i % row.length];
  return values;
}

export function add(values, others) {
  for (let i = 0; i < values.length; i++) values[i] += others[i];
  return values;
}

export const relu = (values) => values.map((value) => Math.max(value, 0));
export const sigmoid = (value) => 1 / (1 + Math.exp(-value));

// Joins vectors side by side, for each of `count` rows; `parts` are arrays of rows.
export function sideBySide(parts, count) {
  const widths = parts.map((part) => part.length / count);
  const width = widths.reduce((sum, one) => sum + one, 0);
  const joined = new Float32Array(count * width);
  for (let n = 0; n < count; n++) {
    let at = n * width;
    parts.forEach((part, i) => {
      joined.set(part.subarray(n * widths[i], (n + 1) * widths[i]), at);
      at += widths[i];
    });
  }
  return joined;
}

// Repeats a vector for each of `count` rows.
export const repeat = (vector, count) => sideBySide(Array(count).fill(vector), 1);

export function softmax(scores) {
  const highest = Math.max(...scores);
  const weights = scores.map((score) => Math.exp(score - highest));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

// Turns each of `count` rows into logs of probabilities, in place.
export function logSoftmax(rows, count) {
  const width = rows.length / count;
  for (let start = 0; start < rows.length; start += width) {
    const row = rows.subarray(start, start + width);
    let highest = -Infinity;
    for (const value of row) highest = Math.max(highest, value);
    let total = 0;
    for (const value of row) total += Math.exp(value - highest);
    const log = highest + Math.log(total);
    for (let i = 0; i < width; i++) row[i] -= log;
  }
  return rows;
}

// The mean of vectors, which lie one after another, by some weights.
export function mix(weights, vectors) {
  const width = vectors.length / weights.length;
  const result = new Float32Array(width);
  weights.forEach((weight, n) => {
    for (let i = 0; i < width; i++) result[i] += weight * vectors[n * width + i];
  });
  return result;
}
