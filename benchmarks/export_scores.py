"""CIDEr of exported captioners, from photo to caption by the runner of their folder."""

import importlib.util
import pathlib
import tempfile

import sparsecap_jax as sc
from sparsecap_jax.evaluation.comparison import compare, pool
from sparsecap_jax.evaluation.judging import judge_captions
from sparsecap_jax.files import read_json
from sparsecap_jax.model_files import FORMS

# Forms of the weights and of the extractor.
PAIRS = (
    *(("float32", "float32"), ("float32", "float16"), ("float16", "float16")),
    *(("int8", "float16"), ("int8", "int8")),
)
BATCH = 50
HEADER = """
## CIDEr

CIDEr x 100 of the {images:,} test photos of `{data}`, from the file of each photo to its caption
by `exported/caption.py`; the search is the run's own. The interval is that of the difference to the
first row, over photos drawn with replacement ([metrics.md](../metrics.md#comparison)). Bytes are
those of `encode.onnx`, `step.onnx` and `extractor.onnx`. `sparsecap caption` has the caption of the
first row for {same:,} of the {images:,} photos.

| weights | extractor | bytes | CIDEr | difference | 95% | captions that differ |
|---|---|---|---|---|---|---|
"""


def load_runner(folder):
    """Return the `Captioner` of an exported folder."""
    spec = importlib.util.spec_from_file_location("caption", folder / "caption.py")
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    return runner.Captioner(folder)


def test_photos(folder):
    """Return the paths of the photos of the test split, and the references of each."""
    images = read_json(folder / "captions.json")["images"]
    paths = {image["filename"]: image["captions"] for image in images if image["split"] == "test"}
    return {folder / "images" / name: captions for name, captions in sorted(paths.items())}


def caption_all(run, paths):
    """Return captions by pair of forms, each by path, and the bytes of the three graphs."""
    with tempfile.TemporaryDirectory() as temporary:
        runners, captions = {}, {pair: {} for pair in PAIRS}
        for form in FORMS:
            folder = pathlib.Path(temporary, form)
            sc.export(run, folder, weights=form, extractor=form, report=[].append)
            runners[form] = load_runner(folder)
        for first in range(0, len(paths), BATCH):
            part = paths[first : first + BATCH]
            regions = {form: runner.photos(part) for form, runner in runners.items()}
            for weights, extractor in PAIRS:
                texts = runners[weights].caption(*regions[extractor])
                captions[weights, extractor] |= zip(part, texts, strict=True)
        sizes = {
            form: {name: (runner.folder / f"{name}.onnx").stat().st_size for name in _GRAPHS}
            for form, runner in runners.items()
        }
    return captions, {
        (weights, extractor): sizes[weights]["encode"]
        + sizes[weights]["step"]
        + sizes[extractor]["extractor"]
        for weights, extractor in PAIRS
    }


_GRAPHS = ("encode", "step", "extractor")


def section(run, data):
    """Return the section of the results page.

    Args:
        run: run directory or name of a captioner of photos.
        data: folder with `captions.json` and `images/`.
    """
    references = test_photos(pathlib.Path(data))
    paths = list(references)
    captions, sizes = caption_all(run, paths)
    exact, exact_texts = PAIRS[0], captions[PAIRS[0]]
    judged = {" ".join(p): judge_captions(captions[p], references, ["CIDEr"]) for p in PAIRS}
    rows = []
    for pair in PAIRS:
        score = judged[" ".join(pair)].scores["CIDEr"]
        cells = [*pair, f"{sizes[pair]:,}", f"{100 * score:.1f}"]
        if pair == exact:
            cells += ["", "", ""]
        else:
            two = {name: judged[name] for name in (" ".join(pair), " ".join(exact))}
            found = compare(pool(two))["differences"][0]["CIDEr"]
            low, high = found["95%"]
            cells += [f"{100 * found['difference']:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}"]
            cells.append(str(sum(captions[pair][path] != exact_texts[path] for path in paths)))
        rows.append("| {} |\n".format(" | ".join(cells)))
        print(*cells, flush=True)
    ours = sc.Captioner.load(run).caption_photos(paths)
    same = sum(one.text == exact_texts[path] for one, path in zip(ours, paths, strict=True))
    facts = {"images": len(paths), "data": pathlib.Path(data).name, "same": same}
    return HEADER.format(**facts) + "".join(rows)
