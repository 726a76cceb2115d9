// Greedy and beam search for one image, as sparsecap_jax.decoding runs them.

import { logSoftmax } from "./matrices.js";

const ENDED = 1000; // nats that an ended beam loses: it expands only where too few others do

// Rows of a state in a new order; numbers are of all rows.
function reorder(state, parents, rows) {
  const moved = {};
  for (const [name, leaf] of Object.entries(state)) {
    if (typeof leaf === "number") moved[name] = leaf;
    else if (Array.isArray(leaf)) moved[name] = leaf.map((one) => moveRows(one, parents, rows));
    else moved[name] = moveRows(leaf, parents, rows);
  }
  return moved;
}

function moveRows(leaf, parents, rows) {
  const width = leaf.length / rows;
  const moved = new Float32Array(parents.length * width);
  parents.forEach((from, to) => {
    moved.set(leaf.subarray(from * width, (from + 1) * width), to * width);
  });
  return moved;
}

// Forbids tokens behind a prefix, in place.
function constrain(logProbs, prefix, options) {
  const forbid = (id) => (logProbs[id] = -Infinity);
  const last = prefix.at(-1);
  options.suppress.forEach(forbid);
  if (options.no_repeat && prefix.length) forbid(last);
  const size = options.no_repeat_ngram;
  if (size && prefix.length >= size) {
    const open = prefix.slice(prefix.length - size + 1);
    for (let start = 0; start + size <= prefix.length; start++) {
      if (open.every((token, i) => prefix[start + i] === token)) forbid(prefix[start + size - 1]);
    }
  }
  if (options.bad_endings.includes(last)) forbid(options.eos_id);
  if (prefix.length === options.max_length - 1) options.bad_endings.forEach(forbid);
  if (prefix.length < options.min_length) forbid(options.eos_id);
}

// The places of the largest numbers, largest first; of equals the first.
function largest(values, count) {
  const best = [];
  for (let i = 0; i < values.length; i++) {
    if (best.length === count && !(values[i] > values[best[count - 1]])) continue;
    let at = best.length;
    while (at > 0 && values[i] > values[best[at - 1]]) at -= 1;
    best.splice(at, 0, i);
    if (best.length > count) best.pop();
  }
  return best;
}

function greedy(model, context, options) {
  const tokens = [];
  let score = 0;
  let state = model.begin(context);
  let last = options.bos_id;
  while (tokens.length < options.max_length && last !== options.eos_id) {
    const step = model.step(state, [last], context);
    constrain(step.logProbs, tokens, options);
    [last] = largest(step.logProbs, 1);
    tokens.push(last);
    score += step.logProbs[last];
    state = step.state;
  }
  return [{ tokens, score }];
}

// Adds a row of logs of probabilities to the sum of each beam and keeps the best continuations.
function extend(beams, logProbs, options) {
  const vocabulary = logProbs.length / beams.length;
  const totals = new Float32Array(logProbs.length);
  beams.forEach(({ tokens, sum }, row) => {
    const rowProbs = logProbs.subarray(row * vocabulary, (row + 1) * vocabulary);
    constrain(rowProbs, tokens, options);
    for (let i = 0; i < vocabulary; i++) totals[row * vocabulary + i] = sum + rowProbs[i];
  });
  return largest(totals, options.beam_size).map((place) => {
    const parent = Math.floor(place / vocabulary);
    const { tokens, retired } = beams[parent];
    const token = place - parent * vocabulary;
    return { tokens: [...tokens, token], sum: totals[place], retired, parent };
  });
}

// Notes the beams that have just ended, and retires them.
function collect(beams, done, options) {
  const candidates = beams.map((beam) => {
    const length = beam.tokens.length;
    const ended = beam.tokens.at(-1) === options.eos_id || length === options.max_length;
    const counts = ended && !beam.retired;
    const score = counts ? Math.fround(beam.sum * options.factors[length - 1]) : -Infinity;
    if (ended) beam.sum = Math.fround(beam.sum - ENDED);
    beam.retired ||= ended;
    return { tokens: beam.tokens, score };
  });
  const all = [...done, ...candidates]; // earlier ones first, so that they win ties
  return largest(all.map(({ score }) => score), options.beam_size).map((place) => all[place]);
}

function beamSearch(model, context, options) {
  const { factors, temperature, beam_size: size, max_length: longest } = options;
  let done = Array(size).fill({ tokens: [], score: -Infinity });
  let beams = [{ tokens: [], sum: 0, retired: false, parent: 0 }];
  let { state, logProbs } = model.step(model.begin(context), [options.bos_id], context);
  for (let length = 1; ; length++) {
    const rows = beams.length;
    beams = extend(beams, logProbs, options);
    done = collect(beams, done, options);
    const alive = Math.max(...beams.map(({ retired, sum }) => (retired ? -Infinity : sum)));
    // Sums only fall: is what is alive too low for any length that is left?
    const bound = Math.fround(alive * Math.min(...factors.slice(length)));
    if (length === longest || done.at(-1).score >= bound) return done;
    const parents = beams.map(({ parent }) => parent);
    const last = beams.map(({ tokens }) => tokens.at(-1));
    ({ state, logProbs } = model.step(reorder(state, parents, rows), last, context));
    if (temperature !== 1) {
      logProbs = logSoftmax(logProbs.map((value) => value / temperature), last.length);
    }
  }
}

// The captions of an encoded image, best first: `{ tokens, score }`.
export function findCaptions(model, context, options) {
  const captions = (options.method === "greedy" ? greedy : beamSearch)(model, context, options);
  return captions.filter(({ tokens }) => tokens.length);
}

// The weights of the regions while each token of a caption was produced.
export function attentionOf(model, context, tokens, options) {
  let state = model.begin(context);
  return tokens.map((_, place) => {
    const step = model.step(state, [place ? tokens[place - 1] : options.bos_id], context);
    state = step.state;
    return step.attention[0];
  });
}
