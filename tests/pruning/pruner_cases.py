"""A small MLP, and training it with any pruner."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from sparsecap_jax.pruning import (
    PRUNERS,
    finalize,
    make_pruner,
)
from sparsecap_jax.training.optimizers import make_optimizer

STEPS = 20
NAMES = sorted(PRUNERS)
PRUNING = [name for name in NAMES if name != "none"]
PER_TENSOR = {
    *("mag_uniform", "mag_grad_uniform", "lottery_mag_uniform", "magnitude", "saliency", "random"),
    *("magnitude_ste", "random_ste", "acdc", "static_sparse", "set", "rigl"),
    *("adam_fisher", "movement"),
}
# Dense_0 [6, 16], Dense_1 [16, 4]
SIZES = {"Dense_0/kernel": 96, "Dense_1/kernel": 64}


class MLP(nn.Module):
    hidden: int = 16

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(4)(x)


@functools.cache
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 6)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(np.sin(x @ rng.normal(size=(6, 4))).astype(np.float32))


@functools.cache
def fresh(seed, hidden=16):
    return MLP(hidden).init(jax.random.key(seed), data()[0])["params"]


def mse(params, batch):
    model = MLP(params["Dense_0"]["bias"].size)
    return jnp.mean(jnp.square(model.apply({"params": params}, batch[0]) - batch[1]))


def build(name, **fields):
    target = {} if name in ("none", "mask_freeze", "lottery_mask_freeze") else {"sparsity": 0.7}
    return make_pruner({"name": name, **target, **fields}, total_steps=STEPS, steps_per_epoch=2)


def magnitude_masks(params):
    pruner = build("mag_blind")
    return pruner.prepare(pruner.init(jax.random.key(0), params), params).masks


def begin(pruner):
    """Initial weights in `init`, other weights in `prepare`; pruned ones where masks are given."""
    state = pruner.init(jax.random.key(1), fresh(0))
    params = fresh(1)
    if "mask_freeze" in pruner.name:
        params = finalize(params, magnitude_masks(params))
    state = pruner.prepare(state, params, jax.grad(mse), [data()] * pruner.batches_needed)
    return pruner.rewind(state, params)


def make_step(pruner, tx):
    def loss_fn(tree, fixed, step, batch, rng):
        masks = tree.get("masks", fixed)
        loss = mse(pruner.apply(tree["params"], pruner.sample(masks, rng)), batch)
        return loss + pruner.penalty(masks, step)[0]

    @jax.jit
    def train_step(params, state, opt_state, step, batch):
        rng = jax.random.fold_in(jax.random.key(2), step)
        tree = {"params": params} | ({"masks": state.masks} if pruner.trains_masks else {})
        grads = jax.grad(loss_fn)(tree, state.masks, step, batch, rng)
        kept = {**grads, "params": pruner.gradients(grads["params"], state.masks)}
        updates, opt_state = tx.update(kept, opt_state, tree)
        tree = optax.apply_updates(tree, updates)
        state = state.replace(masks=tree.get("masks", state.masks))
        step = step + jnp.int32(1)
        ranked = pruner.evidence(grads["params"], opt_state, tree["params"])
        state = pruner.update(state, tree["params"], ranked, step, rng)
        params, opt_state = pruner.settle(tree["params"], opt_state, state.masks)
        return params, state, opt_state, step

    return train_step


@functools.cache
def compiled(pruner):
    """The optimizer and the step of a pruner, which all tests of it share."""
    tx = make_optimizer({"learning_rate": 0.01}, STEPS, 2, pruner.trains_masks)
    return tx, make_step(pruner, tx)


def start(pruner):
    tx, train_step = compiled(pruner)
    state, params = begin(pruner)
    tree = {"params": params} | ({"masks": state.masks} if pruner.trains_masks else {})
    return train_step, (params, state, tx.init(tree), jnp.zeros((), jnp.int32))


def train(pruner, steps=STEPS):
    train_step, carry = start(pruner)
    for _ in range(steps):
        carry = train_step(*carry, data())
    assert train_step._cache_size() == 1, "the step was compiled anew"
    return carry


def assert_equal_trees(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)
