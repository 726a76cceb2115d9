"""Movement pruning, hard and soft, against float64 versions with scores of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import by_path, make_pruner, sparse_step

RNG = np.random.default_rng(0)
SHAPES = {"a": (6, 7), "b": (5, 4)}
STEPS, RATE, SCORE_RATE = 24, 0.05, 0.3


def normal():
    return {name: RNG.normal(size=shape) for name, shape in SHAPES.items()}


WEIGHTS, TARGETS = normal(), normal()


def loss(params, batch, rng):
    """Half the squared distance from TARGETS: the gradient is the difference."""
    pairs = ((params[name]["kernel"], TARGETS[name]) for name in SHAPES)
    return sum(0.5 * jnp.sum(jnp.square(weight - target)) for weight, target in pairs)


def trained(pruner, steps=STEPS):
    """Masks before each step, and the state after all."""
    params = {n: {"kernel": jnp.asarray(w, jnp.float32)} for n, w in WEIGHTS.items()}
    step = sparse_step(pruner, optax.sgd(RATE), loss, mask_tx=optax.sgd(SCORE_RATE))
    state, take, masks = step.init(jax.random.key(0), params), jax.jit(step), []
    for _ in range(steps):
        masks.append(pruner.binarize(state.prune.masks))
        state, metrics = take(state, None)
    return masks, state, metrics


def slow_step(weights, scores, masks, push=lambda score: 0.0):
    """One step of SGD on weights and scores; `push` is the gradient of a penalty."""
    for name in SHAPES:
        slope = weights[name] * masks[name] - TARGETS[name]
        moved = scores[name] - SCORE_RATE * (slope * weights[name] + push(scores[name]))
        weights[name] = weights[name] - RATE * slope * masks[name]
        scores[name] = moved


def top(scores, sparsity, together):
    """1 for all but the lowest scores, of each tensor or of all."""
    names = [list(SHAPES)] if together else [[name] for name in SHAPES]
    masks = {name: np.ones(shape) for name, shape in SHAPES.items()}
    for group in names:
        ranked = sorted((scores[n][at], n, at) for n in group for at in np.ndindex(SHAPES[n]))
        for _, name, at in ranked[: int(sparsity * len(ranked))]:
            masks[name][at] = 0
    return masks


@pytest.mark.parametrize("distribution", ["uniform", "global"])
def test_hard(distribution):
    """Top v of the sums of -rate x weight x gradient, v along the cubic of 3 events."""
    fields = {"start_step": 4, "frequency": 5, "events": 3, "distribution": distribution}
    pruner = make_pruner({"name": "movement", "sparsity": 0.7, **fields}, total_steps=STEPS)
    found, state, _ = trained(pruner)
    weights, scores = dict(WEIGHTS), {name: np.zeros(shape) for name, shape in SHAPES.items()}
    expected, changes = [top(scores, 0.0, False)], 0
    for number in range(1, STEPS + 1):
        slow_step(weights, scores, expected[-1])
        event = min(max((number - 4) // 5, 0), 3)
        target = 0.7 * (1 - (1 - event / 3) ** 3)
        expected.append(top(scores, target, distribution == "global"))
        back = [(expected[-1][n] > expected[-2][n]).any() for n in SHAPES]
        changes += any(back)
    for masks, others in zip([*found, pruner.binarize(state.prune.masks)], expected, strict=True):
        for name in SHAPES:
            np.testing.assert_array_equal(masks[name]["kernel"], others[name])
    assert changes > 2  # pruned weights whose scores rise come back
    for name in SHAPES:
        np.testing.assert_allclose(state.params[name]["kernel"], weights[name], atol=1e-5)
    assert pruner.reached(pruner.binarize(state.prune.masks))
    assert pruner.begun(state.prune.masks)


def test_rankings_now_and_then():
    """Between them scores cross the last cut; after the last step the target is met exactly."""
    fields = {"start_step": 1, "frequency": 1, "events": 1, "rank_every": 10}
    pruner = make_pruner({"name": "movement", "sparsity": 0.5, **fields}, total_steps=STEPS)
    masks, state, metrics = trained(pruner)
    kept = [sum(float(mask.sum()) for mask in by_path(m).values()) for m in masks]
    assert kept[:2] == [62, 62]  # the second event has the whole target
    assert kept[2] == kept[10] == kept[20] == 31
    assert any(count != 31 for count in kept[3:20])
    final = pruner.binarize(state.prune.masks)
    assert sum(float(mask.sum()) for mask in by_path(final).values()) == 31
    assert float(metrics["sparsity"]) == 0.5


def test_equal_scores_are_cut_by_their_order():
    """All scores are equal: the earlier go, and the masks stay so for good."""
    params = {"kernel": jnp.ones((2, 3))}
    fields = {"start_step": 1, "frequency": 1, "events": 1, "initial_sparsity": 0.5}
    pruner = make_pruner({"name": "movement", "sparsity": 0.5, **fields}, total_steps=4)
    state = pruner.init(jax.random.key(0), params)
    for step in (1, 2, 3):
        state = pruner.update(state, params, None, step)
        mask = pruner.binarize(state.masks)["kernel"]
        np.testing.assert_array_equal(mask, [[0, 0, 0], [1, 1, 1]])


def test_soft():
    """Sigmoids below 0.2 are pruned; the penalty's gradient is spread over all scores."""
    fields = {"threshold": 0.2, "sparsity_weight": 40.0}
    pruner = make_pruner({"name": "soft_movement", **fields}, total_steps=STEPS)
    found, state, metrics = trained(pruner)
    weights, scores = dict(WEIGHTS), {name: np.zeros(shape) for name, shape in SHAPES.items()}

    def sigmoid(score):
        return 1 / (1 + np.exp(-score))

    def push(score):
        return 40.0 / 62 * sigmoid(score) * (1 - sigmoid(score))

    gone = []
    for masks in found:
        penalty = 40.0 * np.mean(np.concatenate([sigmoid(scores[n]).ravel() for n in SHAPES]))
        kept = {name: (sigmoid(scores[name]) > 0.2).astype(float) for name in SHAPES}
        for name in SHAPES:
            np.testing.assert_array_equal(masks[name]["kernel"], kept[name])
        gone.append(62 - sum(mask.sum() for mask in kept.values()))
        slow_step(weights, scores, kept, push)
    assert gone[0] == 0 and 5 < gone[-1] < 60
    np.testing.assert_allclose(metrics["sparsity_loss"], penalty, rtol=1e-5)
    for name in SHAPES:
        np.testing.assert_allclose(state.params[name]["kernel"], weights[name], atol=1e-5)
    binary = pruner.binarize(state.prune.masks)
    assert pruner.reached(binary)  # there is no target
    strict = make_pruner({"name": "soft_movement", "sparsity": 0.99}, total_steps=STEPS)
    assert not strict.reached(binary)


@pytest.mark.parametrize("name", ["movement", "soft_movement"])
def test_default_optimizer_of_scores(name):
    """Adam at 1e-2, as the authors use: its first step moves every score by 1e-2."""
    pruner = make_pruner({"name": name, "sparsity": 0.5}, total_steps=100)
    params = {n: {"kernel": jnp.asarray(w, jnp.float32)} for n, w in WEIGHTS.items()}
    step = sparse_step(pruner, optax.sgd(RATE), loss)
    state = step.init(jax.random.key(0), params)
    before = by_path(state.prune.masks)
    after = by_path(step(state, None)[0].prune.masks)
    moved = np.concatenate([np.ravel(after[path] - before[path]) for path in before])
    if name == "movement":  # the cut shifts all scores
        moved = moved.astype(float) - (moved.min() + moved.max()) / 2
    np.testing.assert_allclose(np.abs(moved), 1e-2, rtol=1e-3)


def test_what_movement_does_not_offer():
    with pytest.raises(ConfigError, match=r"pruner.sparsity_type: unknown key"):
        make_pruner({"name": "movement", "sparsity_type": "2:4"}, total_steps=9)
    with pytest.raises(ConfigError, match=r"'movement' cannot find masks from the weights at once"):
        make_pruner({"name": "movement"}, total_steps=9).instant_sparsify(
            {"kernel": jnp.ones((4, 4))}
        )
    with pytest.raises(ConfigError, match=r"threshold is 0.5; expected"):
        make_pruner({"name": "soft_movement", "threshold": 0.5}, total_steps=9)
