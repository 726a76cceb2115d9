"""Time the page of a captioner in headless Chromium, and its sparse step against ONNX Runtime Web.

    python benchmarks/web.py --checkpoint=flickr8k-mini

With `--photos` it also counts the photos to which page and Python give the same caption. ONNX
Runtime multiplies dense matrices: its column has the products of a step alone, without gates,
attention and softmax. Needs selenium, onnx, and Debian's chromium and chromium-driver.
"""

import json
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "tests")]

import chromium  # noqa: E402
import web_pages  # noqa: E402

CHECKPOINT = flags.DEFINE_string("checkpoint", "flickr8k-mini", "Up-Down captioner of photos.")
REPEATS = flags.DEFINE_integer("repeats", 20, "Times that each photo is captioned.", lower_bound=1)
PHOTOS = flags.DEFINE_string("photos", None, "Folder of photos to caption here and in Python.")
COUNT = flags.DEFINE_integer("count", 200, "Photos of that folder to take.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")

# Milliseconds of photo, extractor and search for each repetition, by the page's own worker.
CAPTIONS = """
const [names, repeats, done] = arguments;
const code = `import ${JSON.stringify(new URL("worker.js", location.href).href)};`;
const blob = new Blob([code], { type: "text/javascript" });
const worker = new Worker(URL.createObjectURL(blob), { type: "module" });
const answer = (type) => new Promise((told) => {
  worker.onmessage = ({ data }) => data.type === type && told(data);
});
(async () => {
  await answer("ready");
  const times = [];
  for (let n = 0; n < repeats; n++) {
    for (const name of names) {
      worker.postMessage({ id: n, file: await (await fetch(name)).blob() });
      const { times: spent, captions } = await answer("captioned");
      times.push({ ...spent, text: captions[0].text });
    }
  }
  done(times);
})();
"""
# Milliseconds of a step of three rows, here and in ONNX Runtime.
STEPS = """
const [width, repeats, done] = arguments;
const here = (name) => new URL(name, location.href);
const median = (times) => times.sort((a, b) => a - b)[times.length >> 1];
(async () => {
  const { Captioner } = await import(here("captioner.js"));
  const ort = await import(here("runtime.js"));
  const whole = (stream) => new Response(stream).arrayBuffer();
  const load = async (name) => (await fetch(here(name))).body;
  const inflated = async (name) =>
    whole((await load(name)).pipeThrough(new DecompressionStream("deflate")));
  const start = performance.now();
  const captioner = new Captioner(await inflated("captioner.bin"));
  const loading = performance.now() - start;
  const features = Float32Array.from({ length: 14 * width }, (_, i) => (i % 7) / 9);
  const context = captioner.model.encode({ features, fc: features.slice(0, width), regions: 14 });
  let { state } = captioner.model.step(captioner.model.begin(context), [2], context);
  for (const name of Object.keys(state)) {
    const one = state[name];
    state[name] = new Float32Array(3 * one.length).map((_, i) => one[i % one.length]);
  }
  const sparse = [];
  for (let n = 0; n < repeats; n++) {
    const before = performance.now();
    captioner.model.step(state, [5, 6, 7], context);
    sparse.push(performance.now() - before);
  }
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = await inflated("runtime.bin");
  const session = await ort.InferenceSession.create(await whole(await load("dense.onnx")));
  const x = new ort.Tensor("float32", new Float32Array(3 * 4096).fill(0.1), [3, 4096]);
  const dense = [];
  for (let n = 0; n < repeats; n++) {
    const before = performance.now();
    await session.run({ x });
    dense.push(performance.now() - before);
  }
  done({ loading, sparse: median(sparse), dense: median(dense) });
})().catch((error) => done({ error: String(error.stack ?? error) }));
"""
MATRICES = (
    *("att_lstm/kernel_ih", "att_lstm/kernel_hh", "attention/h2att/kernel"),
    *("lang_lstm/kernel_ih", "lang_lstm/kernel_hh", "logit_0/kernel"),
)


def dense_products(params: dict[str, np.ndarray]) -> bytes:
    """Return an ONNX file with the products of a step of Up-Down."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, sums = [], [], []
    for number, name in enumerate(MATRICES):
        kernel = params[name]
        bounds = [np.array([bound]) for bound in (0, len(kernel), 1)]
        names = [f"w{number}", *(f"{part}{number}" for part in ("from", "to", "axis"))]
        values = [kernel.astype(np.float16), *bounds]
        constants += [numpy_helper.from_array(v, n) for n, v in zip(names, values, strict=True)]
        nodes += [
            helper.make_node("Cast", [names[0]], [f"k{number}"], to=TensorProto.FLOAT),
            helper.make_node("Slice", ["x", *names[1:]], [f"x{number}"]),
            helper.make_node("MatMul", [f"x{number}", f"k{number}"], [f"y{number}"]),
            helper.make_node("ReduceMean", [f"y{number}"], [f"sum{number}"], keepdims=0),
        ]
        sums.append(f"sum{number}")
    nodes.append(helper.make_node("Sum", sums, ["y"]))
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [3, 4096]), ("y", []))
    )
    graph = helper.make_graph(nodes, "products", [x], [y], constants)
    opset = helper.make_opsetid("", 21)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()


def opening(driver, address: str) -> float:
    """Return the seconds until the page is ready."""
    began = time.monotonic()
    driver.get(address)
    web_pages.until(driver, lambda: web_pages.text(driver, "state").startswith("Ready"))
    return time.monotonic() - began


def agreement(driver, site: pathlib.Path) -> dict[str, int]:
    """Return how many photos have the same caption in the page and in Python."""
    from sparsecap_jax.captioner import Captioner
    from sparsecap_jax.photos.images import list_photos

    photos = list_photos(PHOTOS.value)[: COUNT.value]
    for path in photos:
        shutil.copy(path, site)
    names = [path.name for path in photos]
    found = [one["text"] for one in driver.execute_async_script(CAPTIONS, names, 1)]
    said = [one.text for one in Captioner.load(CHECKPOINT.value).caption_photos(photos)]
    same = sum(map(str.__eq__, found, said))
    return {"photos": len(photos), "same caption": same, "different captions": len({*said})}


def main(_):
    from sparsecap_jax.exporting.web import write_site
    from sparsecap_jax.runs.finished import finished_weights
    from sparsecap_jax.runs.published import resolve_run
    from sparsecap_jax.runs.weights import load_weights
    from sparsecap_jax.trees import flatten

    run = resolve_run(CHECKPOINT.value)
    params = flatten(load_weights(finished_weights(run))["params"])
    with tempfile.TemporaryDirectory() as folder:
        site = pathlib.Path(folder, "site")
        write_site(CHECKPOINT.value, site)
        (site / "dense.onnx").write_bytes(dense_products(params))
        about = json.loads((site / "site.json").read_text())
        width = len(params["region_embed/kernel"])
        with web_pages.served(site) as address, chromium.browser() as driver:
            driver.set_script_timeout(300)
            found = {"first visit, s": opening(driver, address)}
            web_pages.until(driver, lambda: "offline" in web_pages.text(driver, "state"))
            found["next visit, s"] = opening(driver, address)
            names = about["examples"]
            times = driver.execute_async_script(CAPTIONS, names, REPEATS.value)[len(names) :]
            if PHOTOS.value:
                found |= agreement(driver, site)
            steps = driver.execute_async_script(STEPS, width, 10 * REPEATS.value)
    for name in ("photo", "extractor", "search"):
        found[f"{name}, ms"] = statistics.median(one[name] for one in times)
    found |= {f"{name}, ms": value for name, value in steps.items()}
    found["dense file, bytes"] = sum(2 * params[name].size for name in MATRICES)
    found |= {f"{name}, bytes": size for name, size in about["bytes"].items() if size > 50_000}
    found["all, bytes"] = sum(about["bytes"].values())
    for name, value in found.items():
        print(f"{name}: {value:,.3f}" if isinstance(value, float) else f"{name}: {value:,}")
    if OUTPUT.value:
        pathlib.Path(OUTPUT.value).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
