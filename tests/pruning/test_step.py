"""Every pruner through `sparse_step`: a plain pytree, a Linen model, a captioner."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.models import init_params, make_model
from sparsecap_jax.pruning import PRUNERS, check_binary, make_pruner, sparse_step, sparsity
from sparsecap_jax.pruning.paths import by_path
from sparsecap_jax.training.losses import caption_loss
from sparsecap_jax.types import Batch, Regions

STEPS, TARGET = 20, 0.6
PER_TENSOR = (
    *("uniform", "magnitude", "saliency", "random", "static_sparse", "set", "rigl", "acdc"),
    *("adam_fisher", "movement"),
)
DENSE = ("none", "mask_freeze", "lottery_mask_freeze")
NEED_NOT_LEARN = ("random", "random_ste", "saliency", "global_saliency")
# Methods whose pruned weights get gradients.
SEES_PRUNED = ("rigl", "magnitude_ste", "random_ste")


@functools.cache
def plain():
    """Two linear layers as a dict, and a third that no pruner sees."""
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = {"first": (12, 16), "second": (16, 10), "last": (10, 4)}
    layers = {
        name: {"kernel": 0.3 * jax.random.normal(key, shape), "bias": jnp.zeros(shape[1])}
        for key, (name, shape) in zip(keys, shapes.items(), strict=False)
    }
    x, y = jax.random.normal(keys[3], (32, 12)), jax.random.normal(keys[4], (32, 4))

    def loss(params, batch, rng):
        hidden = batch[0]
        for name in shapes:
            hidden = jnp.tanh(hidden @ params[name]["kernel"] + params[name]["bias"])
        return jnp.mean(jnp.square(hidden - batch[1]))

    return layers, (x, y), jax.jit(loss)


class Mlp(nn.Module):
    """Three layers, the first with dropout behind it."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dropout(0.1, deterministic=False)(nn.relu(nn.Dense(16)(x)))
        return nn.Dense(4)(nn.relu(nn.Dense(10)(x)))


@functools.cache
def linen():
    """The same task for a Linen module; its loss has metrics."""
    _, batch, _ = plain()
    model = Mlp()
    rngs = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
    params = jax.jit(model.init)(rngs, batch[0])["params"]

    def loss(params, batch, rng):
        outputs = model.apply({"params": params}, batch[0], rngs={"dropout": rng})
        error = jnp.mean(jnp.square(outputs - batch[1]))
        return error, {"error": error}

    return params, batch, jax.jit(loss)


@functools.cache
def captioner():
    """A captioner of few weights."""
    sizes = {"embed_size": 8, "rnn_size": 8, "attention_size": 6, "dropout": 0.0}
    model = make_model({"name": "up_down", "vocab_size": 12, "feature_size": 10, **sizes})
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 3, 10)).astype(np.float32)
    boxes = np.zeros((4, 3, 4), np.float32)
    tokens = rng.integers(4, 12, (4, 2, 6)).astype(np.int32)
    tokens[..., 0] = 2
    regions = Regions(features, np.ones((4, 3), bool), boxes, features.mean(axis=1))
    batch = Batch(regions, tokens, np.ones_like(tokens, bool), np.arange(4, dtype=np.int32))
    params = init_params(model, jax.random.key(1))

    def loss(params, batch, rng):
        return caption_loss(model.apply({"params": params}, batch.regions, batch.tokens), batch)

    return params, batch, jax.jit(loss)  # traced once for all pruners


TASKS = {"plain": plain, "linen": linen, "captioner": captioner}


def largest(params):
    """The largest and the second largest kernel: one is frozen, one has no mask."""
    kernels = {p: x.size for p, x in by_path(params).items() if p[-1] == "kernel"}
    return tuple(sorted(kernels, key=kernels.get)[-2:])


def build(name, params, **more):
    frozen, excluded = largest(params)
    fields = {} if name in DENSE else {"sparsity": TARGET}
    if name != "none":
        fields |= {"freeze": "/".join(frozen), "exclude": "/".join(excluded)}
    return make_pruner({"name": name, **fields, **more}, total_steps=STEPS, steps_per_epoch=4)


def begin(step, params, batch):
    """The first state, with whatever the method needs."""
    extra = {}
    if step.pruner.needs_masks:
        magnitude = build("mag_blind", params)
        state = magnitude.init(jax.random.key(0), params)
        extra["masks"] = magnitude.prepare(state, params).masks
    if step.pruner.rewinds:
        extra["initial"] = jax.tree.map(lambda leaf: leaf + 0.01, params)
    return step.init(
        jax.random.key(3), params, batches=[batch] * step.pruner.batches_needed, **extra
    )


def expected_nonzeros(name, shapes):
    """Counted here: of all active tensors together, or of each."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    alone = any(word in name for word in PER_TENSOR) and not name.startswith("global")
    return sum(n - int(TARGET * n) for n in (sizes if alone else [sum(sizes)]))


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("name", sorted(PRUNERS))
def test_twenty_steps(name, task):
    params, batch, loss = TASKS[task]()
    pruner = build(name, params)
    step = sparse_step(pruner, optax.adam(1e-2), loss)
    state = begin(step, params, batch)
    before = jax.device_get(pruner.binarize(state.prune.masks))
    take, losses = jax.jit(step), []
    for _ in range(STEPS):
        state, metrics = take(state, batch)
        losses.append(float(metrics["loss"] - metrics["sparsity_loss"]))
    assert take._cache_size() == 1, "compiled anew"
    assert int(state.step) == STEPS and np.isfinite(losses).all()
    assert min(losses[-3:]) < losses[0] or name in NEED_NOT_LEARN
    pruned, binary = step.finish(state)
    final = loss(pruned, batch, jax.random.key(0))
    assert np.isfinite(final[0] if isinstance(final, tuple) else final)
    if name == "none":
        assert not jax.tree.leaves(binary)
        return
    check_binary(binary)
    frozen, excluded = largest(params)
    flat = by_path(jax.device_get(binary))
    assert excluded not in flat
    np.testing.assert_array_equal(flat[frozen], by_path(before)[frozen])
    zeros = by_path(pruned)
    assert all((np.asarray(zeros[path])[mask == 0] == 0).all() for path, mask in flat.items())
    if name not in ("supermask", "soft_movement"):
        assert pruner.reached(binary)
        active = [mask.shape for path, mask in flat.items() if path != frozen]
        nonzeros = sparsity(binary).nonzeros - int(flat[frozen].sum())
        assert nonzeros == expected_nonzeros(name, active)


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("name", SEES_PRUNED)
def test_pruned_weights_get_gradients(name, task):
    """The pruner's update sees them all; of RigL the optimizer sees those of kept weights alone."""
    params, batch, loss = TASKS[task]()
    pruner, seen = build(name, params), []
    watched = type("Watched", (type(pruner),), {"update": _watch(type(pruner), seen)})
    fields = {field.name: getattr(pruner, field.name) for field in dataclasses.fields(pruner)}
    step = sparse_step(watched(**fields), optax.sgd(1.0), loss)
    state = begin(step, params, batch)
    after, _ = step(state, batch)
    (grads,) = seen
    masks = by_path(pruner.binarize(state.prune.masks))
    old, new = by_path(state.params), by_path(after.params)
    pruned = reached = changed = 0
    for path, mask in masks.items():
        gone = np.asarray(mask) == 0
        if not gone.any():
            continue
        pruned += gone.sum()
        reached += np.count_nonzero(np.asarray(by_path(grads)[path])[gone])
        weights = np.asarray(new[path])[gone]
        if name == "rigl":  # hard zeros
            assert not weights.any()
        else:
            changed += np.count_nonzero(weights != np.asarray(old[path])[gone])
    # Rectified units and words that do not occur leave some gradients at 0.
    assert reached > 0.25 * pruned
    assert changed > 0.25 * pruned or name == "rigl"


@pytest.mark.parametrize("name", ["static_sparse", "set", "rigl", "acdc", "mag_grad_uniform"])
def test_hard_zeros_are_those_of_every_step_settled(name):
    """Zeros go into the update; written into its outcome, at every step, they are the same."""
    params, batch, loss = plain()
    pruner, tx = build(name, params, hard_zero=True), optax.adam(1e-2)
    state = begin(sparse_step(pruner, tx, loss), params, batch)
    take = jax.jit(sparse_step(pruner, tx, loss))
    weights, prune, moments = state.params, state.prune, state.opt_state["params"]

    @jax.jit
    def slow(weights, prune, moments, step):
        grads = jax.grad(lambda w: loss(pruner.apply(w, prune.masks), batch, None))(weights)
        kept = pruner.gradients(grads, prune.masks)
        updates, moments = tx.update(kept, moments, weights)
        weights = optax.apply_updates(weights, updates)
        prune = pruner.update(prune, weights, grads, step + 1)
        weights, moments = pruner.settle(weights, moments, prune.masks)
        return weights, prune, moments

    changes = 0
    for path, mask in by_path(prune.masks).items():
        assert not np.asarray(by_path(weights)[path])[np.asarray(mask) == 0].any()
    for number in range(STEPS):
        before = jax.device_get(state.prune.masks)
        state, _ = take(state, batch)
        weights, prune, moments = slow(weights, prune, moments, jnp.int32(number))
        for ours, theirs in (
            (state.prune.masks, prune.masks),
            (state.params, weights),
            (state.opt_state["params"], moments),
        ):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)
        masks = by_path(state.prune.masks)
        for tree in (state.params, state.opt_state["params"][0].mu):
            for path, mask in masks.items():
                assert not np.asarray(by_path(tree)[path])[np.asarray(mask) == 0].any()
        changes += any((np.asarray(masks[p]) != m).any() for p, m in by_path(before).items())
    assert changes or name == "static_sparse"


def test_hard_zeros_under_an_optimizer_that_moves_every_weight():
    params, batch, loss = plain()
    pruner = build("static_sparse", params)
    noise = optax.stateless(lambda updates, _: jax.tree.map(lambda u: u + 1.0, updates))
    step = sparse_step(pruner, optax.chain(noise, optax.sgd(0.1)), loss)
    state = begin(step, params, batch)
    for _ in range(2):
        state, _ = step(state, batch)
        for path, mask in by_path(state.prune.masks).items():
            assert not np.asarray(by_path(state.params)[path])[np.asarray(mask) == 0].any()


def test_who_may_change_masks_at_a_step():
    fields = {"start_step": 4, "frequency": 5, "events": 2, "sparsity": 0.5}
    pruner = make_pruner({"name": "magnitude", **fields}, total_steps=STEPS)
    assert [bool(pruner.changes(step)) for step in range(3, 16)] == [
        step in (4, 9, 14) for step in range(3, 16)
    ]
    for name, expected in (("mag_blind", False), ("static_sparse", False), ("supermask", True)):
        assert make_pruner({"name": name}, total_steps=STEPS).changes(3) is expected
    own = type("Own", (type(pruner),), {"update": _watch(type(pruner), [])})
    values = {field.name: getattr(pruner, field.name) for field in dataclasses.fields(pruner)}
    assert own(**values).changes(3) is True


def _watch(base, seen):
    def update(self, state, params, grads, step, rng=None):
        seen.append(grads)
        return base.update(self, state, params, grads, step, rng)

    return update


def test_supermask_logits_move_by_their_own_optimizer():
    """By hand: Adam's first step is the rate times g / (|g| + epsilon)."""
    params, batch, loss = plain()
    pruner = make_pruner({"name": "supermask", "sparsity": TARGET}, total_steps=STEPS)
    step = sparse_step(pruner, optax.sgd(0.1), loss, mask_tx=optax.sgd(2.0))
    state = step.init(jax.random.key(0), params)
    after, metrics = step(state, batch)
    rng = jax.random.split(jax.random.split(jax.random.fold_in(state.rng, 0))[0])[0]

    def total(masks):
        binary = pruner.sample(masks, rng)
        masked = jax.tree.map(lambda p: p, params)
        for name in binary:
            masked[name] = {
                **params[name],
                "kernel": params[name]["kernel"] * binary[name]["kernel"],
            }
        return loss(masked, batch, None) + pruner.penalty(masks, 0)[0]

    value, grads = jax.value_and_grad(total)(state.prune.masks)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    for path, mask in by_path(after.prune.masks).items():
        expected = by_path(state.prune.masks)[path] - 2.0 * by_path(grads)[path]
        np.testing.assert_allclose(mask, expected, rtol=1e-5)
    default = sparse_step(pruner, optax.sgd(0.1), loss)
    state = default.init(jax.random.key(0), params)
    for path, mask in by_path(default(state, batch)[0].prune.masks).items():
        grad = np.asarray(by_path(grads)[path])
        np.testing.assert_allclose(mask, 5.0 - 100 * grad / (np.abs(grad) + 1e-2), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("snip", r"'snip' ranks gradients of 1 batches before training, got 0"),
        ("lottery_mag_blind", r"'lottery_mag_blind' returns to the weights before training"),
        ("mask_freeze", "the model to start from is dense"),
    ],
)
def test_missing_arguments_are_named(name, message):
    params, _, loss = plain()
    fields = {} if name == "mask_freeze" else {"sparsity": TARGET}
    pruner = make_pruner({"name": name, **fields}, total_steps=STEPS)
    with pytest.raises(ConfigError, match=message):
        sparse_step(pruner, optax.sgd(0.1), loss).init(jax.random.key(0), params)


def test_a_pruner_that_never_pruned_is_a_warning(caplog):
    params, batch, loss = plain()
    pruner = make_pruner(
        {"name": "magnitude", "sparsity": TARGET, "start_step": 15, "frequency": 1, "events": 2},
        total_steps=STEPS,
    )
    step = sparse_step(pruner, optax.sgd(0.1), loss)
    state = step.init(jax.random.key(0), params)
    with caplog.at_level(logging.WARNING):
        step.finish(step(state, batch)[0])
    assert "'magnitude' never pruned a weight, but its target sparsity is 0.6" in caplog.text


def test_nnx_modules_train_through_their_state():
    """Parameters that are an `nnx.State`: gradients, masks and updates keep its structure."""
    graph, params = nnx.split(nnx.Linear(12, 4, rngs=nnx.Rngs(0)))
    _, batch, _ = plain()

    def loss(params, batch, rng):
        return jnp.mean(jnp.square(nnx.merge(graph, params)(batch[0]) - batch[1]))

    pruner = make_pruner({"name": "magnitude", "sparsity": TARGET}, total_steps=STEPS)
    step = sparse_step(pruner, optax.adam(1e-2), loss)
    state = step.init(jax.random.key(0), params)
    take = jax.jit(step)
    for _ in range(STEPS):
        state, _ = take(state, batch)
    pruned, masks = step.finish(state)
    assert sparsity(masks).nonzeros == 48 - int(TARGET * 48)
    kernel = nnx.merge(graph, pruned).kernel[...]
    assert np.count_nonzero(kernel) == 48 - int(TARGET * 48)
