"""Bytes of a captioner exported as ONNX, in each form of its weights, and what rounding changes.

python benchmarks/export_sizes.py --run=flickr8k-mini --photos=data/flickr8k --paper

Differing captions are counted over images of random features, 1 to 14 regions each; the error of
an extractor over the photos that come with the package. `--photos`, a folder with captions.json,
adds the CIDEr of exports, and `--paper` the export of a model of the papers' size.
"""

import argparse
import functools
import io
import pathlib
import tempfile
import time
import zipfile
from typing import Any

import export_paper
import export_scores
import numpy as np
import onnxruntime

import sparsecap_jax as sc
from sparsecap_jax.exporting.extractor import extractor_bytes
from sparsecap_jax.files import write_atomically
from sparsecap_jax.model_files import FORMS
from sparsecap_jax.photos.efficientnet_lite import NETWORKS
from sparsecap_jax.photos.extractors import make_extractor
from sparsecap_jax.photos.images import EXAMPLES, list_photos, open_photo, squeeze
from sparsecap_jax.pruning.summary import weight_counts
from sparsecap_jax.runs.directory import load_run, save_model
from sparsecap_jax.runs.published import resolve_run

HEADER = """# Exported captioners

`{command}`

Bytes of the ONNX files of `{name}` ({model}, {sparsity:.1%} of {weights:,} weights pruned), of
`encode.onnx` with `step.onnx` and of `greedy.onnx`, each with its weights; `zip` is the first two
deflated, as a web server sends them. A search needs the first two, or the third. Captions that
differ from float32's are counted over {images} images of random features, beam search as the run's
own. Loading is the least time of {repeats}, of both files by onnxruntime {runtime}.

The model file (`.scap`) of the same run, with tokenizer and config, has {files} bytes
(float32, float16, int8). Weights in int8 are those of the int8 model file to the bit
(`tests/exporting`).

| weights | initialisers | encode + step | zip | greedy | loads (s) | captions that differ |
|---|---|---|---|---|---|---|
"""
EXTRACTORS = """
## Extractors

Bytes of `extractor.onnx` (the weights of ImageNet's classes are not in it), and the mean difference
of its features to NumPy's over their mean, on the photos that come with the package. Seconds for a
photo of 320 x 320, least of {repeats}, one thread.

| network | weights | bytes | zip | difference | seconds |
|---|---|---|---|---|---|
"""


def zipped(*contents):
    """Return the bytes of files when they are deflated."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for number, content in enumerate(contents):
            archive.writestr(str(number), content)
    return len(target.getvalue())


def least(function, repeats):
    """Return the least of some times, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def session(content):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(content, options)


def captioner_rows(run, arguments):
    """Yield the lines of the table of a captioner."""
    rng, width = np.random.default_rng(0), load_run(resolve_run(run)).config.data.feature_size
    shapes = [(number, width) for number in rng.integers(1, 15, arguments.images)]
    features = [np.maximum(rng.normal(0.2, 1, s), 0).astype(np.float32) for s in shapes]
    exact = None
    for form in FORMS:
        for sparse in (False, True):
            with tempfile.TemporaryDirectory() as temporary:
                folder = pathlib.Path(temporary, "exported")
                options = {"weights": form, "sparse": sparse, "extractor": ""}
                sc.export(run, folder, **options, report=[].append)
                names = ("encode", "step", "greedy")
                parts = [(folder / f"{name}.onnx").read_bytes() for name in names]
                tokens = export_scores.load_runner(folder).tokens(features)
            exact = tokens if exact is None else exact
            differ = int(np.any(tokens != exact, axis=1).sum())
            loads = least(lambda p=parts: [session(part) for part in p[:2]], arguments.repeats)
            sizes = [len(parts[0]) + len(parts[1]), zipped(*parts[:2]), len(parts[2])]
            cells = [form, "sparse" if sparse else "dense", *(f"{size:,}" for size in sizes)]
            yield "| {} |\n".format(" | ".join([*cells, f"{loads:.2f}", str(differ)]))


def extractor_rows(arguments):
    """Yield the lines of the table of extractors."""
    photos = [open_photo(path) for path in list_photos(EXAMPLES)]
    for network in NETWORKS:
        extractor: Any = make_extractor(network)
        expected = np.stack([image.features for image in extractor(photos)])
        pixels = np.stack([squeeze(photo, extractor.windows.size) for photo in photos])
        for form in FORMS:
            content, _ = extractor_bytes(extractor.settings, form)
            run = session(content)
            found = run.run(["features"], {"pixels": pixels})[0]
            error = np.abs(found - expected).mean() / expected.mean()
            photo = {"pixels": pixels[:1]}
            taken = least(functools.partial(run.run, None, photo), arguments.repeats)
            cells = [network, form, f"{len(content):,}", f"{zipped(content):,}"]
            yield "| {} |\n".format(" | ".join([*cells, f"{error:.1e}", f"{taken:.3f}"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="flickr8k-mini", help="run directory or name")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--photos", help="folder of photos with captions.json")
    parser.add_argument("--paper", action="store_true", help="also a model of the papers' size")
    parser.add_argument("--output", default="docs/results/export.md", help="page to write")
    arguments = parser.parse_args()
    run = load_run(resolve_run(arguments.run))
    files = []
    for form in FORMS:
        with tempfile.TemporaryDirectory() as folder:
            files.append(f"{save_model(pathlib.Path(folder, 'm.scap'), run, form):,}")
    counts = weight_counts(run.params)
    name = pathlib.Path(arguments.run).name
    command = f"python benchmarks/export_sizes.py --run={name}"
    if arguments.photos:
        command += f" --photos=data/{pathlib.Path(arguments.photos).name}"
    facts = {
        "command": command + " --paper" * arguments.paper,
        "name": name,
        "model": run.config.model.name,
        "sparsity": counts["sparsity"],
        "weights": round(counts["nonzeros"] / (1 - counts["sparsity"])),
        "images": arguments.images,
        "repeats": arguments.repeats,
        "runtime": onnxruntime.__version__,
        "files": ", ".join(files),
    }
    rows = [*captioner_rows(arguments.run, arguments)]
    extractors = [*extractor_rows(arguments)]
    more = [export_scores.section(arguments.run, arguments.photos)] if arguments.photos else []
    more += [export_paper.section()] if arguments.paper else []
    with write_atomically(arguments.output) as file:
        file.write(HEADER.format(**facts))
        file.writelines(rows)
        file.write(EXTRACTORS.format(repeats=arguments.repeats))
        file.writelines([*extractors, *more])


if __name__ == "__main__":
    main()
