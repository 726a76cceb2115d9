"""State dicts and configs of the reference: round trips, versions, and what is refused."""

import jax
import numpy as np
import pytest
import reference_cases as cases

from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.interop.reference import (
    export_state_dict,
    load_state_dict,
    model_config,
    upgrade_config,
)
from sparsecap_jax.torch_files import SparseTensor

FILES = ("", "_logit2", "_prune_supermask", "_prune_mag_blind")


@pytest.mark.parametrize("name", FILES)
def test_export_undoes_load(golden, name):
    case = golden(f"arch/up_down_lstm{name}.npz")
    state, config = cases.tensors(case, "param/"), cases.config_of(case)
    _, variables = load_state_dict(state, config)
    again = export_state_dict(variables, config)
    assert again.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(again[key], value)
    assert bool(variables["masks"]) == ("prune" in name)


def test_other_forms_of_state_dicts(golden, caplog):
    """Sparse tensors, a dict around it, the prefix of DataParallel: the same variables."""
    case = golden("arch/up_down_lstm_prune_supermask.npz")
    state, config = cases.tensors(case, "param/"), cases.config_of(case)
    _, expected = load_state_dict(state, config)
    assert not caplog.records
    sparse = {k: SparseTensor.from_dense(v) if v.ndim == 2 else v for k, v in state.items()}
    parallel = {f"module.{k}": v for k, v in sparse.items()}
    for form, said in (
        (sparse, []),
        ({"epoch": 3, "state_dict": state, "optimizer": {}}, ["took the tensors of its"]),
        (parallel, ["took 'module.' off the name"]),
        ({"model": parallel}, ["took the tensors of its 'model'", "took 'module.' off"]),
    ):
        caplog.clear()
        _, found = load_state_dict(form, config)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        assert len(caplog.messages) == len(said)
        assert all(part in text for part, text in zip(said, caplog.messages, strict=True))
    for bad in ({}, "x", ["x"]):
        with pytest.raises(CheckpointError, match=r"'extra' is a \w+, no tensor of numbers"):
            load_state_dict({**state, "extra": bad}, config)
    half = {f"module.{k}" if "core" in k else k: v for k, v in state.items()}
    with pytest.raises(CheckpointError, match="is missing"):
        load_state_dict(half, config)


def test_old_versions_are_brought_up(golden):
    config = cases.config_of(golden("arch/up_down_lstm.npz"))
    fields = model_config(config)
    assert fields["vocab_size"] == 50
    old = {k: v for k, v in config.items() if not k.startswith("share_")}
    assert model_config({**old, "version": "0.4.0"}) == fields
    assert model_config({**old, "version": "0.2.0", "vocab_size": 49}) == fields
    assert model_config({**old, "vocab_size": 49}) == fields  # without a version: 0.1.0
    transformer = {
        "caption_model": "relation_transformer",
        "version": "0.2.0",
        "vocab_size": 9,
        "input_encoding_size": 16,
        "rnn_size": 32,
        "drop_prob_lm": 0.3,
        "box_trigonometric_embedding": True,
    }
    upgraded = upgrade_config(transformer)
    assert (upgraded["d_model"], upgraded["dim_feedforward"]) == (16, 32)
    assert (upgraded["drop_prob_src"], upgraded["num_heads"]) == (0.3, 8)
    assert upgraded["no_box_trigonometric_embedding"] is False
    assert upgraded["share_layer_encoder"] is None


def test_faults_name_the_tensor(golden):
    case = golden("arch/up_down_lstm.npz")
    state, config = cases.tensors(case, "param/"), cases.config_of(case)
    name = "core.att_lstm.weight_ih"
    faults = [
        ({k: v for k, v in state.items() if k != name}, f"'{name}' is missing"),
        (
            {**state, name: state[name][:, :-1]},
            r"shape \(128, 87\); the config expects \(128, 88\)",
        ),
        ({**state, name: state[name] * np.nan}, f"'{name}' has values that are not finite"),
        ({**state, "extra.weight": state[name]}, r"1 tensors no layer of ours has: extra\.weight"),
    ]
    for broken, message in faults:
        with pytest.raises(CheckpointError, match=message):
            load_state_dict(broken, config)
    with pytest.raises(ConfigError, match="caption_model is missing"):
        load_state_dict(state, {})
    with pytest.raises(ConfigError, match="'nothing' is none of"):
        load_state_dict(state, {**config, "caption_model": "nothing"})
    with pytest.raises(ConfigError, match="version 'x'"):
        load_state_dict(state, {**config, "version": "x"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_layers": 2147483648},
            "model.num_layers is 2147483648; expected at least 1 and at m",
        ),
        ({"num_heads": 10**9}, "model.num_heads is 1000000000; expected at least 1 and at most 64"),
        (
            {"d_model": 2**40},
            "model.d_model is 1099511627776; expected at least 2 and at most 16384",
        ),
        ({"num_layers": "x"}, "model.num_layers is 'x'"),
        ({"num_layers": None}, "model.num_layers is None"),
        ({"share_layer_encoder": [0] * 10**6}, "expected at most 64 layer numbers"),
        ({"share_layer_encoder": 7}, "model.share_layer_encoder is 7"),
        ({"version": "0.1.0", "vocab_size": []}, r"vocab_size is \[\]; expected a whole number"),
        ({"version": "9" * 5000 + ".1.1"}, "version '999.*; expected one like"),
    ],
)
def test_sizes_in_configs_are_checked_before_a_model_is_built(golden, changes, message):
    config = {**cases.config_of(golden("arch/transformer.npz")), **changes}
    with pytest.raises(ConfigError, match=message) as caught:
        load_state_dict({}, config)
    assert str(caught.value).startswith("reference config.json: ")
    config.pop("d_model", None)
    with pytest.raises(ConfigError, match=r"reference config\.json: "):
        load_state_dict({}, config)
