// All computation of the page, apart from what is shown: loads the models and captions photos.

import { Captioner } from "./captioner.js";
import { readPixels, squeeze } from "./photo.js";
import * as ort from "./runtime.js";

const here = (name) => new URL(name, import.meta.url);
let models;

// Loads a file, and reports how many bytes have come.
async function load(name, count) {
  const answer = await fetch(here(name));
  if (!answer.ok) throw new Error(`${name} cannot be loaded (${answer.status})`);
  const counted = new TransformStream({
    transform(part, stream) {
      count(part.length);
      stream.enqueue(part);
    },
  });
  return answer.body.pipeThrough(counted);
}

const whole = (stream) => new Response(stream).arrayBuffer();
const inflated = (stream) => whole(stream.pipeThrough(new DecompressionStream("deflate")));

async function prepare() {
  let loaded = 0;
  const count = (bytes) => {
    loaded += bytes;
    postMessage({ type: "loaded", bytes: loaded });
  };
  const [about, file, network, wasmBinary] = await Promise.all([
    fetch(here("site.json")).then((answer) => answer.json()),
    load("captioner.bin", count).then(inflated),
    load("extractor.bin", count).then(whole),
    load("runtime.bin", count).then(inflated),
  ]);
  Object.assign(ort.env.wasm, { wasmBinary, numThreads: 1, proxy: false });
  const session = await ort.InferenceSession.create(network, { executionProviders: ["wasm"] });
  const ready = { about, captioner: new Captioner(file), session };
  await regionsOf(ready, new Uint8ClampedArray(about.size ** 2 * 3)); // the first run is slow
  return ready;
}

// The regions of a photo, squeezed into a square.
async function regionsOf({ about, session }, square) {
  const shape = [1, about.size, about.size, 3];
  const pixels = new ort.Tensor("uint8", new Uint8Array(square.buffer), shape);
  const { features, fc } = await session.run({ pixels });
  return {
    features: features.data,
    fc: fc.data,
    boxes: Float32Array.from(about.boxes.flat()),
    regions: about.boxes.length,
  };
}

async function caption(file) {
  const { about, captioner, session } = await models;
  const times = [performance.now()];
  const lap = () => times.push(performance.now());
  const { pixels, width, height } = await readPixels(file);
  const square = squeeze(pixels, width, height, about.size);
  lap();
  const image = await regionsOf({ about, session }, square);
  lap();
  const captions = captioner.captions(image);
  lap();
  const words = captions.length ? captioner.words(captions[0].tokens) : [];
  const [photo, extractor, search] = [1, 2, 3].map((i) => times[i] - times[i - 1]);
  return { captions, words, times: { photo, extractor, search }, image };
}

// Photos come one at a time: the latest of those that wait is the only one that counts.
let waiting = null;
let busy = false;

async function work() {
  busy = true;
  while (waiting) {
    const { id, file } = waiting;
    waiting = null;
    try {
      postMessage({ type: "captioned", id, ...(await caption(file)) });
    } catch (error) {
      postMessage({ type: "failed", id, reason: String(error?.message ?? error) });
    }
  }
  busy = false;
}

models = prepare();
models.then(
  () => postMessage({ type: "ready" }),
  (error) => postMessage({ type: "broken", reason: String(error?.message ?? error) }),
);
addEventListener("message", ({ data }) => {
  waiting = data;
  if (!busy) work();
});
