"""Placement on a mesh: the numbers of one device, in parts of the expected size."""

import collections
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from sharded_cases import (
    assert_same,
    captioner,
    cross_entropy,
    make_batch,
    make_parts,
    self_critical,
    take_steps,
)

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.paths import by_path, show
from sparsecap_jax.settings import build
from sparsecap_jax.training.sharding import MeshConfig, Placement, make_mesh
from sparsecap_jax.training.steps import make_train_step

BOTH = (r"logit.*/kernel=data,model", r"logit.*/bias=model")
# Model, pruner, devices, devices along `model`, recipe, rules.
CASES = [
    ("up_down", "supermask", 8, 1, "fsdp", ()),
    ("relation_transformer", "supermask", 8, 2, "vocabulary", ()),
    ("up_down", "mag_grad_blind", 8, 4, "vocabulary", ()),
    ("relation_transformer", "mag_grad_blind", 8, 4, "fsdp", BOTH),
]


@pytest.mark.parametrize(("name", "pruner_name", "devices", "size", "recipe", "rules"), CASES)
def test_a_mesh_gives_the_numbers_of_one_device(name, pruner_name, devices, size, recipe, rules):
    model, pruner, tx, state = make_parts(name, pruner_name)
    mesh = make_mesh(devices, 8, size)
    placement = Placement.of(mesh, MeshConfig(model=size, sharding=recipe, rules=rules))
    shards = mesh.shape["data"]
    several = take_steps(cross_entropy(model, shards), pruner, tx, state, placement)
    one = take_steps(cross_entropy(model), pruner, tx, state, Placement(make_mesh(1, 8)))
    assert_same(one, several)
    first, last = (states[1][i].prune.masks for states in (one,) for i in (0, -1))
    moved = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (first, last)), strict=True)]
    assert any(moved)


def test_a_self_critical_step_on_a_mesh(tmp_path):
    model, pruner, tx, state = make_parts("up_down", "none", scale=1.5)
    objective = self_critical(model, tmp_path)
    rules = (*BOTH, ".*=largest")
    results = [
        take_steps(objective, pruner, tx, state, placement, steps=1)
        for placement in (Placement(make_mesh(1, 8)), Placement(make_mesh(8, 8, 2), rules))
    ]
    assert results[0][2][0] != 0
    assert_same(*results)


def test_every_part_of_the_state_lies_where_its_parameter_does():
    model, pruner, tx, state = make_parts("up_down", "supermask")
    placement = Placement.of(make_mesh(8, 8), MeshConfig(sharding="fsdp"))
    after, _, _ = take_steps(cross_entropy(model, 8), pruner, tx, state, placement, steps=1)
    specs = {path: leaf.sharding.spec for path, leaf in by_path(after.params).items()}
    assert specs["logit_0", "kernel"] == PartitionSpec("data", None)  # 16 x 16
    assert specs["att_lstm", "bias_ih"] == PartitionSpec("data")
    for group, tree in (("params", after.params), ("masks", after.prune.masks)):
        moments = next(part for part in after.opt_state[group] if hasattr(part, "mu"))
        for path, leaf in by_path(tree).items():
            for part in (leaf, by_path(moments.mu)[path], by_path(moments.nu)[path]):
                assert part.sharding.spec == specs[path], path
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(after.params))
    whole = sum(leaf.size for leaf in jax.tree.leaves(after.params))
    leaves = by_path(after.params)
    odd = sum(leaf.size for path, leaf in leaves.items() if "data" not in specs[path])
    assert held == odd + (whole - odd) // 8 < whole / 6


def test_rules_are_read_in_order():
    _, params = captioner("up_down")
    rules = ("logit_0/kernel=-,data+model", "att.*/kernel_ih=model,-", ".*/kernel.*=largest")
    specs = Placement(make_mesh(8, 8, 2), rules).specs(params)
    named = {show(path): spec for path, spec in specs.items()}
    assert named["logit_0/kernel"] == PartitionSpec(None, ("data", "model"))
    assert named["att_lstm/kernel_ih"] == PartitionSpec(("model",), None)
    assert params["lang_lstm"]["kernel_ih"].shape == (32, 64)
    assert named["lang_lstm/kernel_ih"] == PartitionSpec(None, "data")
    assert named["logit_0/bias"] == PartitionSpec()


FAULTS = [
    ("logit_0/kernel", r"'logit_0/kernel' is not PATTERN=AXES"),
    ("=data", r"'=data' is not PATTERN=AXES"),
    ("a=-,modle", r"'a=-,modle' has axis 'modle'; did you mean 'model'"),
    ("a=data,data", r"'a=data,data' names an axis twice"),
    ("(=data", r"'\(' is no regex"),
]


@pytest.mark.parametrize(("rule", "message"), FAULTS)
def test_a_rule_that_is_no_rule(rule, message):
    with pytest.raises(ConfigError, match=rf"^mesh\.rules: {message}"):
        build(MeshConfig, {"rules": (rule,)}, "mesh")


MISFITS = [
    ("logits/kernel=data", r"config\.mesh\.rules: 'logits/kernel' matches none of the paths"),
    ("logit_0/bias=-,data", r"has 2 dimensions, but logit_0/bias has shape \(16,\)"),
    ("fc_embed/kernel=data", "splits fc_embed/kernel of shape .* into 4 parts"),
]


@pytest.mark.parametrize(("rule", "message"), MISFITS)
def test_a_rule_that_does_not_fit(rule, message):
    _, params = captioner("up_down")
    with pytest.raises(ConfigError, match=message):
        Placement(make_mesh(8, 8, 2), (rule,)).specs(params)


def test_a_mesh_that_does_not_divide():
    message = "config.mesh.model is 3; expected a divisor of 8 devices (config.train.devices)"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        make_mesh(8, 8, 3)
    with pytest.raises(ConfigError, match=r"data\.batch_size is 6; expected a multiple of 4"):
        make_mesh(8, 6, 2)


def test_a_mesh_of_one_device_costs_nothing(monkeypatch):
    """Its program has the operations of one that no mesh was given."""
    programs, compiled, jit = [], jax.stages.Lowered.compile, jax.jit

    def compile_(self, *args, **kwargs):
        programs.append(compiled(self, *args, **kwargs))
        return programs[-1]

    model, pruner, tx, state = make_parts("up_down", "supermask")
    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_)
    placement = Placement(make_mesh(1, 8), BOTH)
    take_steps(cross_entropy(model), pruner, tx, state, placement, steps=1)

    def unplaced(function, in_shardings=None, out_shardings=None, **options):
        return jit(function, **options)

    monkeypatch.setattr(jax, "jit", unplaced)
    step = make_train_step(cross_entropy(model), pruner, tx, placement.mesh)
    batches = jax.tree.map(lambda leaf: leaf[None], make_batch())
    step(state, *cross_entropy(model).inputs(batches, 0))
    operations = [
        collections.Counter(re.findall(r" = \S+ ([\w-]+)\(", program.as_text()))
        for program in programs
    ]
    assert len(programs) == 2
    assert operations[0] == operations[1]
    assert sum(operations[0].values()) > 100
