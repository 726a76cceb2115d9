"""Pruners with optax's wrappers, bfloat16, stacked layers, remat and sharded parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sparsecap_jax.pruning import by_path, make_pruner, sparse_step, sparsity
from sparsecap_jax.pruning.states import WrappedState

STEPS = 8
X = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)


def params():
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 16), "b": (16, 8)}
    return {n: {"kernel": jnp.asarray(rng.normal(size=s), jnp.float32)} for n, s in shapes.items()}


def loss(p, batch=None, rng=None):
    hidden = jnp.tanh(X @ p["a"]["kernel"])
    return jnp.mean(jnp.square(hidden @ p["b"]["kernel"] - jnp.sin(3 * X)))


def pruner(name="magnitude", **fields):
    events = {"start_step": 1, "frequency": 1, "events": 2} if name == "magnitude" else {}
    return make_pruner({"name": name, "sparsity": 0.75, **events, **fields}, total_steps=STEPS)


LABELS = {"a": {"kernel": True}, "b": {"kernel": False}}
ROUTES = {"a": {"kernel": "pruned"}, "b": {"kernel": "dense"}}
RATE = optax.linear_schedule(1e-2, 1e-3, STEPS)
CHAINS = {
    "masked inside": lambda p: p.wrap(optax.masked(optax.adam(1e-2), LABELS)),
    "masked outside": lambda p: optax.masked(p.wrap(optax.adam(1e-2)), LABELS),
    "multi_transform": lambda p: optax.multi_transform(
        {"pruned": p.wrap(optax.adam(1e-2)), "dense": optax.sgd(0.1)}, ROUTES
    ),
    "multi_steps inside": lambda p: p.wrap(
        optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation()
    ),
    "multi_steps outside": lambda p: optax.MultiSteps(p.wrap(optax.adam(1e-2)), 2),
    "hyperparams inside": lambda p: p.wrap(
        optax.inject_hyperparams(optax.adam)(learning_rate=RATE)
    ),
    "hyperparams outside": lambda p: optax.inject_hyperparams(
        lambda learning_rate: p.wrap(optax.adam(learning_rate))
    )(learning_rate=RATE),
    "clipping and ema": lambda p: p.wrap(
        optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-2), optax.ema(0.9))
    ),
    "clipping before": lambda p: optax.chain(optax.clip(0.1), p.wrap(optax.adam(1e-2))),
}


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_wrapped_optimizers_in_and_around_those_of_optax(name):
    """Pruned weights are 0 after every update; as many as the schedule says."""
    tx, p = CHAINS[name](pruner()), params()
    state = tx.init(p)
    update = jax.jit(tx.update)
    counts = []
    for _ in range(STEPS):
        updates, state = update(jax.grad(loss)(p), state, p)
        p = optax.apply_updates(p, updates)
        (found,) = (
            leaf
            for leaf in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, WrappedState))
            if isinstance(leaf, WrappedState)
        )
        for path, mask in by_path(found.prune.masks).items():
            assert (np.asarray(by_path(p)[path])[np.asarray(mask) == 0] == 0).all()
        counts.append(int(jnp.count_nonzero(p["a"]["kernel"])))
    # Of 128 weights: events 0, 1 and 2 remove none, 0.75 * (1 - 1 / 8) of them, and 0.75.
    events = [128, 128 - 84, 32]
    if name == "multi_steps outside":
        events = [128] + [count for count in events for _ in range(2)]
    assert counts == (events + [32] * STEPS)[:STEPS]
    alone = name in ("masked outside", "multi_transform")
    assert int(jnp.count_nonzero(p["b"]["kernel"])) == (128 if alone else 32)


@pytest.mark.parametrize(
    "tx",
    [
        optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
        optax.inject_hyperparams(optax.adam)(learning_rate=RATE),
        optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2), optax.ema(0.9)),
    ],
    ids=["multi_steps", "hyperparams", "clipping and ema"],
)
@pytest.mark.parametrize("name", ["set", "supermask"])
def test_sparse_steps_with_those_of_optax(name, tx):
    step = sparse_step(pruner(name), tx, loss)
    state, take = step.init(jax.random.key(0), params()), jax.jit(step)
    for _ in range(STEPS):
        state, metrics = take(state, None)
    assert take._cache_size() == 1
    pruned, masks = step.finish(state)
    assert np.isfinite(float(metrics["loss"]))
    if name == "set":
        assert sparsity(masks).nonzeros == 64
        moved = by_path(pruned)
        for path, leaf in by_path(params()).items():
            kept = np.asarray(moved[path]) != 0
            # All but those between units that are pruned elsewhere.
            assert (np.asarray(moved[path])[kept] != np.asarray(leaf)[kept]).mean() > 0.5


@pytest.mark.parametrize("name", ["magnitude", "rigl", "magnitude_ste", "supermask", "saliency"])
def test_bfloat16_parameters(name):
    """They stay what they are; ranks are those of their float32 values."""
    p = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params())
    step = sparse_step(pruner(name), optax.adam(1e-2), loss)
    state, take = step.init(jax.random.key(0), p), jax.jit(step)
    for _ in range(3):
        state, _ = take(state, None)
    assert take._cache_size() == 1
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.prune.masks)} == {jnp.dtype("float32")}
    pruned, _ = pruner("mag_uniform").instant_sparsify(p)
    old = np.asarray(p["a"]["kernel"], np.float32).ravel()
    gone = np.argsort(np.abs(old), kind="stable")[: int(0.75 * 128)]
    expected = old.copy()
    expected[gone] = 0
    np.testing.assert_array_equal(np.asarray(pruned["a"]["kernel"], np.float32).ravel(), expected)


class Stack(nn.Module):
    """Three layers under `nn.scan`, with or without `remat`."""

    remat: bool

    @nn.compact
    def __call__(self, x):
        def body(layer, x, _):
            return jnp.tanh(layer(x)), None

        body = nn.remat(body) if self.remat else body
        scan = nn.scan(body, {"params": 0}, split_rngs={"params": True}, length=3)
        return scan(nn.Dense(8, name="layers"), x, None)[0]


def test_stacked_layers_with_and_without_remat():
    """One leaf `[3, 8, 8]`: of 4 neighbours along the inputs 2 stay, in every layer."""

    def train(model):
        def task(p, x, rng):
            return jnp.mean(jnp.square(model.apply({"params": p}, x) - jnp.sin(x)))

        fields = {"sparsity_type": "2:4", "sparsity_axis": -2, "sparsity": 0.5}
        step = sparse_step(pruner(**fields), optax.adam(1e-2), task)
        state = step.init(jax.random.key(1), model.init(jax.random.key(0), X)["params"])
        take = jax.jit(step)
        for _ in range(STEPS):
            state, _ = take(state, X)
        return step.finish(state)

    (plain, masks), (again, _) = train(Stack(False)), train(Stack(True))
    (mask,) = jax.tree.leaves(masks)
    assert mask.shape == (3, 8, 8)
    np.testing.assert_array_equal(np.asarray(mask).reshape(3, 2, 4, 8).sum(2), 2)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", ["magnitude", "global_magnitude"])
def test_sharded_parameters(name):
    """Masks lie where the parameters do, and come out as on one device."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    split = NamedSharding(mesh, PartitionSpec("x", "y"))
    results = []
    for start in (params(), jax.device_put(params(), split)):
        step = sparse_step(pruner(name), optax.sgd(1e-2), loss)
        state, take = step.init(jax.random.key(0), start), jax.jit(step)
        for path, mask in by_path(state.prune.masks).items():
            assert mask.sharding == by_path(start)[path].sharding
        for _ in range(4):
            state, _ = take(state, None)
        results.append(jax.device_get(step.finish(state)[1]))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(one, other)
