// Up-Down and Soft-Attention; the mathematics is that of sparsecap_jax.models.
//
// A model has `encode(image)`, the result of which all steps share, `begin(context)`, a state of one
// row, and `step(state, tokens, context)`, which feeds a token to each row. Arrays of a state hold a
// row after another.

import { add, addRow, logSoftmax, mix, relu, repeat, sideBySide, sigmoid, softmax } from "./matrices.js";

// The states that follow `cell`; `gates` has input, forget, cell and output gate of each row.
function lstm(gates, cell, rows) {
  const size = cell.length / rows;
  const hidden = new Float32Array(cell.length);
  const next = new Float32Array(cell.length);
  for (let n = 0; n < rows; n++) {
    for (let i = 0; i < size; i++) {
      const at = n * size + i;
      const gate = 4 * n * size + i;
      const kept = sigmoid(gates[gate + size]) * cell[at];
      next[at] = kept + sigmoid(gates[gate]) * Math.tanh(gates[gate + 2 * size]);
      hidden[at] = sigmoid(gates[gate + 3 * size]) * Math.tanh(next[at]);
    }
  }
  return [hidden, next];
}

// Additive attention: for each row the weights of the regions.
function attend(queries, keys, score, rows, regions) {
  const size = score.length;
  return Array.from({ length: rows }, (_, n) => {
    const scores = new Float32Array(regions);
    for (let region = 0; region < regions; region++) {
      let sum = 0;
      for (let i = 0; i < size; i++) {
        sum += score[i] * Math.tanh(keys[region * size + i] + queries[n * size + i]);
      }
      scores[region] = sum;
    }
    return softmax(scores);
  });
}

const mixed = (weights, vectors) => sideBySide(weights.map((row) => mix(row, vectors)), 1);

export class UpDown {
  constructor(fields, weights) {
    this.size = fields.rnn_size;
    this.embedding = weights.matrix("embed/embedding");
    for (const name of ["fc_embed", "region_embed", "ctx2att"]) this[name] = weights.affine(name);
    this.h2att = weights.affine("attention/h2att");
    this.alpha = weights.vector("attention/alpha/kernel");
    for (const name of ["att_lstm", "lang_lstm"]) {
      const [inputs, state] = ["ih", "hh"].map((part) => weights.matrix(`${name}/kernel_${part}`));
      const biases = ["ih", "hh"].map((part) => weights.vector(`${name}/bias_${part}`));
      const bias = add(biases[0].slice(), biases[1]);
      this[name] = (vectors, hidden, cell, rows) => {
        const gates = inputs.multiply(sideBySide(vectors, rows), rows);
        return lstm(addRow(add(gates, state.multiply(hidden, rows)), bias), cell, rows);
      };
    }
    this.logit = Array.from({ length: fields.logit_layers }, (_, n) => weights.affine(`logit_${n}`));
  }

  encode({ features, fc, regions }) {
    const embedded = relu(this.region_embed(features, regions));
    return { fc: relu(this.fc_embed(fc)), embedded, keys: this.ctx2att(embedded, regions), regions };
  }

  begin() {
    const zeros = () => new Float32Array(this.size);
    return { attHidden: zeros(), attCell: zeros(), langHidden: zeros(), langCell: zeros() };
  }

  step(state, tokens, context) {
    const rows = tokens.length;
    const words = relu(this.embedding.take(tokens));
    const image = repeat(context.fc, rows);
    const inputs = [state.langHidden, image, words];
    const [attHidden, attCell] = this.att_lstm(inputs, state.attHidden, state.attCell, rows);
    const { keys, embedded, regions } = context;
    const attention = attend(this.h2att(attHidden, rows), keys, this.alpha, rows, regions);
    const seen = [mixed(attention, embedded), attHidden];
    const [langHidden, langCell] = this.lang_lstm(seen, state.langHidden, state.langCell, rows);
    let hidden = langHidden;
    for (const layer of this.logit.slice(0, -1)) hidden = relu(layer(hidden, rows));
    const logProbs = logSoftmax(this.logit.at(-1)(hidden, rows), rows);
    return { state: { attHidden, attCell, langHidden, langCell }, logProbs, attention };
  }
}

export class SoftAttention {
  constructor(fields, weights) {
    this.size = fields.rnn_size;
    this.width = fields.attention_size;
    this.embedding = weights.matrix("embed/embedding");
    for (const name of ["init_state", "keys", "values", "query"]) {
      const matrix = weights.matrix(`${name}/kernel`);
      this[name] = (inputs, count) => matrix.multiply(inputs, count);
    }
    this.score = weights.vector("score/kernel");
    this.logit = weights.affine("logit");
    this.cell = fields.cell;
    const names = this.cell === "lstm" ? ["lstm"] : ["gru_gates", "gru_candidate"];
    this.parts = names.map((name) => ({
      inputs: weights.matrix(`${name}/kernel_ih`),
      state: weights.matrix(`${name}/kernel_hh`),
      bias: weights.vector(`${name}/bias`),
    }));
  }

  encode({ features, fc, regions }) {
    const [keys, values] = [this.keys(features, regions), this.values(features, regions)];
    return { keys, values, start: this.init_state(fc, 1), regions };
  }

  begin(context) {
    const state = { hidden: context.start, attended: new Float32Array(this.width) };
    return this.cell === "lstm" ? { ...state, memory: new Float32Array(this.size) } : state;
  }

  step(state, tokens, context) {
    const rows = tokens.length;
    const inputs = sideBySide([this.embedding.take(tokens), state.attended], rows);
    const next = this.cell === "lstm" ? this.lstm(inputs, state, rows) : this.gru(inputs, state, rows);
    const query = this.query(next.hidden, rows);
    const attention = attend(query, context.keys, this.score, rows, context.regions);
    next.attended = mixed(attention, context.values);
    return { state: next, logProbs: logSoftmax(this.logit(next.hidden, rows), rows), attention };
  }

  lstm(vectors, state, rows) {
    const [{ inputs, state: kernel, bias }] = this.parts;
    const gates = add(inputs.multiply(vectors, rows), kernel.multiply(state.hidden, rows));
    const [hidden, memory] = lstm(addRow(gates, bias), state.memory, rows);
    return { hidden, memory };
  }

  // The reset gate comes first, then the update gate, of which 1 keeps the state.
  gru(vectors, { hidden }, rows) {
    const { size } = this;
    const [gate, candidate] = this.parts.map(({ inputs, bias }) =>
      addRow(inputs.multiply(vectors, rows), bias),
    );
    const gates = add(gate, this.parts[0].state.multiply(hidden, rows)).map(sigmoid);
    const at = (i, part) => (2 * Math.floor(i / size) + part) * size + (i % size);
    const reset = hidden.map((value, i) => gates[at(i, 0)] * value);
    const proposed = add(candidate, this.parts[1].state.multiply(reset, rows)).map(Math.tanh);
    const next = hidden.map((value, i) => {
      const update = gates[at(i, 1)];
      return update * value + (1 - update) * proposed[i];
    });
    return { hidden: next };
  }
}
