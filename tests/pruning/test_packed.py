"""Packed optimizers against the same ones with masked gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import PRUNERS, apply_masks, make_pruner, packed, packed_step, take_kept
from sparsecap_jax.pruning.step import sparse_step

STEPS = 7
KEPT = {"a": 11, "c": 9, "empty": 0, "full": 12}


def clipped(tx):
    return optax.chain(optax.clip_by_global_norm(0.5), tx)


OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.01),
    "adamw": lambda: optax.adamw(0.01, weight_decay=0.1),
    "rmsprop": lambda: optax.rmsprop(0.01, momentum=0.5),
    "lamb": lambda: optax.lamb(0.01),
    "clipped inside": lambda: clipped(optax.adam(0.01)),
    "hyperparameters": lambda: optax.inject_hyperparams(optax.adam)(
        learning_rate=optax.linear_schedule(0.1, 0.0, STEPS)
    ),
    "steps": lambda: optax.MultiSteps(optax.adam(0.01), 3).gradient_transformation(),
}
# Sums over a leaf or over all, in another order.
ROUNDED = ("lamb", "clipped inside")


def parts():
    """Parameters, masks with `KEPT` entries, and gradients of each step, for pruned weights too."""
    rng = np.random.default_rng(0)
    shapes = {"a": (6, 8), "c": (3, 4, 5), "empty": (2, 3), "full": (3, 4)}

    def draw():
        tree = {key: {"kernel": rng.standard_normal(shape)} for key, shape in shapes.items()}
        tree["a"]["bias"] = rng.standard_normal(8)
        return jax.tree.map(jnp.float32, tree)

    masks = {}
    for name, count in KEPT.items():
        mask = np.zeros(shapes[name], np.float32)
        mask.flat[rng.permutation(mask.size)[:count]] = 1
        masks[name] = {"kernel": mask}
    return apply_masks(draw(), masks), masks, [draw() for _ in range(STEPS)]


def run(tx, params, grads):
    """The parameters after each step."""
    state, found = tx.init(params), []

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for slopes in grads:
        params, state = step(params, state, slopes)
        found.append(params)
    return found, state


def assert_equal(found, expected, exact=True):
    compare = np.testing.assert_array_equal
    if not exact:
        compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)  # noqa: E731
    jax.tree.map(compare, found, expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_those_of_masked_gradients(name):
    params, masks, grads = parts()
    tx = OPTIMIZERS[name]()
    expected, _ = run(tx, params, [apply_masks(slopes, masks) for slopes in grads])
    found, state = run(packed(tx, masks), params, grads)
    assert_equal(found, expected, exact=name not in ROUNDED)
    # Leaves of the state inside: kept values alone, of "empty" one that stands for none.
    sizes = {leaf.size for leaf in jax.tree.leaves(state.inner) if leaf.ndim}
    assert sizes <= {KEPT["a"], KEPT["c"], 1, KEPT["full"], 8}


@pytest.mark.parametrize("name", ["adam", "adamw", "clipped inside"])
def test_steps_in_place_are_those_of_apply_updates(name):
    params, masks, grads = parts()
    tx = OPTIMIZERS[name]()
    expected, _ = run(packed(tx, masks), params, grads)
    state = packed(tx, masks).init(params)
    step = jax.jit(lambda *args: packed_step(tx, *args), donate_argnums=(1, 2))
    for slopes, theirs in zip(grads, expected, strict=True):
        given = jax.tree.leaves(params)
        params, state = step(take_kept(slopes, state.places), state, params)
        assert_equal(params, theirs)
        assert given[0].is_deleted()
    assert step._cache_size() == 1


@pytest.mark.usefixtures("default_emitters")
@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("clipped", clipped),
        ("steps", lambda tx: optax.MultiSteps(tx, 3).gradient_transformation()),
        (
            "hyperparameters",
            lambda tx: optax.inject_hyperparams(lambda x: optax.chain(tx, optax.scale(x)))(x=0.5),
        ),
    ],
)
def test_transformations_outside(name, wrap):
    """The gradients that reach an outer transformation are masked, as the sparse step has them."""
    params, masks, grads = parts()
    grads = [apply_masks(slopes, masks) for slopes in grads]
    expected, _ = run(wrap(optax.adam(0.01)), params, grads)
    found, _ = run(wrap(packed(optax.adam(0.01), masks)), params, grads)
    assert_equal(found, expected)


def test_pruned_weights_never_move():
    """Gradients and weight decay would move them, and a later momentum."""
    params, masks, grads = parts()
    params = jax.tree.map(lambda leaf: leaf + 1, params)
    found, _ = run(packed(optax.adamw(0.1, weight_decay=0.5), masks), params, grads)
    for name, mask in masks.items():
        gone = mask["kernel"] == 0
        before, after = (np.asarray(tree[name]["kernel"]) for tree in (params, found[-1]))
        np.testing.assert_array_equal(after[gone], before[gone])
        assert (after[~gone] != before[~gone]).all()


def test_a_step_by_hand():
    """SGD with momentum 0.5 at rate 1 on two of four weights, the pruned ones untouched."""
    params = {"kernel": jnp.float32([[1, 2], [3, 4]])}
    masks = {"kernel": np.float32([[0, 1], [1, 0]])}
    tx = packed(optax.sgd(1.0, momentum=0.5), masks)
    state = tx.init(params)
    np.testing.assert_array_equal(state.places["kernel"], [1, 2])
    assert state.places["kernel"].dtype == jnp.int32
    for expected in ([[0, -10], [-20, 0]], [[0, -15], [-30, 0]]):
        updates, state = tx.update({"kernel": jnp.float32([[7, 10], [20, 7]])}, state, params)
        np.testing.assert_array_equal(updates["kernel"], expected)


def test_any_pytree():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    masks = {"kernel": np.tile(np.float32([[1], [0]]), (2, 3))}
    updates, state = packed(optax.sgd(1.0), masks).update(
        jax.tree.map(jnp.ones_like, params), packed(optax.sgd(1.0), masks).init(params)
    )
    np.testing.assert_array_equal(updates["kernel"][...], -masks["kernel"])
    assert state.places["kernel"].tolist() == [0, 1, 2, 6, 7, 8]


def test_masks_that_do_not_fit():
    params, masks, grads = parts()
    tx = optax.adam(0.1)
    with pytest.raises(ConfigError, match=r"mask 'b/kernel' has no parameter of that path"):
        packed(tx, {"b": masks["a"]}).init(params)
    with pytest.raises(ConfigError, match=r"mask 'a/kernel' has shape \(2, 3\); its parameter has"):
        packed(tx, {"a": masks["empty"]}).init(params)
    with pytest.raises(ConfigError, match="mask 'a/kernel' is not binary"):
        packed(tx, {"a": {"kernel": masks["a"]["kernel"] * 2}}).init(params)
    with pytest.raises(ConfigError, match="the masks are traced"):
        jax.jit(lambda masks: packed(tx, masks).init(params))(masks)
    state = packed(tx, masks).init(params)
    other = {**grads[0], "a": {"kernel": jnp.zeros((8, 8)), "bias": jnp.zeros(8)}}
    with pytest.raises(ConfigError, match=r"'a/kernel' has shape \(6, 8\); its parameter has \(8"):
        packed(tx, masks).update(other, state, params)


def test_checkpoints_continue_exactly(tmp_path):
    params, masks, grads = parts()
    tx = packed(optax.adam(0.01), masks)
    whole, _ = run(tx, params, grads)
    first, state = run(tx, params, grads[:3])
    saver = ocp.StandardCheckpointer()
    saver.save(tmp_path / "state", {"params": first[-1], "opt_state": state})
    saver.wait_until_finished()
    like = {"params": params, "opt_state": packed(optax.adam(0.01), masks).init(params)}
    restored = saver.restore(tmp_path / "state", jax.eval_shape(lambda: like))
    saver.close()
    params, state = restored["params"], restored["opt_state"]
    for slopes, expected in zip(grads[3:], whole[3:], strict=True):
        updates, state = tx.update(slopes, state, params)
        params = optax.apply_updates(params, updates)
        assert_equal(params, expected, exact=False)  # here without jit


FIXED = {
    *("mag_blind", "mag_uniform", "mag_dist", "snip", "static_sparse", "mask_freeze"),
    *("lottery_mag_blind", "lottery_mag_uniform", "lottery_mag_dist", "lottery_mask_freeze"),
}


def fields(name):
    return {"name": name} | (
        {} if name in ("none",) or "mask_freeze" in name else {"sparsity": 0.6}
    )


@pytest.mark.parametrize("name", PRUNERS)
def test_only_masks_that_stay_may_be_packed(name):
    pruner = make_pruner(fields(name), total_steps=STEPS, steps_per_epoch=2)
    assert pruner.fixed_masks == (name in FIXED)
    if name not in FIXED:
        with pytest.raises(ConfigError, match=f"pruner '{name}' has no masks that stay the same"):
            sparse_step(pruner, optax.adam(0.1), lambda params, batch, rng: 0.0, packs=True)


@pytest.mark.usefixtures("default_emitters")
@pytest.mark.parametrize("name", sorted(FIXED))
def test_a_sparse_step_that_packs_is_the_same_training(name):
    params, masks, targets = parts()

    def loss(params, batch, rng):
        squares = jax.tree.map(lambda p, t: jnp.sum(jnp.square(p - t)), params, batch)
        return sum(jax.tree.leaves(squares))

    results = []
    for packs in (False, True):
        pruner = make_pruner(fields(name), total_steps=STEPS, steps_per_epoch=2)
        step = sparse_step(pruner, optax.adam(0.03), loss, packs=packs)
        more = {"masks": masks} if pruner.needs_masks else {}
        more |= {"initial": targets[1]} if pruner.rewinds else {}
        more |= {"batches": [targets[0]]} if pruner.batches_needed else {}
        state, found = step.init(jax.random.key(0), jax.tree.map(jnp.array, params), **more), []
        compiled = jax.jit(step, donate_argnums=0)
        for batch in targets:
            state, metrics = compiled(state, batch)
            found.append(metrics)
        assert compiled._cache_size() == 1
        dtypes = {mask.dtype for mask in jax.tree.leaves(state.prune.masks)}
        assert dtypes == {jnp.dtype(bool if packs else jnp.float32)}
        results.append((found, step.finish(state)))
    (dense, (weights, binary)), (lean, (packed_weights, packed_binary)) = results
    assert_equal(packed_weights, weights)
    assert_equal(packed_binary, jax.tree.map(lambda mask: mask != 0, binary))
    assert_equal(lean, dense, exact=False)
