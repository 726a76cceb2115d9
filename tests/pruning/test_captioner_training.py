"""Twenty real training steps of a small captioner under every pruner of the registry.

The captioner's loss is differentiated by the weights that it sees, compiled once for all; what a
pruner adds to a step is compiled apart.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsecap_jax.models import make_model
from sparsecap_jax.pruning import PRUNERS, check_binary, finalize, make_pruner, sparsity
from sparsecap_jax.pruning.paths import by_path
from sparsecap_jax.training.losses import caption_loss
from sparsecap_jax.types import Batch, Regions

STEPS, TARGET = 20, 0.6
PER_TENSOR = ("uniform", "magnitude", "saliency", "random", "static_sparse", "set", "rigl")


@functools.cache
def captioner():
    """A captioner, its initial weights, a batch, and the loss with its gradient."""
    sizes = {"embed_size": 8, "rnn_size": 8, "attention_size": 6, "dropout": 0.0}
    model = make_model({"name": "up_down", "vocab_size": 12, "feature_size": 10, **sizes})
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 3, 10)).astype(np.float32)
    valid = np.ones((4, 3), bool)
    boxes = np.zeros((4, 3, 4), np.float32)
    tokens = rng.integers(4, 12, (4, 2, 6)).astype(np.int32)
    tokens[..., 0] = 2
    regions = Regions(features, valid, boxes, features.mean(axis=1))
    batch = Batch(regions, tokens, np.ones_like(tokens, bool), np.arange(4, dtype=np.int32))
    params = jax.jit(model.init)(jax.random.key(1), regions, tokens)["params"]

    def loss(params):
        return caption_loss(model.apply({"params": params}, regions, tokens), batch)

    return params, batch, jax.jit(jax.value_and_grad(loss))


def pattern(path):
    return "/".join(path)


def build(name):
    names = ("none", "mask_freeze", "lottery_mask_freeze")
    fields = {} if name in names else {"sparsity": TARGET}
    if name != "none":
        frozen, excluded = leaves()
        fields |= {"freeze": pattern(frozen), "exclude": pattern(excluded)}
    return make_pruner({"name": name, **fields}, total_steps=STEPS, steps_per_epoch=4)


@functools.cache
def leaves():
    """The largest and the second largest kernel: one is frozen, one has no mask."""
    kernels = {p: x.size for p, x in by_path(captioner()[0]).items() if p[-1] == "kernel"}
    return tuple(sorted(kernels, key=kernels.get)[-2:])


def start(pruner):
    params, batch, slope = captioner()
    state = pruner.init(jax.random.key(2), params)
    if "mask_freeze" in pruner.name:
        found = build("mag_blind")
        state = pruner.load_masks(
            state, found.prepare(found.init(jax.random.key(0), params), params).masks
        )
    batches = [batch] * pruner.batches_needed
    state = pruner.prepare(state, params, lambda p, _: slope(p)[1], batches)
    return pruner.rewind(state, params)


def expected_nonzeros(name, shapes):
    """Counted here: of all active tensors together, or of each."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    alone = any(word in name for word in PER_TENSOR) and not name.startswith("global")
    return sum(n - int(TARGET * n) for n in (sizes if alone else [sum(sizes)]))


@pytest.mark.parametrize("name", sorted(PRUNERS))
def test_twenty_steps_of_a_captioner(name):
    pruner = build(name)
    state, params = start(pruner)
    slope = captioner()[2]
    tx = optax.adam(1e-2)
    opt_state = tx.init({"params": params, "masks": state.masks})

    @jax.jit
    def see(params, masks, rng):
        return pruner.apply(params, pruner.sample(masks, rng))

    @jax.jit
    def take(params, state, opt_state, seen_grads, step, rng):
        _, pull = jax.vjp(lambda p, m: pruner.apply(p, pruner.sample(m, rng)), params, state.masks)
        grads, mask_grads = pull(seen_grads)
        if pruner.trains_masks:
            pushed = jax.grad(lambda m: pruner.penalty(m, step)[0])(state.masks)
            mask_grads = jax.tree.map(jnp.add, mask_grads, pushed)
        else:
            mask_grads = jax.tree.map(jnp.zeros_like, state.masks)
        kept = {"params": pruner.gradients(grads, state.masks), "masks": mask_grads}
        updates, opt_state = tx.update(kept, opt_state)
        trained = optax.apply_updates({"params": params, "masks": state.masks}, updates)
        masks = trained["masks"] if pruner.trains_masks else state.masks
        state = state.replace(masks=masks)
        step = step + jnp.int32(1)
        state = pruner.update(state, trained["params"], grads, step, rng)
        params, opt_state = pruner.settle(trained["params"], opt_state, state.masks)
        return params, state, opt_state, step

    step, losses = jnp.zeros((), jnp.int32), []
    before = jax.device_get(pruner.binarize(state.masks))
    for _ in range(STEPS):
        rng = jax.random.fold_in(jax.random.key(3), step)
        loss, grads = slope(see(params, state.masks, rng))
        losses.append(float(loss))
        params, state, opt_state, step = take(params, state, opt_state, grads, step, rng)
    assert see._cache_size() == take._cache_size() == 1, "compiled anew"
    assert np.isfinite(losses).all()
    binary = pruner.binarize(state.masks)
    final = float(slope(finalize(params, binary))[0])
    assert min(losses[-3:]) < losses[0] or name in ("random", "saliency", "global_saliency")
    assert np.isfinite(final)
    if name == "none":
        return
    check_binary(binary)
    frozen, excluded = leaves()
    flat = by_path(jax.device_get(binary))
    assert excluded not in flat
    np.testing.assert_array_equal(flat[frozen], by_path(before)[frozen])
    if pruner.exact:
        assert pruner.reached(binary)
        active = [mask.shape for path, mask in flat.items() if path != frozen]
        found = sparsity(binary).nonzeros - int(flat[frozen].sum())
        assert found == expected_nonzeros(name, active)
