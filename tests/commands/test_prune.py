"""Post-training pruning of a captioner on toy scenes, and what the command refuses."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_runs import make_data, tiny_config

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.commands.convert import convert_run
from sparsecap_jax.commands.prune import METHODS, prune_captioner
from sparsecap_jax.data.datasets import load_dataset
from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.models import abstract_params, make_model
from sparsecap_jax.pruning import prune_layers
from sparsecap_jax.pruning.paths import by_path, select, show
from sparsecap_jax.runs.calibration import calibration_batches, captioner_inputs
from sparsecap_jax.runs.config import model_config
from sparsecap_jax.runs.directory import LoadedRun, load_run, save_run
from sparsecap_jax.tokenizers import train_tokenizer

REPO = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A captioner with random weights, as if trained on the scenes."""
    directory = tmp_path_factory.mktemp("runs") / "dense"
    config = tiny_config(data, "none")
    dataset = load_dataset(config.data)
    captions = (text for record in dataset.splits["train"] for text in record.captions)
    tokenizer = train_tokenizer(config.tokenizer, captions, directory / "tokenizer")
    module = make_model(model_config(config, tokenizer.vocab_size))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.float32(0.3 * rng.normal(size=leaf.shape)), abstract_params(module)
    )
    save_run(directory, LoadedRun(config, tokenizer, module, params, {}))
    return directory


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("suffix", ["", ".scap"])
def test_methods(run, data, tmp_path, method, suffix):
    """As many weights of each tensor, or of all, as the method says; the output captions."""
    output, lines = tmp_path / f"pruned{suffix}", []
    if suffix and method in ("mag_dist", "wanda"):
        pytest.skip("the form is that of other methods")
    fields = {"batches": 2} if method in ("wanda", "sparsegpt") else {}
    prune_captioner(run, output, method, 0.6, report=lines.append, **fields)
    dense, pruned = load_run(run), load_run(output)
    paths = select(dense.params)
    masks, weights, old = by_path(pruned.masks), by_path(pruned.params), by_path(dense.params)
    assert [*masks] == paths
    for path in paths:
        assert (weights[path][masks[path] == 0] == 0).all()
        if method != "sparsegpt":
            np.testing.assert_array_equal(weights[path], old[path] * masks[path])
    sizes = {path: mask.size for path, mask in masks.items()}
    kept = {path: int(mask.sum()) for path, mask in masks.items()}
    if method == "mag_uniform":
        assert kept == {path: size - int(0.6 * size) for path, size in sizes.items()}
    elif method == "wanda":
        for mask in masks.values():
            assert (mask.sum(0) == len(mask) - int(0.6 * len(mask))).all()
    elif method != "sparsegpt":
        assert sum(kept.values()) == sum(sizes.values()) - int(0.6 * sum(sizes.values()))
    name = "mask_freeze" if method in ("wanda", "sparsegpt") else method
    assert (pruned.config.pruner.name, pruned.config.pruner.sparsity) == (name, 0.6)
    for path in paths:
        shown = f"{kept[path]:>11,} of {sizes[path]:>11,} kept  {show(path)}"
        share = 1 - kept[path] / sizes[path]
        assert f"{share:8.4%} sparse  {shown}" in lines
    file = output if suffix else output / "model.scap"
    size, before = file.stat().st_size, (run / "model.scap").stat().st_size
    assert size < before
    assert lines[-1] == (
        f"wrote {output}: {sum(kept.values()):,} nonzeros, {size:,} bytes; "
        f"before: {sum(sizes.values()):,}, {before:,} bytes"
    )
    if method != "sparsegpt":
        return
    captioner = Captioner.load(output)
    store = load_dataset(pruned.config.data).store
    ids = [record.image_id for record in load_dataset(pruned.config.data).splits["val"][:2]]
    assert len(list(captioner.caption_store(store, ids))) == 2


def test_calibration_is_that_of_the_library(run, tmp_path):
    prune_captioner(run, tmp_path / "p.scap", "sparsegpt", 0.5, batches=2, report=[].append)
    dense = load_run(run)
    dataset = load_dataset(dense.config.data)
    batches = calibration_batches(dense.config, dataset, dense.tokenizer, 2)
    assert len(batches) == 2 and batches[0].tokens.shape[:2] == (8, 2)
    assert (batches[0].index != batches[1].index).any()
    params, masks = prune_layers(dense.params, captioner_inputs(dense.model), batches, 0.5)
    found = load_run(tmp_path / "p.scap")
    for tree, other in ((found.params, params), (found.masks, masks)):
        for path, leaf in by_path(other).items():
            np.testing.assert_array_equal(by_path(tree)[path], leaf, err_msg=show(path))


def test_patterns_that_stay_dense(run, tmp_path):
    """Vocabulary and image features are no multiples of 4."""
    fields = {"sparsity_type": "2:4", "exclude": ["embed/.*", "(fc|region)_embed/.*"]}
    fields["exclude"].append("attention/alpha/.*")
    fields |= {"batches": 1, "report": [].append}
    for method in ("wanda", "mag_uniform"):
        given = fields if method == "wanda" else {k: v for k, v in fields.items() if k != "batches"}
        with pytest.raises(ConfigError, match="is no multiple of 4"):
            prune_captioner(run, tmp_path / "p", method, 0.5, **{**given, "exclude": ["embed/.*"]})
        prune_captioner(run, tmp_path / method, method, 0.5, **given)
        masks = by_path(load_run(tmp_path / method).masks)
        assert ("embed", "embedding") not in masks
        for mask in masks.values():
            groups = mask.reshape(-1, 4, mask.shape[-1])
            assert (groups.sum(1) == 2).all()


def test_outputs_that_are_there(run, tmp_path):
    fields = {"method": "mag_uniform", "report": [].append}
    for name in ("run", "one.scap"):
        output = tmp_path / name
        prune_captioner(run, output, sparsity=0.5, **fields)
        with pytest.raises(CheckpointError, match=f"{name}: exists; expected"):
            prune_captioner(run, output, sparsity=0.7, **fields)
        assert load_run(output).config.pruner.sparsity == 0.5
        prune_captioner(run, output, sparsity=0.7, overwrite=True, **fields)
        assert load_run(output).config.pruner.sparsity == 0.7
        with pytest.raises(CheckpointError, match=f"{name}: the run to prune; expected another"):
            prune_captioner(output, output, sparsity=0.9, overwrite=True, **fields)
        with pytest.raises(ConfigError, match=r"is 0.7, but .* has 0\.\d+ already: nothing"):
            prune_captioner(output, tmp_path / "more", sparsity=0.7, **fields)
        prune_captioner(output, tmp_path / f"more_{name}", sparsity=0.9, **fields)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("run", "one.scap", "more_run", "more_one.scap")
    }
    (tmp_path / "run/checkpoints").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("do not remove")
    for name in ("run", "other"):
        with pytest.raises(CheckpointError, match="or a run directory without checkpoints"):
            prune_captioner(run, tmp_path / name, sparsity=0.5, overwrite=True, **fields)
    assert (tmp_path / "other/thesis.txt").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "snip"}, r"method is 'snip'; .*valid: mag_blind, "),
        ({"sparsity": 0.0}, "sparsity is 0.0; expected above 0"),
        ({"batches": 0, "method": "wanda"}, "batches is 0; expected at least 1"),
        ({"method": "wanda", "sparsity_type": "4x4"}, "expected 'unstructured' or N:M"),
        ({"sparsity_type": "2:4", "sparsity": 0.7}, "'2:4' removes 0.5"),
        ({"exclude": ["nothing"]}, "pruner.exclude: 'nothing' matches none"),
        ({"method": "wanda", "changes": ["model.name=up_down"]}, "expected config.data.FIELD"),
    ],
)
def test_faulty_options(run, tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        prune_captioner(run, tmp_path / "out", **{"method": "mag_blind", "sparsity": 0.5, **fields})
    assert not any(tmp_path.iterdir())


def test_compact_units_of_a_pruned_run(run, tmp_path):
    """Half of the units of the attention are read no more: they go."""
    prune_captioner(
        run, tmp_path / "p", "mag_uniform", 0.5, exclude=["(?!attention/alpha).*"],
        report=[].append,
    )  # fmt: skip
    lines = []
    convert_run(tmp_path / "p", tmp_path / "small.scap", compact=True, report=lines.append)
    pruned, small = load_run(tmp_path / "p"), load_run(tmp_path / "small.scap")
    counts = [sum(x.size for x in jax.tree.leaves(one.params)) for one in (pruned, small)]
    assert counts[1] < counts[0]
    assert small.model.attention_size == small.config.model.attention_size == 5
    shown = f"{counts[0]:,} to {counts[1]:,} parameters (attention_size 10 to 5)"
    assert lines[0] == f"compact: {shown}"


def test_the_command(run, tmp_path):
    command = [sys.executable, REPO / "launch/prune.py", f"--checkpoint={run}", "--sparsity=0.75"]
    flags = ["--method=mag_uniform", f"--out={tmp_path}/small.scap"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
    assert "75.0000% sparse" in done.stdout and f"wrote {tmp_path}/small.scap" in done.stdout
    refused = subprocess.run([*command, *flags, "--batches=2"], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "--batches: expected with --method=wanda or sparsegpt only" in refused.stderr
