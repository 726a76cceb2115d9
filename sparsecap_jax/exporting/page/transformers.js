// The transformer and the Object Relation Transformer; the mathematics is that of
// sparsecap_jax.models. For the methods of a model see recurrent.js.

import { add, logSoftmax, relu, sideBySide, softmax } from "./matrices.js";

const MIN_WEIGHT = 1e-6;
const MIN_OFFSET = 1e-3;
const WAVES = 8;

function layerNorm(weights, name) {
  const [scale, bias] = ["scale", "bias"].map((part) => weights.vector(`${name}/${part}`));
  const width = scale.length;
  return (rows) => {
    const result = new Float32Array(rows.length);
    for (let start = 0; start < rows.length; start += width) {
      let mean = 0;
      for (let i = 0; i < width; i++) mean += rows[start + i] / width;
      let squares = 0;
      for (let i = 0; i < width; i++) squares += (rows[start + i] - mean) ** 2;
      const deviation = Math.sqrt(squares / (width - 1)) + 1e-6;
      for (let i = 0; i < width; i++) {
        result[start + i] = (scale[i] * (rows[start + i] - mean)) / deviation + bias[i];
      }
    }
    return result;
  };
}

// Projections of one attention; `share` "kv" takes keys as values, "qk" queries as keys.
class Attention {
  constructor(weights, name, heads, share) {
    this.heads = heads;
    const part = (which) => weights.affine(`${name}/${which}`);
    this.query = part("query");
    this.key = share === "qk" ? this.query : part("key");
    this.value = share === "kv" ? null : part("value");
    this.out = part("out");
  }

  memory(rows, count) {
    const keys = this.key(rows, count);
    return [keys, this.value ? this.value(rows, count) : keys];
  }

  // The values that one query mixes, and the weights of each head; `bias(head, place)` is added.
  attend(query, keys, values, places, bias) {
    const width = query.length;
    const size = width / this.heads;
    const mixed = new Float32Array(width);
    const all = [];
    for (let head = 0; head < this.heads; head++) {
      const first = head * size;
      const scores = new Float32Array(places);
      for (let place = 0; place < places; place++) {
        let sum = 0;
        for (let i = first; i < first + size; i++) sum += query[i] * keys[place * width + i];
        scores[place] = sum / Math.sqrt(size) + (bias ? bias(head, place) : 0);
      }
      const weights = softmax(scores);
      all.push(weights);
      for (let place = 0; place < places; place++) {
        const from = place * width;
        for (let i = first; i < first + size; i++) mixed[i] += weights[place] * values[from + i];
      }
    }
    return [mixed, all];
  }
}

class Layer {
  constructor(weights, name, fields, share) {
    this.attention = new Attention(weights, `${name}/self_attn`, fields.num_heads, share);
    this.norm = layerNorm(weights, `${name}/self_attn_norm`);
    const [first, second] = [1, 2].map((n) => weights.affine(`${name}/feed_forward/w_${n}`));
    const norm = layerNorm(weights, `${name}/feed_forward_norm`);
    this.transform = (x, count) => add(second(relu(first(norm(x), count)), count), x);
  }
}

class EncoderLayer extends Layer {
  constructor(weights, name, fields) {
    super(weights, name, fields, fields.share_attention_encoder);
    if (!fields.box_embedding) return;
    this.geometry = Array.from({ length: fields.num_heads }, (_, head) => ({
      kernel: weights.vector(`${name}/geometry/head_${head}/kernel`),
      bias: weights.vector(`${name}/geometry/head_${head}/bias`)[0],
    }));
  }

  encode(x, regions, pairs) {
    const width = x.length / regions;
    const inputs = this.norm(x);
    const queries = this.attention.query(inputs, regions);
    const [keys, values] = this.attention.memory(inputs, regions);
    const mixed = Array.from({ length: regions }, (_, n) => {
      const query = queries.subarray(n * width, (n + 1) * width);
      const bias = pairs && ((head, place) => this.bias(head, pairs[n * regions + place]));
      return this.attention.attend(query, keys, values, regions, bias)[0];
    });
    return this.transform(add(this.attention.out(sideBySide(mixed, 1), regions), x), regions);
  }

  bias(head, pair) {
    const { kernel, bias } = this.geometry[head];
    const weight = pair.reduce((sum, value, i) => sum + value * kernel[i], bias);
    return Math.log(Math.max(weight, MIN_WEIGHT));
  }
}

class DecoderLayer extends Layer {
  constructor(weights, name, fields) {
    const share = fields.share_attention_decoder;
    super(weights, name, fields, share);
    this.cross = new Attention(weights, `${name}/cross_attn`, fields.num_heads, share);
    this.crossNorm = layerNorm(weights, `${name}/cross_attn_norm`);
  }

  // Transforms a word of each row; `cache` has keys and values of the words so far and is written.
  decode(x, rows, position, cache, [keys, values], regions) {
    const width = x.length / rows;
    const room = cache[0].length / rows;
    const inputs = this.norm(x);
    const queries = this.attention.query(inputs, rows);
    const row = (all, n, size = width) => all.subarray(n * size, (n + 1) * size);
    this.attention.memory(inputs, rows).forEach((words, kind) => {
      for (let n = 0; n < rows; n++) cache[kind].set(row(words, n), n * room + position * width);
    });
    const mixed = Array.from({ length: rows }, (_, n) => {
      const [ownKeys, ownValues] = cache.map((all) => row(all, n, room));
      return this.attention.attend(row(queries, n), ownKeys, ownValues, position + 1)[0];
    });
    x = add(this.attention.out(sideBySide(mixed, 1), rows), x);
    const looks = this.cross.query(this.crossNorm(x), rows);
    const seen = Array.from({ length: rows }, (_, n) =>
      this.cross.attend(row(looks, n), keys, values, regions),
    );
    const looked = sideBySide(seen.map(([one]) => one), 1);
    x = this.transform(add(this.cross.out(looked, rows), x), rows);
    return [x, seen.map(([, heads]) => mean(heads))];
  }
}

function mean(vectors) {
  const sum = new Float32Array(vectors[0].length);
  for (const vector of vectors) add(sum, vector);
  return sum.map((value) => value / vectors.length);
}

export class Transformer {
  constructor(fields, weights) {
    this.fields = fields;
    this.source = weights.affine("src_embed");
    this.embedding = weights.matrix("tgt_embed/embedding");
    const stack = (order, side, Kind) => {
      const layers = new Map();
      for (const i of order) layers.set(i, new Kind(weights, `${side}_layers_${i}`, fields));
      return order.map((i) => layers.get(i));
    };
    this.encoder = stack(fields.encoder_order, "encoder", EncoderLayer);
    this.decoder = stack(fields.decoder_order, "decoder", DecoderLayer);
    [this.encoderNorm, this.decoderNorm] = ["encoder_norm", "decoder_norm"].map((name) =>
      layerNorm(weights, name),
    );
    this.logits = weights.affine("logits");
  }

  encode({ features, boxes, regions }) {
    const pairs = this.fields.box_embedding ? geometry(boxes, regions, this.fields) : null;
    let x = relu(this.source(features, regions));
    for (const layer of this.encoder) x = layer.encode(x, regions, pairs);
    x = this.encoderNorm(x);
    return { regions, cross: this.decoder.map(({ cross }) => cross.memory(x, regions)) };
  }

  begin() {
    const room = this.fields.max_seq_length * this.fields.d_model;
    return { position: 0, cache: this.decoder.flatMap(() => [0, 0].map(() => new Float32Array(room))) };
  }

  step({ position, cache }, tokens, { cross, regions }) {
    const { d_model: width, max_seq_length: longest } = this.fields;
    if (position >= longest) throw new Error(`no room for more than ${longest} tokens`);
    const rows = tokens.length;
    const written = cache.map((leaf) => leaf.slice());
    const place = sinusoid(position, width);
    const scale = Math.fround(Math.sqrt(width));
    let x = this.embedding.take(tokens).map((value, i) => Math.fround(value * scale) + place[i % width]);
    const seen = this.decoder.map((layer, i) => {
      const memory = written.slice(2 * i, 2 * i + 2);
      const [next, weights] = layer.decode(x, rows, position, memory, cross[i], regions);
      x = next;
      return weights;
    });
    const attention = tokens.map((_, n) => mean(seen.map((weights) => weights[n])));
    const logProbs = logSoftmax(this.logits(this.decoderNorm(x), rows), rows);
    return { state: { position: position + 1, cache: written }, logProbs, attention };
  }
}

// The position of a word: sines in even and cosines in odd places.
function sinusoid(position, width) {
  return Float32Array.from({ length: width }, (_, i) => {
    const angle = position * Math.exp((i - (i % 2)) * (-Math.log(10000) / width));
    return i % 2 ? Math.cos(angle) : Math.sin(angle);
  });
}

// Numbers for each pair of regions: logs of offsets and of ratios of sizes, or waves of them. Widths
// and heights get +1, as in the reference.
function geometry(boxes, regions, { box_embedding: kind }) {
  const { fround, log, abs, max } = Math;
  const sides = (n, axis) => {
    const [low, high] = [boxes[4 * n + axis], boxes[4 * n + 2 + axis]];
    return [fround(fround(low + high) * 0.5), fround(fround(high - low) + 1)];
  };
  return Array.from({ length: regions ** 2 }, (_, pair) => {
    const [i, j] = [Math.floor(pair / regions), pair % regions];
    const offsets = [];
    const ratios = [];
    for (const axis of [0, 1]) {
      const [[centre, size], [other, length]] = [sides(i, axis), sides(j, axis)];
      const offset = abs(fround(fround(centre - other) / size));
      offsets.push(fround(log(max(offset, fround(MIN_OFFSET)))));
      ratios.push(fround(log(fround(size / length))));
    }
    const plain = [...offsets, ...ratios];
    if (kind === "plain") return plain;
    const angles = plain.flatMap((value) =>
      Array.from({ length: WAVES }, (_, n) => {
        const rate = fround(1000 ** (-n / WAVES));
        return fround(fround(100 * value) * rate);
      }),
    );
    return [...angles.map(Math.sin), ...angles.map(Math.cos)];
  });
}
