"""Runs in all forms of weights, and as one file."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from captioner_runs import image_arrays, make_run

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.commands.convert import convert_run
from sparsecap_jax.commands.report import report_run
from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.model_files import ModelFile
from sparsecap_jax.pruning.paths import by_path, select, show
from sparsecap_jax.pruning.summary import weight_counts
from sparsecap_jax.runs.collection import read_run
from sparsecap_jax.runs.directory import finished_weights, load_run, save_model, save_run
from sparsecap_jax.runs.published import results_folder

FILES = {
    "float32": "model.scap",
    "npz": "weights.npz",
    "safetensors": "weights.safetensors",
    "float16": "model.scap",
    "npz_compact": "weights.npz",
    "int8": "model.scap",
}
EXTRACTOR = {"extractor": "lite0", "size": 64, "half": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with masks, a kept weight of 0, an extractor, and options of its search."""
    directory = make_run(tmp_path_factory.mktemp("runs") / "run")
    loaded, rng = load_run(directory), np.random.default_rng(0)
    masks = {}
    for path in select(loaded.params):
        masks[path] = (rng.random(by_path(loaded.params)[path].shape) < 0.3).astype(np.float32)
        leaf = loaded.params
        for key in path[:-1]:
            leaf = leaf[key]
        leaf[path[-1]] = np.where(masks[path] != 0, leaf[path[-1]], np.float32(0))
    kept = tuple(np.argwhere(masks["embed", "embedding"])[0])
    loaded.params["embed"]["embedding"][kept] = 0
    notes = {"extractor": EXTRACTOR, "search": {"beam_size": 3}}
    nested: dict = {}
    for path, mask in masks.items():
        inner = nested
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = mask
    save_run(directory, dataclasses.replace(loaded, masks=nested, **notes))
    return directory


def assert_same(first, second):
    for one, two in ((first.params, second.params), (first.masks, second.masks)):
        one, two = by_path(one), by_path(two)
        assert one.keys() == two.keys()
        for path, leaf in one.items():
            np.testing.assert_array_equal(leaf, two[path], err_msg=show(path))
    assert (first.config.to_dict(), first.extractor, first.search) == (
        second.config.to_dict(),
        second.extractor,
        second.search,
    )


def test_lossless_forms_go_into_each_other(run, tmp_path):
    first, source = load_run(run), run
    for number, form in enumerate(["npz", "safetensors", "float32", "safetensors", "npz"]):
        convert_run(source, tmp_path / str(number), weights=form, report=[].append)
        source = tmp_path / str(number)
        assert finished_weights(source) == source / FILES[form]
        assert_same(load_run(source), first)
    convert_run(source, tmp_path / "one.scap", report=[].append)
    convert_run(tmp_path / "one.scap", tmp_path / "last", report=[].append)
    assert_same(load_run(tmp_path / "one.scap"), first)
    assert_same(load_run(tmp_path / "last"), first)


def test_kept_weights_that_are_rounded_to_zero_are_told_from_nonzeros(run, tmp_path):
    """One kept weight is 0 in the run; int8 rounds more of them."""
    lines, path = [], tmp_path / "m.scap"
    convert_run(run, path, weights="int8", report=lines.append)
    loaded = load_run(path)
    weights, masks = by_path(loaded.params), by_path(loaded.masks)
    kept = sum(int((mask != 0).sum()) for mask in masks.values())
    nonzeros = sum(int((weights[name] != 0).sum()) for name in masks)
    assert kept - nonzeros > 1
    said = f"{kept - nonzeros:,} of {kept:,} kept weights are 0 (rounding can make small ones 0)"
    assert lines[0] == said
    size = sum(mask.size for mask in masks.values())
    counts = weight_counts(loaded.params, loaded.masks)
    assert counts == {
        **{"sparsity": 1 - nonzeros / size, "nonzeros": nonzeros, "prunable": size, "kept": kept}
    }
    figures = read_run(path, "m").figures
    assert (figures["kept"], figures["nonzeros"]) == (kept, nonzeros)
    convert_run(path, tmp_path / "folder", weights="int8", report=[].append)
    report_run(tmp_path / "folder", lines.append)
    assert said in lines and f"{kept:>11,} of {size:>11,} kept  all prunable weights" in str(lines)
    dense = load_run(run)
    assert "kept" not in weight_counts(dense.params)


def test_float16_is_the_same_in_every_form(run, tmp_path):
    for form in ("float16", "npz_compact"):
        convert_run(run, tmp_path / form, weights=form, report=[].append)
    rounded = jax.tree.map(lambda leaf: leaf.astype(np.float16), load_run(run).params)
    for form in ("float16", "npz_compact"):
        found = load_run(tmp_path / form).params
        jax.tree.map(np.testing.assert_array_equal, found, rounded)


def test_saving_another_form_removes_the_last(run, tmp_path):
    loaded = load_run(run)
    for form, name in FILES.items():
        save_run(tmp_path, loaded, form=form)
        assert {path.name for path in tmp_path.iterdir()} & set(FILES.values()) == {name}
    with pytest.raises(ConfigError, match="form of the weights is 'int4'; expected one of float32"):
        save_run(tmp_path, loaded, form="int4")


def test_one_file_captions_as_its_run_does(run, tmp_path):
    features, boxes = image_arrays(3)
    save_model(tmp_path / "m.scap", load_run(run))
    for file in (tmp_path / "m.scap", str(tmp_path / "m.scap")):
        found = Captioner.load(file).caption(features, boxes)
        assert found == Captioner.load(run).caption(features, boxes)
    assert results_folder(file, "test_beam_5") == tmp_path / "m.scap_test_beam_5"


def test_a_file_of_the_working_folder_goes_by_its_name(run, tmp_path, monkeypatch):
    save_model(tmp_path / "m.scap", load_run(run), "int8")
    monkeypatch.chdir(tmp_path)
    assert Captioner.load("m.scap").run.search == {"beam_size": 3}


def test_faults_are_one_clear_error(run, tmp_path):
    def fails(error, message, *arguments, **options):
        with pytest.raises(error, match=message):
            convert_run(*arguments, report=[].append, **options)

    path = tmp_path / "m.scap"
    save_model(path, load_run(run))
    fails(CheckpointError, r"m\.scap: exists; expected the name of a new file$", run, path)
    fails(ConfigError, r"weights is 'npz'; .*n\.scap can be one of", run, "n.scap", weights="npz")
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").write_text("")
    fails(CheckpointError, r"used: exists; expected a new or empty folder", run, tmp_path / "used")
    fails(CheckpointError, r"file: exists; expected the name of a", run, tmp_path / "used/file")
    fails(CheckpointError, "none: no such file or folder; expected a run", "none", tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"m\.scap: step is 'last'; a model file holds"):
        load_run(path, "last")
    assert not pathlib.Path("n.scap").exists() and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda notes, files: notes.clear(), "weights without a config; expected those of a run"),
        (lambda notes, files: notes["config"].update(seed=-1), r"m\.scap: config: .*seed"),
        (lambda notes, files: files.clear(), r"m\.scap/tokenizer/word\.model: no such file"),
        (lambda notes, files: files.update({"tokenizer/word.model": b"x"}), r"m\.scap/tokenizer"),
        (
            lambda notes, files: notes["config"]["model"].update(rnn_size=17),
            r"m\.scap: not as config\.json and tokenizer say: weight ",
        ),
    ],
)
def test_damaged_notes_and_files_are_named(run, tmp_path, change, message):
    from sparsecap_jax.model_files import write_model

    path = tmp_path / "m.scap"
    loaded = load_run(run)
    save_model(path, loaded)
    with ModelFile(path) as file:
        notes, files = file.notes, file.files()
    change(notes, files)
    params = {show(path): leaf for path, leaf in by_path(loaded.params).items()}
    write_model(path, params, {}, notes=notes, files=files)
    with pytest.raises(Exception, match=message) as caught:
        load_run(path)
    assert "sparsecap_jax.errors" in type(caught.value).__module__


def test_a_dense_run_has_no_masks(tmp_path):
    directory = make_run(tmp_path / "run")
    for form in ("float32", "int8", "safetensors"):
        save_run(directory, load_run(directory), form=form)
        assert load_run(directory).masks == {}


def test_notes_of_a_hostile_extractor_run_nothing(run, tmp_path):
    loaded = load_run(run)
    save_model(
        tmp_path / "m.scap", dataclasses.replace(loaded, extractor={"extractor": "os:system"})
    )
    with pytest.raises(ConfigError, match="os:system"):
        _ = Captioner.load(tmp_path / "m.scap").extractor
