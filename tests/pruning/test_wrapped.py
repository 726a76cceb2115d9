"""The optax wrapper, and zeros that momentum and weight decay cannot move."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import PRUNERS, make_pruner, sparsity

STEPS = 12
STRAIGHT_THROUGH = {"magnitude_ste", "random_ste"}
TRAINED_MASKS = {"supermask", "movement", "soft_movement"}
NO_WRAP = {*TRAINED_MASKS, *STRAIGHT_THROUGH, *(n for n in PRUNERS if n.startswith("lottery"))}


def params():
    rng = np.random.default_rng(0)
    return {
        "a": {"kernel": jnp.asarray(rng.normal(size=(6, 8)), jnp.float32), "bias": jnp.zeros(8)},
        "b": {"kernel": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)},
    }


def loss(p):
    x = jnp.linspace(-1.0, 1.0, 30).reshape(5, 6)
    y = jnp.sin(4 * x[:, :3])
    return jnp.mean(
        jnp.square(jnp.tanh(x @ p["a"]["kernel"] + p["a"]["bias"]) @ p["b"]["kernel"] - y)
    )


def build(name, **fields):
    target = {} if name in ("none", "mask_freeze") else {"sparsity": 0.7}
    return make_pruner({"name": name, **target, **fields}, total_steps=STEPS, steps_per_epoch=2)


def train(tx, start):
    state = tx.init(start)

    @jax.jit
    def step(p, state):
        value, grads = jax.value_and_grad(loss)(p)
        updates, state = tx.update(grads, state, p)
        return optax.apply_updates(p, updates), state, value

    p, values = start, []
    for _ in range(STEPS):
        p, state, value = step(p, state)
        values.append(float(value))
        for path in ("a", "b") if state.prune.masks else ():
            zeros = np.asarray(state.prune.masks[path]["kernel"]) == 0
            assert (np.asarray(p[path]["kernel"])[zeros] == 0.0).all()
    assert step._cache_size() == 1
    return p, state, values


@pytest.mark.parametrize("name", sorted(set(PRUNERS) - NO_WRAP - {"snip", "mask_freeze"}))
def test_a_loop_with_only_an_optimizer_prunes(name):
    """Momentum and decoupled weight decay included: pruned weights are exactly 0 all the time."""
    pruner = build(name)
    p, state, values = train(pruner.wrap(optax.adamw(3e-2, weight_decay=0.1)), params())
    assert int(state.step) == STEPS
    if name != "none":
        assert pruner.reached(state.prune.masks)
        assert int(jnp.count_nonzero(p["b"]["kernel"])) == int(
            state.prune.masks["b"]["kernel"].sum()
        )
    if name not in ("random", "global_saliency", "saliency"):
        assert min(values[1:]) < values[0]


def test_a_prepared_state_is_taken():
    pruner, start = build("snip"), params()
    with pytest.raises(ConfigError, match=r"'snip' needs gradients of batches first: wrap\(tx, st"):
        pruner.wrap(optax.sgd(0.1))
    state = pruner.init(jax.random.key(0), start)
    state = pruner.prepare(state, start, lambda p, batch: jax.grad(loss)(p), [None])
    _, found, _ = train(pruner.wrap(optax.sgd(0.1), state), start)
    assert sparsity(found.prune.masks).nonzeros == 72 - int(0.7 * 72)


@pytest.mark.parametrize("name", sorted(NO_WRAP))
def test_methods_that_need_the_training_step_say_so(name):
    with pytest.raises(ConfigError, match=f"'{name}' does more than an optimizer can"):
        build(name).wrap(optax.sgd(0.1))


def test_nothing_but_the_zeros_differs_from_the_optimizer_alone():
    """Until the first event the wrapped optimizer is the optimizer; then kept weights move on."""
    tx = optax.sgd(0.1, momentum=0.9)
    fields = {
        "start_step": 2,
        "frequency": 1,
        "events": 1,
        "initial_sparsity": 0.5,
        "sparsity": 0.5,
    }
    wrapped = build("mag_grad_blind", **fields).wrap(tx)
    p, q = params(), params()
    state, plain = wrapped.init(p), tx.init(q)
    for _ in range(2):
        updates, state = wrapped.update(jax.grad(loss)(p), state, p)
        p = optax.apply_updates(p, updates)
        updates, plain = tx.update(jax.grad(loss)(q), plain, q)
        q = optax.apply_updates(q, updates)
    scores = np.concatenate([np.abs(q[n]["kernel"]).ravel() for n in ("a", "b")])
    limit = np.sort(scores)[36]
    for name in ("a", "b"):
        kept = np.abs(np.asarray(q[name]["kernel"])) >= limit
        np.testing.assert_allclose(p[name]["kernel"], np.where(kept, q[name]["kernel"], 0), 1e-6)
    with pytest.raises(ConfigError, match="give update"):
        wrapped.update(jax.grad(loss)(p), state)


@pytest.mark.parametrize("hard", [False, True])
def test_pruned_weights_under_momentum_and_decay(hard):
    """By default they drift behind their masks, by hand; with hard_zero they are 0, for good."""
    pruner = make_pruner({"name": "mag_blind", "sparsity": 0.5, "hard_zero": hard}, total_steps=4)
    tx = optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.5), optax.scale(-1.0))
    p = {"w": {"kernel": jnp.array([[1.0, 4.0]], jnp.float32)}}
    state = pruner.prepare(pruner.init(jax.random.key(0), p), p)
    opt_state = tx.init(p)
    opt_state[1].trace["w"]["kernel"] = jnp.array([[2.0, 0.0]], jnp.float32)
    for _ in range(2):
        grads = jax.grad(lambda p: jnp.sum(pruner.apply(p, state.masks)["w"]["kernel"]))(p)
        np.testing.assert_array_equal(grads["w"]["kernel"], [[0.0, 1.0]])
        updates, opt_state = tx.update(grads, opt_state, p)
        p, opt_state = pruner.settle(optax.apply_updates(p, updates), opt_state, state.masks)
    # Pruned: m = 0.5 * 2 + 0.1 * 1 = 1.1, w = -0.1; m = 0.55 - 0.01 = 0.54, w = -0.64.
    # Kept: m = 1 + 0.4 = 1.4, w = 2.6; m = 0.7 + 1 + 0.26 = 1.96, w = 0.64.
    expected = [[0.0, 0.64]] if hard else [[-0.64, 0.64]]
    np.testing.assert_allclose(p["w"]["kernel"], expected, atol=1e-6)
    momentum = [[0.0, 1.96]] if hard else [[0.54, 1.96]]
    np.testing.assert_allclose(opt_state[1].trace["w"]["kernel"], momentum, atol=1e-6)
