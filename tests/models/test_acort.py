"""ACORT: shared projections and layers, the papers' sizes, and how they map to the reference."""

import json

import jax
import numpy as np
import pytest
import reference_cases as cases
import transformer_cases as tc
from flax.traverse_util import flatten_dict

from sparsecap_jax.interop.names import FAMILIES
from sparsecap_jax.interop.reference import export_state_dict
from sparsecap_jax.models import abstract_params, count_params, make_model

RADIX_VOCABULARY = 768 + 3  # base 768, PAD, BOS and EOS
TWO_LAYERS, ONE_LAYER = (0, 0, 0, 1, 1, 1), (0, 0, 0, 0, 0, 0)
BASE, SMALL, XSMALL = (512, 2048), (256, 1024), (104, 416)


@pytest.mark.parametrize(
    "sizes, share, order, expected",
    [
        (BASE, "kv", TWO_LAYERS, 14_979_347),
        (BASE, "kv", ONE_LAYER, 8_410_379),
        (SMALL, "kv", TWO_LAYERS, 4_213_779),
        (SMALL, "kv", ONE_LAYER, 2_567_435),
        (XSMALL, "", (), 4_143_897),
    ],
    ids=["base", "base-AL", "small", "small-AL", "ort-xsmall"],
)
def test_paper_sizes_have_the_papers_number_of_parameters(sizes, share, order, expected):
    fields = {"share_attention_encoder": share, "share_attention_decoder": share}
    fields |= {"share_layer_encoder": order, "share_layer_decoder": order}
    fields |= {"d_model": sizes[0], "ff_size": sizes[1], "max_seq_length": 26}
    vocab_size = RADIX_VOCABULARY if order else 10001
    model = make_model({"name": "relation_transformer", "vocab_size": vocab_size, **fields})
    assert count_params(model) == expected


def test_shared_layers_are_one_set_of_params():
    order = (0, 1, 1, 0)
    shared = make_model({**_SMALL, "share_layer_encoder": order, "share_layer_decoder": order})
    own = make_model({**_SMALL, "num_layers": 2})
    assert _shapes(shared) == _shapes(own)


def test_shared_projections_are_left_out():
    full, kv, qk = (
        set(
            _shapes(
                make_model({**_SMALL, "share_attention_encoder": s, "share_attention_decoder": s})
            )
        )
        for s in ("", "kv", "qk")
    )
    assert {path[2] for path in full - kv} == {"value"} and not kv - full
    assert {path[2] for path in full - qk} == {"key"} and not qk - full
    assert len(full - kv) == len(full - qk) == 2 * 3 * 2  # weight, bias; 3 attentions; 2 layers


def test_every_application_of_a_shared_layer_has_its_own_cache():
    order = (0, 0, 1, 1, 0)
    for share, leaves in (("", 2 * 5), ("kv", 5), ("qk", 2 * 5)):
        model, params, regions, _ = tc.small_model(
            share_layer_decoder=order, share_attention_decoder=share
        )
        context = tc.apply(model, params, regions, method="encode")
        assert len(context["cross"]) == 2  # keys and values of regions once per set of weights
        carry = model.apply({}, context, 1, method="init_carry")
        assert len(jax.tree.leaves(carry["cache"])) == leaves


def test_sharing_equals_copies_of_the_weights():
    order = (0, 1, 0)
    share = {"share_layer_encoder": order, "share_layer_decoder": order}
    model, params, regions, tokens = tc.small_model("relation_transformer", **share)
    plain = model.clone(num_layers=3, share_layer_encoder=(), share_layer_decoder=())
    copied = {k: v for k, v in params.items() if "_layers_" not in k}
    for side in ("encoder", "decoder"):
        for position, layer in enumerate(order):
            copied[f"{side}_layers_{position}"] = params[f"{side}_layers_{layer}"]
    expected = tc.apply(plain, copied, regions, tokens)
    ours = tc.apply(model, params, regions, tokens)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("name", tc.ALL)
def test_state_dicts_export_as_they_were(name, golden):
    case = golden(f"arch/{name}.npz")
    theirs = cases.tensors(case, "param/")
    ours = export_state_dict(cases.load(case)[1], cases.config_of(case))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)


@pytest.mark.parametrize(
    "prefix, name", [("core", "transformer"), ("model", "relation_transformer")]
)
def test_the_references_buffer_of_positions(prefix, name):
    buffers = FAMILIES[name].buffers({"caption_model": name, "d_model": 6})
    ((key, table),) = buffers.items()
    assert key == f"{prefix}.tgt_embed.1.pe"
    assert table.shape == (1, 5000, 6) and table.dtype == np.float32
    angles = 4999 / 10000 ** (np.array([0, 2, 4]) / 6)
    np.testing.assert_allclose(table[0, 4999, ::2], np.sin(angles), atol=1e-6)
    np.testing.assert_allclose(table[0, 4999, 1::2], np.cos(angles), atol=1e-6)


def test_config_keys_of_the_reference(golden):
    config = json.loads(str(golden("arch/transformer_acort_mixed.npz")["config_json"]))
    assert FAMILIES["transformer"].model_fields(config) == {
        "vocab_size": 50,
        "feature_size": 40,
        "d_model": 32,
        "ff_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "dropout": 0.1,
        "source_dropout": 0.5,
        "max_seq_length": 10,
        "share_attention_encoder": "kv",
        "share_layer_encoder": (0, 1, 1, 0),
        "share_attention_decoder": "qk",
        "share_layer_decoder": (0, 0, 1, 1),
    }
    relation = {**config, "caption_model": "relation_transformer"}
    assert FAMILIES["relation_transformer"].model_fields(relation)["box_embedding"] == "trig"
    pruned = {**config, "caption_model": "relation_transformer_prune"}
    fields = FAMILIES["relation_transformer"].model_fields(pruned)
    assert fields["dropout"] == pytest.approx(0.1 / 3)
    # The reference's pruned model takes no notice of sharing.
    assert fields["share_attention_encoder"] == "" and fields["share_layer_encoder"] == ()


_SMALL = {
    "name": "relation_transformer",
    "vocab_size": 11,
    "d_model": 16,
    "ff_size": 24,
    "num_layers": 2,
    "num_heads": 4,
}


def _shapes(model):
    return {path: leaf.shape for path, leaf in flatten_dict(abstract_params(model)).items()}
