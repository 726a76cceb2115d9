"""Checkpoint folders for the reference: tensors, config and tokenizer, and the way back."""

import json
import pathlib
import subprocess
import sys

import export_cases as ec
import jax
import numpy as np
import pytest
import reference_cases as cases
from flax.traverse_util import flatten_dict

from sparsecap_jax.commands.convert import import_reference
from sparsecap_jax.commands.reference_export import checkpoint_config, export_reference
from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.interop.checkpoint_dir import open_checkpoint_dir
from sparsecap_jax.interop.reference import (
    load_state_dict,
    model_config,
    tokenizer_fields,
    upgrade_config,
)
from sparsecap_jax.runs.config import default_config
from sparsecap_jax.runs.directory import load_run
from sparsecap_jax.tokenizers import make_tokenizer
from sparsecap_jax.torch_files import SparseTensor

ZIP = "reference/checkpoint/TINY3_UpDownLSTM__supermask__0.975__wg_120.0.zip"
GOLDENS = (
    "relation_transformer",
    "relation_transformer_acort_kv",
    "relation_transformer_acort_qk",
    "relation_transformer_no_trig",
    "relation_transformer_prune_mag_uniform",
    "relation_transformer_prune_supermask",
    "transformer",
    "transformer_acort_mixed",
    "transformer_share_att_kv",
    "transformer_share_att_qk",
    "transformer_share_layer",
    "up_down_lstm",
    "up_down_lstm_logit2",
    "up_down_lstm_prune_mag_blind",
    "up_down_lstm_prune_supermask",
)
MASK = "_pruning_mask"


def without_buffers(checkpoint):
    state = checkpoint.dense_state_dict()
    return {name: tensor for name, tensor in state.items() if not name.endswith(".pe")}


def assert_same_state(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def applied(state, supermask):
    """What the reference's `prune_weights` leaves: weights times rounded masks, no masks."""
    weights = {name: value for name, value in state.items() if not name.endswith(MASK)}
    for name in weights:
        if name + MASK in state:
            mask = state[name + MASK]
            weights[name] = weights[name] * (np.float32(mask > 0) if supermask else mask)
    return weights


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Exports a run; returns the folder as the reader of such folders sees it."""

    def run(source, **options):
        output = tmp_path_factory.mktemp("exported") / "checkpoint"
        export_reference(source, output, report=lambda line: None, **options)
        return open_checkpoint_dir(output)

    return run


@pytest.mark.parametrize("name", GOLDENS)
def test_the_references_tensors_come_back_bit_by_bit(golden, shared, tmp_path, export, name):
    case = golden(f"arch/{name}.npz")
    state, theirs = cases.tensors(case, "param/"), cases.config_of(case)
    ec.golden_run(tmp_path, case, _word_model(shared, tmp_path / "word"))
    pruned, supermask = "prune" in name, "supermask" in name

    found = export(tmp_path)
    assert found.weights == ("model_best_pruned.pth" if pruned else "model_best.pth")
    assert_same_state(without_buffers(found), applied(state, supermask))
    assert model_config(found.config) == model_config(theirs)
    for key in found.config.keys() & upgrade_config(theirs).keys() & set(_MODEL_KEYS):
        assert found.config[key] == upgrade_config(theirs)[key], key
    if not pruned:
        return

    sparse = export(tmp_path, form="sparse")
    coo = {k for k, v in sparse.state_dict.items() if isinstance(v, SparseTensor)}
    assert coo == {k.removesuffix(MASK) for k in state if k.endswith(MASK)}
    assert_same_state(without_buffers(sparse), applied(state, supermask))

    binary = without_buffers(export(tmp_path, masks="binary"))
    rounded = {k: np.float32(v > 0) for k, v in state.items() if k.endswith(MASK)}
    assert_same_state(binary, {**applied(state, supermask), **rounded})

    raw = export(tmp_path, masks="raw")
    assert raw.weights == "model_best.pth"
    assert_same_state(without_buffers(raw), state)
    assert raw.config["prune_type"] == theirs["prune_type"]


_MODEL_KEYS = (
    *("caption_model", "vocab_size", "max_seq_length", "att_feat_size", "fc_feat_size"),
    *("att_hid_size", "input_encoding_size", "rnn_size", "drop_prob_lm", "logit_layers"),
    *("d_model", "dim_feedforward", "num_layers", "num_heads", "drop_prob_src"),
    *("share_att_encoder", "share_att_decoder", "share_layer_encoder", "share_layer_decoder"),
    *("no_box_trigonometric_embedding", "prune_type", "bos_token_id", "eos_token_id"),
    *("pad_token_id", "unk_token_id"),
)


def _word_model(shared, folder):
    folder.mkdir()
    model = shared / "reference/tokenizers/tiny_word_60.model"
    (folder / "word.model").write_bytes(model.read_bytes())
    return folder


def test_the_published_checkpoint_comes_back_bit_by_bit(shared, tmp_path, export):
    published = open_checkpoint_dir(shared / ZIP)
    import_reference(shared / ZIP, tmp_path / "run", lambda line: None)
    found = export(tmp_path / "run", form="sparse")
    assert found.weights == published.weights == "model_best_pruned_sparse.pth"
    assert found.state_dict.keys() == published.state_dict.keys()
    nonzeros = 0
    for name, theirs in published.state_dict.items():
        ours = found.state_dict[name]
        assert type(ours) is type(theirs)
        if isinstance(theirs, SparseTensor):
            assert ours.shape == theirs.shape
            np.testing.assert_array_equal(ours.indices, theirs.indices, err_msg=name)
            np.testing.assert_array_equal(ours.values, theirs.values, err_msg=name)
            nonzeros += ours.values.size
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
    assert nonzeros == 47264
    assert found.tokenizer == published.tokenizer
    theirs = {**published.config, "vocab_size": 3000}
    assert {key: found.config[key] for key in _MODEL_KEYS if key in theirs} == {
        key: theirs[key] for key in _MODEL_KEYS if key in theirs
    }


@pytest.mark.parametrize("name", ec.FAMILIES)
def test_a_run_of_ours_comes_back(name, tmp_path, export):
    run = ec.drawn_run(tmp_path / "run", name)
    pruned = run.config.pruner.name != "none"
    has_masks = pruned and not name.startswith("acort")
    variants = [{}, {"form": "sparse"}] if pruned else [{}]
    variants += [{"masks": "binary"}, {"masks": "binary", "form": "sparse"}] if has_masks else []
    for index, options in enumerate(variants):
        folder = export(tmp_path / "run", **options)
        again = import_reference(folder.source, tmp_path / str(index), lambda line: None)
        _assert_same_trees(again.params, run.params)
        assert again.tokenizer.vocab_size == run.tokenizer.vocab_size
        assert again.tokenizer.encode(ec.CAPTIONS[0]) == run.tokenizer.encode(ec.CAPTIONS[0])
        if "masks" in options:
            _assert_same_trees(again.masks, run.masks)
        fields = {**run.config.model}
        if not (has_masks or name.startswith("up_down")):
            fields["dropout"] = 0.1  # the reference's, which has no key for it
        elif "ort" in name:
            fields["dropout"] = 0.1 / 3
        assert {**again.config.model} == fields
    assert load_run(tmp_path / "0").model.vocab_size == run.tokenizer.vocab_size


def _assert_same_trees(ours, theirs):
    ours, theirs = flatten_dict(ours), flatten_dict(theirs)
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_array_equal(ours[path], value, err_msg="/".join(path))


def test_shared_layers_are_stored_once(tmp_path, export):
    ec.drawn_run(tmp_path / "run", "acort_supermask")
    state = export(tmp_path / "run").state_dict
    layers = [state[f"model.decoder.layers.{i}.feed_forward.w_1.weight"] for i in range(6)]
    assert all(np.shares_memory(layers[0], layer) for layer in layers[:3])
    assert all(np.shares_memory(layers[3], layer) for layer in layers[3:])
    assert not np.shares_memory(layers[0], layers[3])


def test_weights_that_were_not_pruned_keep_masks_of_ones(tmp_path, export):
    run = ec.drawn_run(tmp_path / "run", "up_down_supermask")
    with run.config.unlocked():
        run.config.pruner.exclude = ("embed/.*",)
    masks = jax.tree.map(lambda m: np.float32(8.0) * m - np.float32(4.0), run.masks)
    del masks["embed"]
    ec.write_run(tmp_path / "part", run.config, run.tokenizer, run.model, run.params, masks)
    name = "embed.0.weight" + MASK
    state = export(tmp_path / "part", masks="binary").state_dict
    np.testing.assert_array_equal(state[name], np.float32(run.params["embed"]["embedding"] != 0))
    state = export(tmp_path / "part", masks="raw").state_dict
    assert (state[name] == 5.0).all()
    sparse = export(tmp_path / "part", form="sparse").state_dict
    assert isinstance(sparse["embed.0.weight"], np.ndarray)
    assert isinstance(sparse["ctx2att.weight"], SparseTensor)


def test_files_are_the_same_every_time(tmp_path):
    ec.drawn_run(tmp_path / "run", "up_down_supermask")
    for name in "ab":
        export_reference(tmp_path / "run", tmp_path / name, form="sparse", report=lambda line: None)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert [str(file) for file in files] == [
        *("config.json", "model_best_pruned_sparse.pth"),
        *("tokenizer/unigram.model", "tokenizer/unigram.vocab"),
    ]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_tokenizer_fields_are_those_the_reference_sets(shared, tmp_path):
    folder = shared / "reference/tokenizers"
    described = json.loads((folder / "tokenizers.json").read_text())["tokenizers"]
    assert len(described) == 9
    for index, entry in enumerate(described):
        model, _ = entry["files"]
        home = tmp_path / str(index)
        home.mkdir()
        (home / f"{model.split('_')[1]}.model").write_bytes((folder / model).read_bytes())
        options = {} if entry["radix_base"] is None else {"radix_base": entry["radix_base"]}
        tokenizer = make_tokenizer(entry["tokenizer"], home, **options)
        expected = {"tokenizer": entry["tokenizer"], **options, **entry["config_after"]}
        assert tokenizer_fields(tokenizer) == expected


def test_what_cannot_be_exported_is_one_clear_error(tmp_path):
    def fails(error, message, source, output="out", **options):
        with pytest.raises(error, match=message):
            export_reference(tmp_path / source, tmp_path / output, report=print, **options)
        if output == "out":
            assert not (tmp_path / output).exists()

    ec.drawn_run(tmp_path / "dense", "up_down")
    ec.drawn_run(tmp_path / "acort", "acort_supermask")
    ec.drawn_run(tmp_path / "ort", "ort_supermask")
    fails(CheckpointError, "none: no such file or folder; expected a run", "none")
    fails(CheckpointError, "dense: exists; expected a new", "ort", output="dense")
    fails(CheckpointError, "config.json: exists", "ort", output="dense/config.json")
    for options in ({"form": "sparse"}, {"masks": "binary"}, {"masks": "raw"}):
        fails(ConfigError, "pruner.name is 'none': a dense model", "dense", **options)
    for masks in ("binary", "raw"):
        fails(ConfigError, "no class with masks for 'relation_transformer'", "acort", masks=masks)
    fails(ConfigError, "'raw' keep every weight", "ort", masks="raw", form="sparse")
    fails(ConfigError, "form is 'csr'; expected one of dense, sparse", "ort", form="csr")
    fails(ConfigError, "masks is 'no'; expected one of applied", "ort", masks="no")
    (tmp_path / "ort/model.scap").write_bytes((tmp_path / "dense/model.scap").read_bytes())
    fails(CheckpointError, "not as config.json .* say: weight att_lstm/bias_hh is extra", "ort")
    assert not list(tmp_path.glob(".out*"))


def test_raw_masks_need_checkpoints(shared, tmp_path):
    import_reference(shared / ZIP, tmp_path / "run", lambda line: None)
    with pytest.raises(CheckpointError, match="run: no checkpoints there, which masks 'raw'"):
        export_reference(tmp_path / "run", tmp_path / "out", masks="raw")


def test_soft_attention_has_no_counterpart(tmp_path):
    run = ec.drawn_run(tmp_path, "up_down")
    config = default_config("soft_attention")
    other = type(run)(config, run.tokenizer, run.model, run.params, {})
    with pytest.raises(ConfigError, match="'soft_attention', which the reference does not have"):
        checkpoint_config(other)


def test_the_command_exports(tmp_path):
    repo = pathlib.Path(__file__).parents[2]
    run = ec.drawn_run(tmp_path / "run", "ort_supermask")
    paths = [f"--input={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]
    flags = ["--target=reference", *paths, "--form=sparse", "--masks=binary"]
    command = [sys.executable, "launch/convert.py", *flags]
    done = subprocess.run(command, cwd=repo, check=True, capture_output=True, text=True)
    assert "relation_transformer_prune: " in done.stdout
    assert "model_best_bin_mask_sparse.pth" in done.stdout
    folder = open_checkpoint_dir(tmp_path / "out")
    _, variables = load_state_dict(folder.dense_state_dict(), folder.config)
    _assert_same_trees(variables["params"], run.params)
    refused = subprocess.run(command, cwd=repo, check=False, capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        f"error: {tmp_path / 'out'}: exists; expected a new or empty folder to write to"
    ]
    both = [*command[:2], *paths, "--source=reference", "--target=reference"]
    both = subprocess.run(both, cwd=repo, check=False, capture_output=True, text=True)
    assert both.returncode != 0 and "a run as --source or as" in both.stdout + both.stderr
