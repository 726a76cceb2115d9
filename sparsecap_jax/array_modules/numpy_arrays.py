"""What NumPy lacks of the operations of a search; everything else is NumPy's.

Sums are rounded in another order than XLA's. Random numbers are those of JAX's threefry keys,
which are uint32 `[B, 2]` here.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

__getattr__ = np.__getattribute__


def sigmoid(values: np.ndarray) -> np.ndarray:
    """Return the logistic function, in a form that cannot overflow."""
    return np.float32(0.5) * np.tanh(np.float32(0.5) * values) + np.float32(0.5)


def softmax(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the softmax over an axis."""
    weights = values - np.maximum.reduce(values, axis=axis, keepdims=True)
    np.exp(weights, out=weights)
    weights /= np.add.reduce(weights, axis=axis, keepdims=True)
    return weights


def log_softmax(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the log of the softmax over an axis."""
    shifted = values - np.maximum.reduce(values, axis=axis, keepdims=True)
    shifted -= np.log(np.add.reduce(np.exp(shifted), axis=axis, keepdims=True))
    return shifted


def logsumexp(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the log of the sum of exponentials along an axis."""
    highest = values.max(axis=axis, keepdims=True)
    total = np.exp(values - highest).sum(axis=axis, keepdims=True)
    return (np.log(total) + highest).squeeze(axis)


def tree_map(function: Callable, tree: Any, *others: Any) -> Any:
    """Apply a function to the leaves of trees of dicts, lists and tuples."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: tree_map(function, *(t[key] for t in (tree, *others))) for key in tree}
    if isinstance(tree, list | tuple):
        items = [tree_map(function, *parts) for parts in zip(tree, *others, strict=True)]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return function(tree, *others)


def tree_leaves(tree: Any) -> list[np.ndarray]:
    """Return the leaves of a tree of dicts, lists and tuples."""
    leaves: list[np.ndarray] = []
    tree_map(leaves.append, tree)
    return leaves


def while_loop(going: Callable, body: Callable, state: Any) -> Any:
    """Repeat `body` while `going`."""
    while going(state):
        state = body(state)
    return state


def update_if(changes: Any, update: Callable, state: Any) -> Any:
    """Return `update(state)`, which is `state` where `changes` is False."""
    return update(state) if changes else state


def fori_loop(first: int, end: int, body: Callable, state: Any) -> Any:
    """Apply `body(i, state)` for each i."""
    for i in range(first, end):
        state = body(i, state)
    return state


def top_k(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest along the last axis and where they stand; ties: lowest first."""
    at = np.argsort(-values, axis=-1, kind="stable")[..., :k].astype(np.int32)
    return np.take_along_axis(values, at, axis=-1), at


def take_along_axis(array: np.ndarray, indices: np.ndarray, axis: int) -> np.ndarray:
    """Return the values at `indices` along an axis; along the last one without much ado."""
    if axis not in (-1, array.ndim - 1) or array.shape[:-1] != indices.shape[:-1]:
        return np.take_along_axis(array, indices, axis)
    rows = array.reshape(-1, array.shape[-1])
    which = np.arange(len(rows))[:, None], indices.reshape(len(rows), -1)
    return rows[which].reshape(indices.shape)


def set_at(array: np.ndarray, index: Any, values: Any) -> np.ndarray:
    """Return `array` with `values` at `index`."""
    array = array.copy()
    array[index] = values
    return array


def add_at(array: np.ndarray, index: Any, values: Any) -> np.ndarray:
    """Return `array` with `values` added at `index`, as often as a place occurs there."""
    array = array.copy()
    np.add.at(array, index, values)
    return array


def min_at(array: np.ndarray, index: Any, values: Any) -> np.ndarray:
    """Return `array` with the minimum of it and `values` at `index`."""
    array = array.copy()
    np.minimum.at(array, index, values)
    return array


def least_later(values: np.ndarray) -> np.ndarray:
    """Return, for each place of a vector, the least value from there on."""
    return np.minimum.accumulate(values[::-1])[::-1]


def to_bits(values: np.ndarray) -> np.ndarray:
    """Return the bits of float32 as int32."""
    return values.view(np.int32)


def from_bits(bits: np.ndarray) -> np.ndarray:
    """Return the float32 of bits."""
    return bits.view(np.float32)


def fold_in(keys: np.ndarray, data: Any) -> np.ndarray:
    """Return the random keys `[B, 2]` that follow from `keys` and a number, or one of each."""
    low = np.broadcast_to(np.asarray(data, np.uint32), keys.shape[:-1])
    return np.stack(_threefry(keys, np.zeros_like(low), low), axis=-1)


def uniform(keys: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 `[B, *shape]` in [0, 1)."""
    places = np.arange(np.prod(shape, dtype=int), dtype=np.uint32).reshape(shape)
    keys = keys.reshape(-1, *[1] * len(shape), 2)
    high, low = _threefry(keys, np.zeros_like(places), places)
    return (((high ^ low) >> 9) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1.0)


def gumbel_argmax(keys: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Draw from the distributions `[B, K, V]` by Gumbel noise."""
    least = np.finfo(np.float32).tiny
    noise = -np.log(-np.log(np.maximum(uniform(keys, logits.shape[1:]), least)))
    return np.argmax(noise + logits, axis=-1)


def _threefry(key: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encrypt the counters `(x, y)` by Threefry-2x32 with 20 rounds.

    Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
    """
    first, second = key[..., 0], key[..., 1]
    words = first, second, first ^ second ^ np.uint32(0x1BD11BDA)
    x, y = x + first, y + second
    for block in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
            x = x + y
            y = ((y << np.uint32(turn)) | (y >> np.uint32(32 - turn))) ^ x
        x = x + words[(block + 1) % 3]
        y = y + words[(block + 2) % 3] + np.uint32(block + 1)
    return x, y
