"""Second moments of optimizers, and pruning by weight^2 x second moment."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import by_path, make_pruner, second_moments, sparse_step

RNG = np.random.default_rng(0)
PARAMS = {
    "a": {"kernel": jnp.asarray(RNG.normal(size=(6, 8)), jnp.float32), "bias": jnp.zeros(8)},
    "nu": {"kernel": jnp.asarray(RNG.normal(size=(8, 3)), jnp.float32)},
}
SLOPES = [
    jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), PARAMS) for _ in range(3)
]
ROUTES = {"a": {"kernel": "adam", "bias": "sgd"}, "nu": {"kernel": "adam"}}
WITH = {
    "adam": optax.adam(1e-2),
    "adamw": optax.adamw(1e-2),
    "nadam": optax.nadam(1e-2),
    "amsgrad": optax.amsgrad(1e-2),
    "rmsprop": optax.rmsprop(1e-2),
    "adagrad": optax.adagrad(1e-2),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9), optax.adam(1e-2)),
    "routes": optax.multi_transform({"adam": optax.adam(1e-2), "sgd": optax.sgd(0.1)}, ROUTES),
    "steps": optax.MultiSteps(optax.adam(1e-2), 1).gradient_transformation(),
    "hyperparams": optax.inject_hyperparams(optax.adam, static_args=("b1", "b2"))(1e-2),
}
WITHOUT = {"sgd": optax.sgd(0.1, momentum=0.9), "adafactor": optax.adafactor(1e-2),
           "lion": optax.lion(1e-2)}  # fmt: skip
EVENTS = {"start_step": 3, "when": "one_shot"}


def build(**fields):
    return make_pruner({"name": "adam_fisher", "sparsity": 0.5, **EVENTS, **fields}, total_steps=9)


def loss(params, batch, rng=None):
    """Linear: its gradient is the batch."""
    return sum(jax.tree.leaves(jax.tree.map(lambda p, slope: jnp.sum(p * slope), params, batch)))


def moments(decay):
    """Moving average of squared slopes, from 0, in float64."""
    total = {}
    for slopes in SLOPES:
        for path, slope in by_path(slopes).items():
            new = (1 - decay) * np.square(slope.astype(float))
            total[path] = decay * total.get(path, 0.0) + new
    return total


@pytest.mark.parametrize("name", sorted(WITH))
def test_moments_are_found(name):
    tx = WITH[name]
    state = tx.init(PARAMS)
    found = by_path(second_moments({"params": state}, PARAMS))
    paths = {*by_path(PARAMS)} - ({("a", "bias")} if name == "routes" else set())
    assert found.keys() == paths
    for slopes in SLOPES:
        _, state = tx.update(slopes, state, PARAMS)
    found = by_path(second_moments(state, PARAMS))
    if name in ("adam", "adamw", "routes", "steps", "hyperparams", "rmsprop"):
        for path, expected in moments(0.9 if name == "rmsprop" else 0.999).items():
            if path in paths:
                np.testing.assert_allclose(found[path], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_of_the_lowest_products_go(wrapped):
    """Those of the weights and moments after the step of the event."""
    pruner, params = build(), PARAMS
    if wrapped:
        tx = pruner.wrap(optax.adam(1e-2))
        state = tx.init(params)
        for slopes in SLOPES:
            updates, state = tx.update(slopes, state, params)
            params = optax.apply_updates(params, updates)
        masks, weights = state.prune.masks, None
    else:
        step = sparse_step(pruner, optax.adam(1e-2), loss)
        state = step.init(jax.random.key(0), params)
        for slopes in SLOPES:
            state, _ = jax.jit(step)(state, slopes)
        masks, weights = state.prune.masks, by_path(state.params)
    if weights is None:  # without zeros
        tx, weights = optax.adam(1e-2), PARAMS
        plain = tx.init(weights)
        for slopes in SLOPES:
            updates, plain = tx.update(slopes, plain, weights)
            weights = optax.apply_updates(weights, updates)
        weights = by_path(weights)
    for path, mask in by_path(masks).items():
        products = np.asarray(weights[path], float) ** 2 * moments(0.999)[path]
        expected = np.ones(products.size)
        expected[np.argsort(products.ravel())[: products.size // 2]] = 0
        np.testing.assert_array_equal(mask, expected.reshape(products.shape))
        magnitudes = np.argsort(np.abs(weights[path]).ravel())[: products.size // 2]
        assert expected[magnitudes].any()  # magnitudes would have chosen others


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_optimizers_without_moments_are_refused_at_once(name):
    message = r"'adam_fisher' ranks the second moments of an optimizer .*, and this one keeps none"
    with pytest.raises(ConfigError, match=message):
        sparse_step(build(), WITHOUT[name], loss).init(jax.random.key(0), PARAMS)
    with pytest.raises(ConfigError, match=message):
        build().wrap(WITHOUT[name]).init(PARAMS)


def test_weights_without_moments_are_named():
    routes = {"a": {"kernel": "adam", "bias": "adam"}, "nu": {"kernel": "sgd"}}
    tx = optax.multi_transform({"adam": optax.adam(1e-2), "sgd": optax.sgd(0.1)}, routes)
    step = sparse_step(build(), tx, loss)
    state = step.init(jax.random.key(0), PARAMS)
    with pytest.raises(ConfigError, match=r"keeps no second moments of nu/kernel"):
        step(state, SLOPES[0])
    step = sparse_step(build(exclude="nu/.*"), tx, loss)
    state = step.init(jax.random.key(0), PARAMS)
    for slopes in SLOPES:
        state, _ = step(state, slopes)
    assert int(state.prune.masks["a"]["kernel"].sum()) == 24


def test_at_once():
    tx = optax.adam(1e-2)
    _, state = tx.update(SLOPES[0], tx.init(PARAMS), PARAMS)
    with pytest.raises(ConfigError, match=r"give it those of the optimizer, second_moments"):
        build().instant_sparsify(PARAMS)
    pruned, masks = build().instant_sparsify(PARAMS, second_moments(state, PARAMS))
    assert int(masks["nu"]["kernel"].sum()) == np.count_nonzero(pruned["nu"]["kernel"]) == 12
    with pytest.raises(ConfigError, match=r"pruner\.when is 'before'; \(valid: one_shot"):
        build(when="before")


def test_optimizers_of_nnx():
    model = nnx.Linear(6, 8, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, build().wrap(optax.adam(1e-2)), wrt=nnx.Param)
    x, y = (jnp.asarray(RNG.normal(size=(5, n)), jnp.float32) for n in (6, 8))
    for _ in range(3):
        grads = nnx.grad(lambda model: jnp.mean(jnp.square(model(x) - y)))(model)
        optimizer.update(model, grads)
    assert np.count_nonzero(model.kernel[...]) == 24
