"""What `numpy_arrays` adds to NumPy is what JAX does."""

import jax
import numpy as np
import pytest

from sparsecap_jax.array_modules import array_module, jax_arrays, numpy_arrays

RNG = np.random.default_rng(0)
VALUES = np.round(RNG.standard_normal((3, 4, 20)), 1).astype(np.float32)  # with ties
PLACES = np.arange(3)[:, None], np.array([[0, 0], [1, 3], [2, 2]])
CALLS = {
    "softmax": (VALUES,),
    "log_softmax": (VALUES,),
    "sigmoid": (100 * VALUES,),
    "top_k": (VALUES, 7),
    "least_later": (VALUES[0, 0],),
    "to_bits": (VALUES,),
    "set_at": (VALUES, (0, 1), np.float32(7)),
    "take_along_axis": (VALUES, VALUES[..., ::3].argsort(axis=-1), 2),
    "add_at": (VALUES[..., 0], PLACES, np.float32(1)),
    "min_at": (VALUES[..., 0], PLACES, np.float32(-1)),
}


@pytest.mark.parametrize("name", CALLS)
def test_functions_are_those_of_jax(name):
    found = getattr(numpy_arrays, name)(*CALLS[name])
    array, *others = CALLS[name]
    expected = getattr(jax_arrays, name)(jax.numpy.asarray(array), *others)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_nothing_is_changed_in_place():
    before = VALUES.copy()
    for name in ("set_at", "add_at", "min_at"):
        getattr(numpy_arrays, name)(*CALLS[name])
    np.testing.assert_array_equal(VALUES, before)


def test_random_numbers_are_those_of_jax():
    keys = jax.random.split(jax.random.key(5), 3)
    data = np.asarray(jax.random.key_data(keys))
    for number in (0, 7, np.int32(300)):
        expected = jax.random.key_data(jax_arrays.fold_in(keys, number))
        np.testing.assert_array_equal(numpy_arrays.fold_in(data, number), expected)
    for shape in ((), (5,), (4, 2)):
        expected = jax_arrays.uniform(keys, shape)
        np.testing.assert_array_equal(numpy_arrays.uniform(data, shape), expected)
    logits = 3 * VALUES
    expected = jax_arrays.gumbel_argmax(keys, logits)
    np.testing.assert_array_equal(numpy_arrays.gumbel_argmax(data, logits), expected)


def test_trees_keep_their_types():
    tree = {"a": [np.ones(2), (np.zeros(1), None)]}
    assert numpy_arrays.tree_map(lambda leaf: leaf.shape, tree) == {"a": [(2,), ((1,), None)]}
    assert [leaf.size for leaf in numpy_arrays.tree_leaves(tree)] == [2, 1]


def test_the_module_of_an_array():
    assert array_module(np.zeros(1)) is numpy_arrays
    assert array_module(jax.numpy.zeros(1)) is jax_arrays
    assert jax.jit(lambda x: array_module(x) is jax_arrays)(np.zeros(1))
