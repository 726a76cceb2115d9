// A captioner: from features of an image to captions, their words, and where it looked for each.

import { unpack } from "./matrices.js";
import { SoftAttention, UpDown } from "./recurrent.js";
import { attentionOf, findCaptions } from "./search.js";
import { Transformer } from "./transformers.js";

const MODELS = {
  up_down: UpDown,
  soft_attention: SoftAttention,
  transformer: Transformer,
  relation_transformer: Transformer,
};

export class Captioner {
  // `buffer` is a file of a captioner, inflated.
  constructor(buffer) {
    const { header, weights } = unpack(buffer);
    const Model = Object.hasOwn(MODELS, header.model.name) ? MODELS[header.model.name] : null;
    if (!Model) throw new Error(`this page has no model ${header.model.name}`);
    this.header = header;
    this.model = new Model(header.model, weights);
    this.text = textOf(header.tokenizer);
  }

  // All captions of an image, best first: `{ tokens, score, text }`; `image` has float32 `features`,
  // a region after another, `boxes` and `fc`, and the number of `regions`.
  captions(image) {
    this.context = this.model.encode(image);
    const captions = findCaptions(this.model, this.context, this.header.search);
    return captions.map((caption) => ({ ...caption, text: this.text(caption.tokens) }));
  }

  // The words of a caption of the latest image, and the weights of the regions for each of them: the
  // mean over its tokens, which belong to the last word of the text so far.
  words(tokens) {
    const { search } = this.header;
    const weights = attentionOf(this.model, this.context, tokens, search);
    const words = split(this.text(tokens)).map((word) => ({ word, weights: null, count: 0 }));
    tokens.forEach((token, place) => {
      const word = words[split(this.text(tokens.slice(0, place + 1))).length - 1];
      if (!word || token === search.eos_id || token === search.pad_id) return;
      word.weights = weights[place].map((weight, i) => weight + (word.weights?.[i] ?? 0));
      word.count += 1;
    });
    return words.map(({ word, weights, count }) => ({
      word,
      weights: weights ? weights.map((weight) => weight / count) : new Float32Array(0),
    }));
  }
}

const UNKNOWN = 1; // id of unknown words
const SPECIAL = 4; // ids that come before those of words

const split = (text) => text.split(/\s+/).filter(Boolean);

// The function from token ids to text. Radix tokens spell the number of a word, 1 being digit 0.
export function textOf({ pieces, base, digits, eos_id: eos, compositions }) {
  const join = (ids) => {
    const text = ids.map((id) => pieces[id] ?? pieces[UNKNOWN]).join("").replace(/^ +/, "");
    return compositions.reduce((whole, [parts, one]) => whole.replaceAll(parts, one), text);
  };
  if (!base) return join;
  return (tokens) => {
    const end = tokens.indexOf(eos);
    const ids = end < 0 ? tokens : tokens.slice(0, end);
    const words = [];
    for (let start = 0; start < ids.length; start += digits) {
      let number = 0;
      for (let i = start; i < start + digits; i++) {
        number = number * base + Math.max((ids[i] ?? 1) - 1, 0);
      }
      words.push(SPECIAL + number);
    }
    return join(words);
  };
}
