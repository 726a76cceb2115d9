import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sparsecap_jax.pruning.ranking import magnitudes, prune_smallest, standardized_magnitudes


def by_sorting(tensors, remove, groups):
    """The obvious version: a stable sort within each group."""
    masks = [np.ones(t.size, np.float32) for t in tensors]
    for group, count in enumerate(remove):
        entries = [
            (float(value), tensor, index)
            for tensor, t in enumerate(tensors)
            if groups[tensor] == group
            for index, value in enumerate(t.reshape(-1))
        ]
        for _, tensor, index in sorted(entries, key=lambda entry: entry[0])[:count]:
            masks[tensor][index] = 0.0
    return [mask.reshape(t.shape) for mask, t in zip(masks, tensors, strict=True)]


def check(tensors, remove, groups):
    ours = prune_smallest(
        [jnp.asarray(t, jnp.float32) for t in tensors], jnp.array(remove, jnp.uint32), groups
    )
    for mine, other in zip(ours, by_sorting(tensors, remove, groups), strict=True):
        assert mine.dtype == jnp.float32
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_equals_a_stable_sort(seed, levels):
    """Few levels make many ties, which go by flat index."""
    rng = np.random.default_rng(seed)
    shapes = [(3, 4), (1, 1), (5, 2, 2), (7, 1)]
    tensors = [(rng.integers(-levels, levels, s) / 7).astype(np.float32) for s in shapes]
    check(tensors, [int(rng.integers(0, 41))], (0, 0, 0, 0))
    check(tensors, [int(rng.integers(0, t.size + 1)) for t in tensors], (0, 1, 2, 3))
    check(tensors, [int(rng.integers(0, 33)), 5], (0, 1, 0, 1))


def by_argsort(tensors, remove):
    """The masks of one group of large tensors."""
    flat = np.concatenate([t.reshape(-1) for t in tensors])
    mask = np.ones(flat.size, np.float32)
    mask[np.argsort(flat, kind="stable")[:remove]] = 0.0
    parts = np.split(mask, np.cumsum([t.size for t in tensors])[:-1])
    return [part.reshape(t.shape) for part, t in zip(parts, tensors, strict=True)]


@pytest.mark.parametrize("kind", ["normal", "ties", "spread", "constant"])
def test_large_tensors_equal_a_stable_argsort(kind):
    rng = np.random.default_rng(3)
    tensors = [np.abs(rng.normal(size=shape)).astype(np.float32) for shape in ((300, 260), (9, 7))]
    if kind == "ties":
        tensors = [t.round(1) for t in tensors]
    if kind == "spread":
        tensors = [t**20 for t in tensors]
    if kind == "constant":
        tensors = [np.ones_like(t) for t in tensors]
    size = 300 * 260
    for remove in (0, 1, 777, size // 2, int(0.95 * size), size - 1, size + 63):
        groups = (0, 0)
        ours = prune_smallest(
            [jnp.asarray(t) for t in tensors], jnp.array([remove], jnp.uint32), groups
        )
        for mine, other in zip(ours, by_argsort(tensors, remove), strict=True):
            np.testing.assert_array_equal(mine, other)


def test_none_all_zeros_and_infinities():
    tensors = [np.array([[0.0, -0.0, np.inf], [-np.inf, 1e-45, 0.0]], np.float32)]
    for count in range(7):
        check(tensors, [count], (0,))


def test_one_compilation_serves_all_counts():
    ranked = jax.jit(lambda s, k: prune_smallest([s], k, (0,)))
    s = jnp.arange(10, dtype=jnp.float32)
    for count in (0, 3, 9):
        assert int(ranked(s, jnp.array([count], jnp.uint32))[0].sum()) == 10 - count
    assert ranked._cache_size() == 1


@pytest.mark.parametrize("criterion", ["blind", "uniform", "dist"])
def test_sharded_weights_give_the_same_masks(criterion):
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    rng = np.random.default_rng(0)
    weights = [
        (10.0**i * rng.normal(size=(64, 24)) + i).astype(np.float32).round(2) for i in range(3)
    ]
    groups = (0, 1, 2) if criterion == "uniform" else (0, 0, 0)
    remove = jnp.full(max(groups) + 1, 1000, jnp.uint32)
    score = standardized_magnitudes if criterion == "dist" else magnitudes

    @jax.jit
    def masks(weights):
        return prune_smallest(score(weights), remove, groups)

    single = masks([jnp.asarray(w) for w in weights])
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    spread = masks([jax.device_put(w, sharding) for w in weights])
    assert len(spread[0].sharding.device_set) == 8
    for one, other in zip(single, spread, strict=True):
        np.testing.assert_array_equal(one, other)
    assert sum(int(m.sum()) for m in single) == 3 * 64 * 24 - 1000 * (max(groups) + 1)


def test_standardised_scores():
    rng = np.random.default_rng(1)
    weights = [rng.normal(3, 2, (9, 5)), rng.normal(-1, 0.1, (11, 3))]
    found = standardized_magnitudes([jnp.asarray(w, jnp.float32) for w in weights])
    for weight, score in zip(weights, found, strict=True):
        expected = np.abs(weight - weight.mean()) / weight.std()
        np.testing.assert_allclose(score, expected, rtol=2e-5, atol=2e-6)
