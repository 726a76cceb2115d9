import dataclasses
import sys
import types
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import PRUNERS, Pruner, Ranked, make_pruner, pruner_fields
from sparsecap_jax.settings import Registry, use_plugin

COMMON = "sparsity include exclude freeze overrides hard_zero"
STRUCTURE = COMMON + " sparsity_type sparsity_axis"
GRADUAL = STRUCTURE + " initial_sparsity start_step frequency events"
SCHEDULED = GRADUAL + " distribution when"
STEADY = STRUCTURE + " start_step frequency events distribution"
REWIRED = STEADY + " drop_fraction"
FIELDS = {
    "none": COMMON,
    "supermask": COMMON + " init_value sparsity_weight weight_scale bypass_sigmoid_grad",
    **dict.fromkeys(("mask_freeze", "lottery_mask_freeze"), COMMON),
    **dict.fromkeys(("mag_blind", "mag_uniform", "mag_dist"), STRUCTURE),
    **dict.fromkeys(("lottery_mag_blind", "lottery_mag_uniform", "lottery_mag_dist"), STRUCTURE),
    **dict.fromkeys(("mag_grad_blind", "mag_grad_uniform", "mag_grad_dist"), GRADUAL),
    "snip": STRUCTURE + " num_batches reference_signed",
    "magnitude": SCHEDULED + " normalize",
    "global_magnitude": GRADUAL + " when",
    "saliency": SCHEDULED + " normalize num_batches",
    "global_saliency": GRADUAL + " when num_batches",
    "random": SCHEDULED,
    **dict.fromkeys(("magnitude_ste", "random_ste"), STEADY),
    "acdc": STRUCTURE + " start_step distribution sparse_steps dense_steps final_step",
    "adam_fisher": SCHEDULED,
    "movement": COMMON + " distribution initial_sparsity start_step frequency events rank_every",
    "soft_movement": COMMON + " threshold sparsity_weight",
    "static_sparse": STRUCTURE + " distribution",
    **dict.fromkeys(("set", "rigl"), REWIRED),
}


@pytest.mark.parametrize("name", sorted(PRUNERS))
def test_every_name_builds_from_its_own_fields(name):
    fields = pruner_fields(name)
    assert not {"name", "total_steps", "steps_per_epoch", "criterion"} & fields.keys()
    pruner = make_pruner(ConfigDict({"name": name, **fields}), total_steps=100, steps_per_epoch=10)
    assert pruner == make_pruner({"name": name}, total_steps=100, steps_per_epoch=10)
    assert (pruner.name, pruner.total_steps, pruner.steps_per_epoch) == (name, 100, 10)


@pytest.mark.parametrize("name", sorted(PRUNERS))
def test_config_fields_and_their_defaults(name):
    fields = pruner_fields(name)
    assert sorted(fields) == sorted(FIELDS[name].split())
    usual = {"sparsity": 0.8, "hard_zero": False, "sparsity_type": "unstructured"}
    usual |= {"sparsity_axis": -1, "initial_sparsity": 0.0, "distribution": "uniform"}
    usual |= {"when": "polynomial", "drop_fraction": 0.1, "num_batches": 1, "init_value": 5.0}
    usual |= {"weight_scale": 0.5, "normalize": False, "reference_signed": False}
    usual |= dict.fromkeys(("include", "exclude", "freeze", "overrides"), ())
    usual |= dict.fromkeys(("start_step", "frequency", "events", "sparsity_weight"), None)
    usual |= {"bypass_sigmoid_grad": False}
    usual |= dict.fromkeys(("sparse_steps", "dense_steps", "final_step"), None)
    usual |= {"rank_every": 1, "threshold": 0.1}
    if name in ("none", "soft_movement") or "mask_freeze" in name:
        usual["sparsity"] = 0.0
    if name == "soft_movement":
        usual["sparsity_weight"] = 10.0
    if name in ("static_sparse", "set", "rigl", "acdc"):
        usual["hard_zero"] = True
    if name in ("magnitude_ste", "random_ste"):
        usual["frequency"] = 1
    assert fields == {key: usual[key] for key in fields}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "supermsk"}, r"pruner.name is 'supermsk'; did you mean 'supermask'\?"),
        ({}, r"pruner.name is None; .*valid: .*supermask"),
        ({"name": "snip", "sparsty": 0.5}, r"pruner.sparsty: unknown key; did you mean 'sparsity'"),
        ({"name": "mag_blind", "criterion": "dist"}, "pruner.criterion: unknown key"),
        ({"name": "mag_blind", "total_steps": 3}, "pruner.total_steps: unknown key"),
        ({"name": "snip", "sparsity": "0.5"}, "pruner.sparsity is '0.5'; expected float"),
        ({"name": "snip", "sparsity": True}, "pruner.sparsity is True; expected float"),
        ({"name": "snip", "sparsity": float("nan")}, "pruner.sparsity is nan; expected float"),
        ({"name": "snip", "sparsity": -0.1}, "pruner.sparsity is -0.1; expected at least 0"),
        ({"name": "snip", "num_batches": 1.5}, "pruner.num_batches is 1.5; expected int"),
        ({"name": "snip", "num_batches": 0}, "pruner.num_batches is 0; expected at least 1"),
        ({"name": "snip", "include": [1]}, r"pruner.include is \[1\]; expected a list of str"),
        ({"name": "snip", "reference_signed": 1}, "pruner.reference_signed is 1; expected bool"),
        ({"name": "none", "sparsity": 0.5}, "pruner.sparsity is 0.5, but pruner.name is 'none'"),
        ({"name": "supermask", "weight_scale": -1}, "pruner.weight_scale is -1.0; expected at"),
        (
            {"name": "mag_grad_blind", "sparsity": 0.5, "initial_sparsity": 0.6},
            "pruner.initial_sparsity is 0.6; expected at least 0 and at most 0.5",
        ),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        make_pruner(config, total_steps=100)


def test_total_steps_must_be_positive():
    with pytest.raises(ConfigError, match="total_steps is 0"):
        make_pruner({"name": "supermask"}, total_steps=0)


def test_values_are_converted():
    pruner = make_pruner(
        {"name": "supermask", "sparsity": 0, "include": "a/.*", "exclude": ["b", "c"]},
        total_steps=1,
    )
    assert (pruner.sparsity, pruner.include, pruner.exclude) == (0.0, ("a/.*",), ("b", "c"))
    assert isinstance(pruner.sparsity, float)


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("snip", "sparsity", 1.0, "sparsity is 1.0; expected at least 0 and below 1"),
        ("mask_freeze", "sparsity", -0.5, "sparsity is -0.5; expected at least 0 and below 1"),
        ("snip", "num_batches", 0, "num_batches is 0; expected at least 1"),
        ("supermask", "sparsity_weight", -1.0, "sparsity_weight is -1.0; expected at least 0"),
        ("rigl", "drop_fraction", 1.5, "drop_fraction is 1.5; expected at least 0 and at most 1"),
        ("magnitude", "frequency", 0, "frequency is 0; expected at least 1"),
    ],
)
def test_direct_construction_refuses_what_a_config_may_not_have(name, field, value, message):
    pruner = make_pruner({"name": name}, total_steps=10)
    with pytest.raises(ConfigError, match=rf"pruner\.{message}"):
        dataclasses.replace(pruner, **{field: value})


def test_every_pruner_is_at_most_two_classes_below_the_base():
    for name in PRUNERS:
        owner = type(make_pruner({"name": name}, total_steps=10))
        assert [c for c in owner.__mro__ if issubclass(c, Pruner)].index(Pruner) <= 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Largest(Ranked):
    """Prunes the largest weights, to a power that does not matter."""

    power: float = 2.0

    def scores(self, state, weights, grads, event):
        return [-(jnp.abs(weight) ** self.power) for weight in weights]


@pytest.fixture
def registry(monkeypatch):
    """The registry, in a copy that the test may change."""
    copy = Registry(PRUNERS.field, PRUNERS)
    monkeypatch.setattr("sparsecap_jax.pruning.PRUNERS", copy)
    return copy


def test_a_method_of_ones_own_is_one_small_class(registry):
    registry.register("largest", Largest)
    registry.register("largest_before", partial(Largest, when="before", distribution="global"))
    params = {"a": {"kernel": jnp.array([[1.0, -4.0, 3.0, 2.0]], jnp.float32)}}
    fields = {"sparsity": 0.5, "start_step": 2, "frequency": 2, "events": 1}
    pruner = make_pruner({"name": "largest", **fields}, total_steps=8)
    state, kept = pruner.init(jax.random.key(0), params), []
    for step in range(6):
        state = pruner.update(state, params, None, jnp.int32(step))
        kept.append(state.masks["a"]["kernel"].tolist())
    assert kept == [[[1, 1, 1, 1]]] * 4 + [[[1, 0, 0, 1]]] * 2
    assert "power" in pruner_fields("largest_before")
    assert "when" not in pruner_fields("largest_before")
    before = make_pruner({"name": "largest_before", "sparsity": 0.25}, total_steps=8)
    state = before.prepare(before.init(jax.random.key(0), params), params)
    assert state.masks["a"]["kernel"].tolist() == [[1, 0, 1, 1]]
    with pytest.raises(ConfigError, match=r"pruner.powr: unknown key; did you mean 'power'"):
        make_pruner({"name": "largest", "powr": 1.0}, total_steps=8)


def test_a_method_of_a_plugin(monkeypatch):
    module = types.ModuleType("pruners_of_ones_own")
    module.Largest, module.number = Largest, 3
    monkeypatch.setattr(Largest, "__module__", module.__name__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(ConfigError, match="add --plugin=pruners_of_ones_own"):
        make_pruner({"name": "pruners_of_ones_own:Largest"}, total_steps=8)
    monkeypatch.setattr("sparsecap_jax.settings._plugins", set())
    use_plugin(module.__name__)
    pruner = make_pruner({"name": "pruners_of_ones_own:Largest", "power": 3}, total_steps=8)
    assert (type(pruner), pruner.power) == (Largest, 3.0)
    with pytest.raises(ConfigError, match="pruners_of_ones_own defines no 'number'"):
        make_pruner({"name": "pruners_of_ones_own:number"}, total_steps=8)


@pytest.mark.parametrize("entry", [dict, partial(dict, a=1), lambda: None, Ranked])
def test_entries_that_are_no_pruners_are_refused(registry, entry):
    registry.register("odd", entry)
    with pytest.raises(ConfigError, match=r"pruner.name is 'odd', which is .*; expected a sub"):
        make_pruner({"name": "odd"}, total_steps=8)
    with pytest.raises(ConfigError, match="expected a subclass of Pruner"):
        pruner_fields("odd")
