"""Every pruner on every kind of parameters: masks and steps are those of a nested dict."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import (
    PRUNERS,
    apply_masks,
    by_path,
    finalize,
    make_pruner,
    pack,
    sparse_step,
    sparsity,
    summarize,
    unpack,
)
from sparsecap_jax.pruning.paths import select, show

RNG = np.random.default_rng(0)
WEIGHTS = [RNG.normal(size=shape).astype(np.float32) for shape in ((6, 8), (8,), (8, 4), (4,))]
X = RNG.normal(size=(16, 6)).astype(np.float32)
Y = RNG.normal(size=(16, 4)).astype(np.float32)
DENSE = ("none", "mask_freeze", "lottery_mask_freeze")
needs_equinox = pytest.mark.skipif(
    importlib.util.find_spec("equinox") is None,
    reason="equinox is not installed (setup.cfg, extra `test`)",
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: jax.Array
    bias: jax.Array
    note: None = None


def as_dict(first, bias, second, last):
    return {"a": {"kernel": first, "bias": bias}, "b": {"kernel": second, "bias": last}}


def as_nnx(first, bias, second, last):
    model = nnx.Sequential(nnx.Linear(6, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 4, rngs=nnx.Rngs(0)))
    for layer, kernel, vector in zip(model.layers, (first, second), (bias, last), strict=True):
        layer.kernel[...], layer.bias[...] = kernel, vector
    return nnx.state(model)


def as_equinox(first, bias, second, last):
    import equinox as eqx

    model = eqx.nn.MLP(6, 4, 8, 1, key=jax.random.key(0))

    def leaves(model):
        return [leaf for layer in model.layers for leaf in (layer.weight, layer.bias)]

    # Weights are [out, in] there.
    arrays = [jnp.asarray(leaf) for leaf in (first.T, bias, second.T, last)]
    model = eqx.tree_at(leaves, model, arrays)
    return eqx.partition(model, eqx.is_inexact_array)[0]


KINDS = {
    "dict": as_dict,
    "frozen": lambda *leaves: FrozenDict(as_dict(*leaves)),
    "dataclasses": lambda a, b, c, d: [Layer(a, b), {"x": (None, Layer(c, d))}],
    "lists": lambda a, b, c, d: ([a, b], [c, d]),
    "boxed": lambda a, b, c, d: as_dict(nn.Partitioned(a, (None, None)), b, c, d),
    "ints": lambda a, b, c, d: {0: {"kernel": {0: a}, "b": b}, 1: {"w_1": c, "b": d}},
    "nnx": as_nnx,
    "equinox": as_equinox,
}
KIND = pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=needs_equinox if k == "equinox" else ()) for k in KINDS]
)


def kernels(tree):
    """The two kernels, or their masks, as `[in, out]`."""
    found = [np.asarray(leaf) for leaf in by_path(tree).values() if np.ndim(leaf) == 2]
    return [leaf if leaf.shape in ((6, 8), (8, 4)) else leaf.T for leaf in found]


def loss(params, batch, rng):
    first, second = (leaf for leaf in by_path(params).values() if leaf.ndim == 2)
    first, second = (w if w.shape in ((6, 8), (8, 4)) else w.T for w in (first, second))
    return jnp.mean(jnp.square(jnp.tanh(batch[0] @ first) @ second - batch[1]))


EVENTS = {"start_step": 1, "frequency": 1, "events": 2}


def start(name, kind, **options):
    params = jax.tree.map(jnp.asarray, KINDS[kind](*WEIGHTS))
    fields = {} if name in DENSE else {"sparsity": 0.5}
    pruner = make_pruner({"name": name, **fields, **options}, total_steps=20)
    step = sparse_step(pruner, optax.adam(1e-2), loss)
    extra = {}
    if pruner.needs_masks:
        magnitude = make_pruner({"name": "mag_blind", "sparsity": 0.5}, total_steps=1)
        extra["masks"] = magnitude.instant_sparsify(params)[1]
    if pruner.rewinds:
        extra["initial"] = jax.tree.map(lambda leaf: leaf + 0.01, params)
    batches = [(X, Y)] * pruner.batches_needed
    return step, step.init(jax.random.key(3), params, batches=batches, **extra)


@functools.cache
def expected(name):
    return kernels(start(name, "dict")[1].prune.masks)


@KIND
@pytest.mark.parametrize("name", sorted(PRUNERS))
def test_masks_and_steps(name, kind):
    step, state = start(name, kind)
    found = kernels(state.prune.masks)
    if kind == "equinox":  # the order of equal and of random scores follows the layout
        assert [mask.sum() for mask in found] == [mask.sum() for mask in expected(name)]
    else:
        for mask, other in zip(found, expected(name), strict=True):
            np.testing.assert_array_equal(mask, other)
    after, metrics = jax.eval_shape(step, state, (X, Y))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    forms = [[(a.shape, a.dtype) for a in jax.tree.leaves(tree)] for tree in (after, state)]
    assert forms[0] == forms[1]
    assert metrics["loss"].shape == ()
    if name != "none":
        pruned, masks = step.finish(state)
        assert jax.tree.structure(pruned) == jax.tree.structure(state.params)
        for weight, mask in zip(kernels(pruned), kernels(masks), strict=True):
            assert (weight[mask == 0] == 0).all()


@KIND
@pytest.mark.parametrize("name", ["mag_grad_blind", "random_ste", "rigl"])
def test_two_steps_that_change_masks(name, kind):
    _, first = start(name, kind, **EVENTS)
    state, dense = two_steps(name, kind), two_steps(name, "dict")
    changed = zip(kernels(first.prune.masks), kernels(state.prune.masks), strict=True)
    assert any((mask != after).any() for mask, after in changed)
    if kind == "equinox":  # sums have another order there
        pairs = zip(kernels(state.prune.masks), kernels(dense.prune.masks), strict=True)
        assert all(one.sum() == other.sum() for one, other in pairs)
        return
    for tree, other in ((state.prune.masks, dense.prune.masks), (state.params, dense.params)):
        for leaf, expected_leaf in zip(kernels(tree), kernels(other), strict=True):
            np.testing.assert_array_equal(leaf, expected_leaf)


def two_steps(name, kind):
    step, state = start(name, kind, **EVENTS)
    take = jax.jit(step)
    for _ in range(2):
        state, _ = take(state, (X, Y))
    return state


def test_entries_named_value_are_no_boxes():
    tree = {"attn": {"query": {"w": WEIGHTS[0]}, "key": WEIGHTS[2], "value": WEIGHTS[2]}}
    assert [show(path) for path in by_path(tree)] == ["attn/key", "attn/query/w", "attn/value"]
    pruner = make_pruner(
        {"name": "mag_uniform", "sparsity": 0.5, "include": "attn/(key|value)"}, total_steps=1
    )
    _, masks = pruner.instant_sparsify(tree)
    assert {name: int(mask.sum()) for name, mask in masks["attn"].items()} == {
        "key": 16,
        "value": 16,
    }


@KIND
def test_masks_have_the_structure_of_what_was_given(kind):
    params = jax.tree.map(jnp.asarray, KINDS[kind](*WEIGHTS))
    pruner = make_pruner({"name": "magnitude", "sparsity": 0.5}, total_steps=20)
    _, masks = pruner.instant_sparsify(params)
    assert type(masks) is type(params)
    assert by_path(masks).keys() <= by_path(params).keys()
    assert sparsity(masks, params).total_size == 48 + 8 + 32 + 4
    for tree in (pruner.load_masks(pruner.init(jax.random.key(0), params), masks).masks,
                 unpack(pack(masks), params)):  # fmt: skip
        assert jax.tree.structure(tree) == jax.tree.structure(masks)
        for one, other in zip(kernels(tree), kernels(masks), strict=True):
            np.testing.assert_array_equal(one, other)
    assert jax.tree.structure(apply_masks(params, masks)) == jax.tree.structure(params)
    wrapped = pruner.wrap(optax.adam(1e-2))
    state = wrapped.init(params)
    updates, after = jax.eval_shape(wrapped.update, params, state, params)
    assert jax.tree.structure((updates, after)) == jax.tree.structure((params, state))


def test_paths_of_every_kind():
    """The rule by names sees through boxes and numbers."""
    names = {
        "dict": ["a/kernel", "b/kernel"],
        "dataclasses": ["0/kernel", "1/x/1/kernel"],
        "lists": ["0/0", "1/0"],
        "boxed": ["a/kernel", "b/kernel"],
        "ints": ["0/kernel/0", "1/w_1"],
        "nnx": ["layers/0/kernel", "layers/1/kernel"],
    }
    for kind, paths in names.items():
        assert [show(path) for path in select(KINDS[kind](*WEIGHTS))] == paths, kind
    state = as_nnx(*WEIGHTS)
    pruner = make_pruner(
        {"name": "mag_blind", "include": "layers/1/.*", "sparsity": 0.5}, total_steps=1
    )
    _, masks = pruner.instant_sparsify(state)
    assert [show(path) for path in by_path(masks)] == ["layers/1/kernel"]


def test_boxes_stay_around_masks():
    _, masks = make_pruner({"name": "mag_blind"}, total_steps=1).instant_sparsify(
        KINDS["boxed"](*WEIGHTS)
    )
    assert isinstance(masks["a"]["kernel"], nn.Partitioned)


class Tied(nnx.Module):
    """Two layers that share their kernel, dropout and a norm with statistics."""

    def __init__(self, rngs):
        self.one, self.two = nnx.Linear(5, 5, rngs=rngs), nnx.Linear(5, 5, rngs=rngs)
        self.two.kernel = self.one.kernel
        self.norm, self.drop = nnx.BatchNorm(5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.two(self.drop(self.norm(self.one(x))))


def test_modules_of_nnx_whole():
    """A shared variable has one mask, counts once, and stays shared."""
    model = Tied(nnx.Rngs(0))
    old = np.array(model.one.kernel[...])
    pruner = make_pruner({"name": "mag_blind", "sparsity": 0.6}, total_steps=1)
    pruned, masks = pruner.instant_sparsify(model)
    assert [show(path) for path in by_path(masks)] == ["one/kernel"]
    limit = np.sort(np.abs(old).ravel())[15]
    kept = np.where(np.abs(old) >= limit, old, 0)
    np.testing.assert_array_equal(pruned.one.kernel[...], kept)
    assert pruned.two.kernel is pruned.one.kernel
    np.testing.assert_array_equal(model.one.kernel[...], old)
    assert summarize(pruned, masks)[-2]["nonzeros"] == 10
    np.testing.assert_array_equal(finalize(model, masks).one.kernel[...], kept)
    assert pruned(jnp.ones((2, 5))).shape == (2, 5)
    with pytest.raises(ConfigError, match=r"params is a module of NNX; train its state"):
        sparse_step(pruner, optax.sgd(0.1), loss).init(jax.random.key(0), model)


@needs_equinox
def test_modules_of_equinox_whole():
    import equinox as eqx

    class Model(eqx.Module):
        shared: eqx.nn.Shared
        head: eqx.nn.MLP

        def __init__(self, key):
            embed, out = eqx.nn.Embedding(7, 4, key=key), eqx.nn.Linear(4, 7, key=key)
            where, get = lambda pair: pair[1].weight, lambda pair: pair[0].weight
            self.shared = eqx.nn.Shared((embed, out), where, get)
            self.head = eqx.nn.MLP(4, 4, 8, 1, key=key)

        def __call__(self, token):
            embed, out = self.shared()
            return out(self.head(embed(token)))

    model = Model(jax.random.key(0))
    pruner = make_pruner({"name": "mag_uniform", "sparsity": 0.5}, total_steps=1)
    pruned, masks = pruner.instant_sparsify(model)
    assert isinstance(masks, Model) and masks.head.activation is None
    assert sparsity(masks, model).nonzeros == 14 + 16 + 16
    embed, out = pruned.shared()
    np.testing.assert_array_equal(embed.weight, out.weight)
    assert np.count_nonzero(out.weight) == 14
    assert pruned(jnp.int32(3)).shape == (7,)
    assert summarize(pruned, masks)[-1]["size"] == 28 + 7 + 32 + 8 + 32 + 4
    with pytest.raises(ConfigError, match=r"holds what is no array .*activation.*eqx.partition"):
        sparse_step(pruner, optax.sgd(0.1), loss).init(jax.random.key(0), model)


def test_a_module_of_linen_that_is_used_twice_has_one_mask():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(5)
            return layer(layer(x))

    params = Twice().init(jax.random.key(0), jnp.ones((1, 5)))["params"]
    _, masks = make_pruner({"name": "mag_blind"}, total_steps=1).instant_sparsify(params)
    assert sparsity(masks).prunable_size == 25
