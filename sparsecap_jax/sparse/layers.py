"""Weights and layers of the models in NumPy."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from sparsecap_jax.array_modules.numpy_arrays import softmax
from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.sparse.forms import LANES, LANES_NS, WORD_NS
from sparsecap_jax.sparse.matrices import Product, WordProduct, word_weights
from sparsecap_jax.trees import flatten
from sparsecap_jax.types import PyTree

Map = Callable[[np.ndarray], np.ndarray]
MASKED_SCORE = np.float32(-1e9)
# Captions of models with fewer weights take less than importing Numba.
_SMALL = 500_000


class Weights:
    """The params of a model, each taken once and of the shape that its fields call for.

    Args:
        params: nested dicts of float32 arrays, masks applied.
        form: form of all matrices, see `Product`; by default each has its best one.
        threads: see `Product`.

    Attributes:
        products: the products with matrices made so far.
    """

    def __init__(self, params: PyTree, form: str = "", threads: int = 0):
        self._leaves = flatten(params)
        kept = sum(int(np.count_nonzero(leaf)) for leaf in self._leaves.values())
        self._options = form, threads, kept < _SMALL
        self.products: list[Product | WordProduct] = []

    def take(self, path: str, *shape: int) -> np.ndarray:
        """Return a leaf; a CheckpointError if it is missing or has another shape."""
        if path not in self._leaves:
            raise CheckpointError(f"weight {path} is missing")
        leaf = np.asarray(self._leaves.pop(path), np.float32)
        if leaf.shape != shape:
            raise CheckpointError(f"weight {path} has shape {leaf.shape}, expected {shape}")
        return leaf

    def product(self, kernel: np.ndarray) -> Product:
        """Return the product with a kernel `[in, out]`."""
        product = Product(kernel, *self._options)
        self.products.append(product)
        return product

    def linear(self, path: str, inputs: int, outputs: int) -> Map:
        """Return the affine map of a `Linear` layer."""
        product = self.product(self.take(f"{path}/kernel", inputs, outputs))
        bias = self.take(f"{path}/bias", outputs)
        return lambda rows: product(rows, bias)

    def words(
        self, embedding: Float[np.ndarray, "V I"], kernel: Float[np.ndarray, "I O"]
    ) -> Callable[[np.ndarray, np.ndarray], None]:
        """Return the function that adds the products of embedded words to `results [..., O]`.

        It takes the words' tokens and the results. Where words have few entries, only their rows
        of the kernel are read.
        """
        form, _, small = self._options
        alone = WORD_NS * word_weights(embedding, kernel)
        together = LANES_NS["csr"] / LANES * np.count_nonzero(kernel)
        if form in ("", "csr") and not small and alone < together:
            product = WordProduct(embedding, kernel)
            self.products.append(product)
            return lambda tokens, results: product.add(tokens, results)
        dense = self.product(kernel)
        return lambda tokens, results: dense.add(embedding[tokens], results)

    def finish(self) -> None:
        """Raise a CheckpointError where a leaf has not been taken."""
        for path in sorted(self._leaves):
            raise CheckpointError(f"weight {path} is extra")


def relu(values: np.ndarray) -> np.ndarray:
    """Set what is negative to 0, in place."""
    return np.maximum(values, np.float32(0.0), out=values)


def lstm_ordered(weights: Float[np.ndarray, "... G"]) -> Float[np.ndarray, "... G"]:
    """Return the weights of an LSTM's gates in the order and the scale of `lstm_advance`.

    They are input, forget, output and cell gates; the first three are halved, since the logistic
    function of x is `(tanh(x / 2) + 1) / 2`. Halving is exact.
    """
    i, f, g, o = np.split(weights, 4, axis=-1)
    half = np.float32(0.5)
    return np.concatenate([half * i, half * f, half * o, g], axis=-1)


def lstm_advance(
    gates: Float[np.ndarray, "... G"], cell: Float[np.ndarray, "... H"]
) -> tuple[Float[np.ndarray, "... H"], Float[np.ndarray, "... H"]]:
    """Return the hidden and the cell state that follow `cell`, as `formulas.lstm_state` does.

    `gates` are those of weights that are `lstm_ordered`, and are overwritten.
    """
    width = cell.shape[-1]
    np.tanh(gates, out=gates)
    logistic = gates[..., : 3 * width]
    np.multiply(logistic, np.float32(0.5), out=logistic)
    np.add(logistic, np.float32(0.5), out=logistic)
    new = gates[..., width : 2 * width] * cell
    added = gates[..., 3 * width :]
    added *= gates[..., :width]
    new += added
    hidden = np.tanh(new)
    hidden *= gates[..., 2 * width : 3 * width]
    return hidden, new


def layer_norm(weights: Weights, path: str, width: int) -> Map:
    """Return the `models.attention.LayerNorm` of a path."""
    scale, bias = (weights.take(f"{path}/{name}", width) for name in ("scale", "bias"))
    share, unbiased = np.float32(1 / width), np.float32(1 / (width - 1))

    def norm(rows: np.ndarray) -> np.ndarray:
        centred = rows - np.add.reduce(rows, axis=-1, keepdims=True) * share
        squares = np.einsum("...d,...d->...", centred, centred)[..., None]
        centred /= np.sqrt(squares * unbiased) + np.float32(1e-6)
        centred *= scale
        centred += bias
        return centred

    return norm


class Attention:
    """`models.attention.MultiHeadAttention` of a path; `share` "", "kv" or "qk".

    `project` gives queries, keys and values of one and the same input by a single product;
    `query` and `memory` those of two inputs. Heads come before places, `[G, H, R, E]`.
    """

    def __init__(
        self, weights: Weights, path: str, width: int, heads: int, share: str, cross: bool = False
    ):
        keys = {"": ("key", "value"), "kv": ("key",), "qk": ("query", "value")}[share]
        names = tuple(dict.fromkeys(("query", *keys)))
        kernels = {name: weights.take(f"{path}/{name}/kernel", width, width) for name in names}
        biases = {name: weights.take(f"{path}/{name}/bias", width) for name in names}
        self._heads, self._places = heads, [names.index(name) for name in ("query", *keys)]

        def joined(names: tuple[str, ...]) -> Callable[[np.ndarray], list[np.ndarray]]:
            product = weights.product(np.concatenate([kernels[name] for name in names], axis=1))
            bias = np.concatenate([biases[name] for name in names])

            def project(rows: np.ndarray) -> list[np.ndarray]:
                found = product(rows, bias)
                return [
                    self._split(found[..., i * width : (i + 1) * width]) for i in range(len(names))
                ]

            return project

        if cross:
            self._query, self._memory = joined(("query",)), joined(keys)
        else:
            self._all = joined(names)
        self.out = weights.linear(f"{path}/out", width, width)
        self._scale = np.float32(np.sqrt(width // heads))

    def project(self, rows: Float[np.ndarray, "G R D"]) -> list[np.ndarray]:
        """Return query, key and, unless keys serve as values, value."""
        parts = self._all(rows)
        return [parts[place] for place in self._places]

    def query(self, rows: Float[np.ndarray, "G Q D"]) -> np.ndarray:
        """Return the queries."""
        return self._query(rows)[0]

    def memory(self, rows: Float[np.ndarray, "G R D"]) -> list[np.ndarray]:
        """Return key and, unless keys serve as values, value."""
        return self._memory(rows)

    def attend(
        self,
        query: Float[np.ndarray, "G H Q E"],
        memory: list[Float[np.ndarray, "G H R E"]],
        mask: np.ndarray | None = None,
        bias: np.ndarray | None = None,
    ) -> tuple[Float[np.ndarray, "G Q D"], Float[np.ndarray, "G H Q R"]]:
        """Return the mixed values, not yet projected by `out`, and the attention weights."""
        scores = query @ memory[0].swapaxes(-1, -2)
        scores /= self._scale
        if mask is not None:
            scores = np.where(mask, scores, MASKED_SCORE)
        weights = softmax(scores if bias is None else scores + bias)
        mixed = (weights @ memory[-1]).swapaxes(1, 2)
        return mixed.reshape(*mixed.shape[:2], -1), weights

    def _split(self, projected: np.ndarray) -> np.ndarray:
        parts = projected.reshape(*projected.shape[:2], self._heads, -1)
        return parts.swapaxes(1, 2)
