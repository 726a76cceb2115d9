import pytest
from ml_collections import ConfigDict

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import PRUNERS, make_pruner, pruner_fields


@pytest.mark.parametrize("name", sorted(PRUNERS))
def test_every_name_builds_from_its_own_fields(name):
    fields = pruner_fields(name)
    assert not {"name", "total_steps", "steps_per_epoch", "criterion"} & fields.keys()
    pruner = make_pruner(ConfigDict({"name": name, **fields}), total_steps=100, steps_per_epoch=10)
    assert pruner == make_pruner({"name": name}, total_steps=100, steps_per_epoch=10)
    assert (pruner.name, pruner.total_steps, pruner.steps_per_epoch) == (name, 100, 10)


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
