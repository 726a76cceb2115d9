"""Every row of the checkpoint release imports, from its config with random weights."""

import functools
import json
import math

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from published_configs import (
    ACORT,
    ROWS,
    TINY3,
    transformer_shapes,
    up_down_shapes,
    write_folder,
)

from sparsecap_jax import models
from sparsecap_jax.commands.convert import import_reference
from sparsecap_jax.interop import reference
from sparsecap_jax.runs import directory

# Reference names of some tensors, and where they go.
PLACES = {
    "up_down": {
        "embed.0.weight": "embed/embedding",
        "logit.weight": "logit_0/kernel",
        "core.lang_lstm.weight_hh": "lang_lstm/kernel_hh",
        "core.attention.alpha_net.weight": "attention/alpha/kernel",
    },
    "relation_transformer": {
        "att_embed.0.weight": "src_embed/kernel",
        "model.tgt_embed.0.lut.weight": "tgt_embed/embedding",
        "model.generator.proj.weight": "logits/kernel",
        "model.encoder.layers.0.self_attn.WGs.7.weight": (
            "encoder_layers_0/geometry/head_7/kernel"
        ),
    },
}


@pytest.fixture(autouse=True, scope="module")
def shapes():
    """Shapes of a model, worked out once for rows of the same one."""
    with pytest.MonkeyPatch.context() as patch:
        cached = functools.cache(models.abstract_params)
        for module in (reference, directory):
            patch.setattr(module, "abstract_params", cached)
        yield cached


def test_the_release_has_sixteen_checkpoints_for_pytorch():
    assert len({row.name for row in ROWS}) == len(ROWS) == 16


def test_names_and_shapes_are_those_of_the_published_files(shared):
    contents = shared / "reference/checkpoint/tiny3_xe_contents.json"
    tensors = json.loads(contents.read_text())["tensors"]
    found = {name: tuple(tensor["shape"]) for name, tensor in tensors.items()}
    assert up_down_shapes(TINY3) == found
    # model_params.json of ACORT-base: 14,979,347 weights, those of layers 0 and 3 alone.
    shapes = transformer_shapes(ACORT)
    once = {name for name in shapes if not any(f".{i}." in name[:24] for i in (1, 2, 4, 5))}
    assert sum(math.prod(shapes[name]) for name in once) == 14_979_347


@pytest.mark.parametrize("row", [row for row in ROWS if row.weights], ids=lambda row: row.name)
def test_the_model_has_the_published_number_of_weights(row, shapes):
    leaves = flatten_dict(shapes(models.make_model(reference.model_config(row.config)))).values()
    count = sum(math.prod(leaf.shape) for leaf in leaves)
    published = row.weights
    assert count == published if row.digits is None else round(count / 1e6, 1) == published / 1e6


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_checkpoint_of_its_config_imports(row, tmp_path):
    newest, lines = reference.upgrade_config(row.small_config()), []
    state = write_folder(tmp_path / "published", row, newest)
    import_reference(tmp_path / "published", tmp_path / "run", lines.append)
    assert row.config["caption_model"] in lines[0]
    run = directory.load_run(tmp_path / "run")
    assert run.config.tokenizer.name == row.config["tokenizer"]
    assert run.config.max_seq_length == row.config["max_seq_length"]
    params = flatten_dict(run.params, sep="/")
    kinds = PLACES[run.config.model.name]
    for name, path in kinds.items():
        value = state[name] if path.endswith("embedding") else state[name].T
        np.testing.assert_array_equal(params[path], value, err_msg=name)
    count = len({id(value) for value in state.values()})
    assert len(params) == count
    is_pruned = "prune_type" in row.config
    assert run.config.pruner.name == (row.config["prune_type"] if is_pruned else "none")
    if is_pruned:
        assert run.config.pruner.sparsity == row.config["prune_sparsity_target"]
        masks = flatten_dict(run.masks, sep="/")
        for path in kinds.values():
            np.testing.assert_array_equal(masks[path], params[path] != 0)
    else:
        assert not run.masks
    if row.config["tokenizer"] == "radix":
        assert run.config.tokenizer.radix_base == 768
        assert run.config.model.share_layer_encoder == (0, 0, 0, 1, 1, 1)
        assert run.config.model.share_attention_decoder == "kv"
