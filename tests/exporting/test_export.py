"""Exported captioners give our tokens: every family and the shipped one, ONNX and StableHLO."""

import ast
import hashlib
import importlib.metadata
import json
import subprocess
import sys

import exported
import numpy as np
import pytest
from exported import FAMILIES, LENGTH, SEARCH

import sparsecap_jax as sc
from sparsecap_jax.captioner import Captioner
from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.exporting.manifest import RUNNER
from sparsecap_jax.exporting.packages import load_jax2onnx
from sparsecap_jax.photos.images import EXAMPLES, list_photos
from sparsecap_jax.runs.directory import load_run, save_model
from sparsecap_jax.runs.published import find

MINI = "flickr8k-mini"
GREEDY = {key: SEARCH[key] for key in ("no_repeat_ngram", "suppress_unk", "bad_endings")}
# A process that has JAX, NumPy and the folder alone, as docs/export.md describes it.
FRESH = """
import json, pathlib, sys
import numpy as np
from jax import export

def outputs(folder, name, inputs):
    graph = json.loads((folder / "manifest.json").read_text())["graphs"][name]
    exported = export.deserialize(bytearray((folder / graph["file"]).read_bytes()))
    with np.load(folder / "weights.npz") as weights:
        params = {name: weights[name] for name in graph["params"]}
    return exported.call(params, {name: inputs[name] for name in graph["inputs"]})

for name in sys.argv[1:]:
    folder = pathlib.Path(name)
    with np.load(folder.with_suffix(".npz")) as inputs:
        found = {"tokens": outputs(folder, "greedy", inputs)["tokens"]}
        if folder.name not in ("up_down", "acort"):
            np.savez(folder.with_suffix(".out.npz"), **found)
            continue
        state = outputs(folder, "encode", inputs)
        rows = {k: np.repeat(v, 2, 1) if k.startswith("carry.") else v for k, v in state.items()}
        rows["tokens"] = np.full((len(inputs["fc"]), 2), 2, np.int32)
        found["log_probs"] = outputs(folder, "step", rows)["log_probs"]
    np.savez(folder.with_suffix(".out.npz"), **found)
assert not [m for m in sys.modules if m.startswith("sparsecap") or m == "flax"]
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Model files of all families."""
    folder = tmp_path_factory.mktemp("models")
    return {family: exported.make_model_file(folder, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def onnx(files, tmp_path_factory):
    """Exports a model as ONNX, once; returns the folder."""
    exported.need_jax2onnx()
    made = {}

    def of(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("onnx") / name
            sc.export(files.get(name, name), made[name], report=[].append)
        return made[name]

    return of


def greedy_tokens(captioner, arrays, **search):
    captions = captioner.caption(*arrays, search="greedy", **search)
    return exported.rows(captions, captioner.config.max_seq_length)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_every_family_from_onnx(files, onnx, family):
    ours, arrays = Captioner.load(files[family], backend="sparse"), exported.image_arrays()
    theirs = exported.runner_of(onnx(family)).Captioner(onnx(family))
    greedy = greedy_tokens(ours, arrays, **GREEDY)
    np.testing.assert_array_equal(theirs.tokens(*arrays, greedy=True), greedy)
    beams = ours.caption(*arrays, **SEARCH)
    np.testing.assert_array_equal(theirs.tokens(*arrays), exported.rows(beams, LENGTH))
    assert theirs.caption(*arrays) == [caption.text for caption in beams]
    assert len({caption.tokens for caption in beams}) > 10


def test_tokens_of_every_family_from_stablehlo_in_a_fresh_process(files, tmp_path):
    runner, captioners = exported.runner_of_source(), {}
    for family in (*FAMILIES, MINI):
        ours = captioners[family] = Captioner.load(files.get(family, family), backend="sparse")
        sc.export(files.get(family, family), tmp_path / family, "stablehlo", report=[].append)
        features, boxes = exported.image_arrays(width=ours.feature_size)
        np.savez(tmp_path / f"{family}.npz", **runner.padded(features, boxes, None))
    folders = [str(tmp_path / family) for family in captioners]
    subprocess.run([sys.executable, "-c", FRESH, *folders], check=True)
    for family, ours in captioners.items():
        arrays = exported.image_arrays(width=ours.feature_size)
        options = {key: ours.run.search[key] for key in GREEDY}
        with np.load(tmp_path / f"{family}.out.npz") as found:
            expected = greedy_tokens(ours, arrays, **options)
            np.testing.assert_array_equal(found["tokens"], expected, err_msg=family)
            if "log_probs" not in found:
                continue
            first = ours.candidates(*arrays, search="greedy")
            log_probs = found["log_probs"]
        np.testing.assert_array_equal(log_probs[:, 0], log_probs[:, 1])
        assert [[c.tokens[0] for c in one] for one in first] == log_probs[:, :1].argmax(-1).tolist()


def test_the_shipped_captioner_from_onnx(onnx):
    ours, folder = Captioner.load(MINI), onnx(MINI)
    theirs = exported.runner_of(folder).Captioner(folder)
    features, _ = exported.image_arrays(width=1280, regions=14)
    options = {key: ours.run.search[key] for key in GREEDY}
    greedy = greedy_tokens(ours, [features], **options)
    np.testing.assert_array_equal(theirs.tokens(features, greedy=True), greedy)
    beams = ours.caption(features, **ours.run.search)
    np.testing.assert_array_equal(theirs.tokens(features), exported.rows(beams, 18))
    photos = list_photos(EXAMPLES)
    expected = [caption.text for caption in ours.caption_photos(photos)]
    assert theirs.caption(*theirs.photos(photos)) == expected


def test_rounded_weights_are_those_of_a_model_file(tmp_path):
    exported.need_jax2onnx()
    features, _ = exported.image_arrays(width=1280, regions=14)
    options = {"weights": "int8", "sparse": True, "extractor": "", "report": [].append}
    sc.export(MINI, tmp_path / "onnx", **options)
    save_model(tmp_path / "int8.scap", load_run(find(MINI)), "int8")
    ours = Captioner.load(tmp_path / "int8.scap")
    beams = exported.rows(ours.caption(features, **ours.run.search), 18)
    theirs = exported.runner_of(tmp_path / "onnx").Captioner(tmp_path / "onnx")
    np.testing.assert_array_equal(theirs.tokens(features), beams)
    exact = Captioner.load(MINI)
    assert np.any(beams != exported.rows(exact.caption(features, **exact.run.search), 18))


@pytest.mark.parametrize(
    "search",
    [
        {"beam_size": 1, "no_repeat": True, "min_length": 4},
        {"beam_size": 4, "no_repeat_ngram": 1, "length_penalty": "wu_0.7"},
        {"beam_size": 2, "temperature": 0.5, "suppress": ["dog", "cat"], "min_length": 3},
        {"beam_size": 5, "bad_endings": ["the", "a", "two"], "no_repeat": True},
    ],
)
def test_the_runner_has_every_option_of_a_search(files, onnx, search):
    ours, arrays = Captioner.load(files["up_down"], backend="sparse"), exported.image_arrays()
    folder = onnx("up_down")
    theirs = exported.runner_of(folder).Captioner(folder)
    theirs.search = search_entry(ours, search)
    if search["beam_size"] == 1:
        theirs.search |= {"method": "beam", "beam_size": 1}  # one beam is greedy search
    expected = exported.rows(ours.caption(*arrays, **search), LENGTH)
    np.testing.assert_array_equal(theirs.tokens(*arrays), expected)


def search_entry(captioner, search):
    from sparsecap_jax.captioning.image_options import decode_options
    from sparsecap_jax.captioning.search import SearchOptions
    from sparsecap_jax.exporting import manifest

    options = decode_options(SearchOptions(**search), captioner.run.tokenizer, LENGTH)
    return manifest.search_entry(options)


def test_a_named_search_replaces_that_of_the_run(files, tmp_path):
    found = {}
    for name, search in {"greedy": {"search": "greedy"}, "beams": {"beam_size": 2}}.items():
        options = {"format": "stablehlo", "report": [].append, **search}
        sc.export(files["soft_attention_gru"], tmp_path / name, **options)
        found[name] = json.loads((tmp_path / name / "manifest.json").read_text("utf-8"))["search"]
    assert found["greedy"]["method"] == "greedy" and found["beams"]["method"] == "beam"
    assert (found["greedy"]["no_repeat_ngram"], found["beams"]["no_repeat_ngram"]) == (0, 2)
    assert found["beams"]["beam_size"] == 2


def test_the_manifest_describes_the_files(onnx):
    import onnx as package

    folder = onnx("acort")
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {
        "manifest.json", "caption.py", "encode.onnx", "step.onnx", "greedy.onnx"
    }  # fmt: skip
    for entry in manifest["graphs"].values():
        content = (folder / entry["file"]).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        model = package.load_from_string(content)
        package.checker.check_model(model, full_check=True)
        for side in ("input", "output"):
            values = {value.name: value.type.tensor_type for value in getattr(model.graph, side)}
            assert values.keys() == entry[f"{side}s"].keys()
            for name, spec in entry[f"{side}s"].items():
                sizes = [d.dim_value or d.dim_param for d in values[name].shape.dim]
                kind = package.helper.tensor_dtype_to_np_dtype(values[name].elem_type)
                assert (sizes, kind.name) == (spec["shape"], spec["dtype"]), name
    assert manifest["search"]["beam_size"] == 3 and manifest["versions"]["opset"] == 21


def test_the_runner_needs_numpy_and_onnxruntime_alone():
    names = set()
    for node in ast.walk(ast.parse(RUNNER.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    assert names - sys.stdlib_module_names == {"numpy", "onnxruntime", "PIL"}


def test_faults_are_one_clear_error(files, tmp_path):
    def fails(error, message, **options):
        with pytest.raises(error, match=message):
            sc.export(files["up_down"], tmp_path / "x", **{"report": [].append, **options})
        assert not (tmp_path / "x").exists()

    fails(ConfigError, "format is 'onx'; did you mean 'onnx'", format="onx")
    for name in ("stablehlo", "web"):
        message = f"weights and sparse are for ONNX; format is '{name}'"
        fails(ConfigError, message, format=name, weights="int8")
    fails(ConfigError, "extractor is for ONNX", format="stablehlo", extractor="int8")
    fails(ConfigError, "onnxruntime_web is for web pages; format is 'onnx'", onnxruntime_web="x")
    fails(ConfigError, "weights is 'int4'; did you mean 'int8'", weights="int4")
    fails(ConfigError, "extractor is 'int4'; did you mean 'int8'", extractor="int4")
    fails(ConfigError, "extractor is 'int8'; the run has none", extractor="int8")
    fails(ConfigError, "a page has the run's own search", format="web", beam_size=2)
    fails(ConfigError, "search 'sample': an exported captioner", search="sample")
    fails(ConfigError, "search option prefix: differs by image", prefix="a dog")
    fails(ConfigError, "search option consensus: draws samples; it cannot", consensus=20)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(CheckpointError, match="used: exists; expected a new or empty folder"):
        sc.export(files["up_down"], tmp_path / "used")


def test_a_jax_that_jax2onnx_does_not_know(monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.12.0.1")
    with pytest.raises(ConfigError, match=r"JAX is 0\.12\.0\.1; .* expects one before 0\.12, as"):
        load_jax2onnx()
