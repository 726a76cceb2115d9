"""Small models that the sweep of pruning methods trains: digits, and characters of a text.

Neither needs a download: digits are those of scikit-learn (1,797 images of 8 x 8 pixels), the text
is the reference manual that Python's `help()` shows.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.settings import optional_package
from sparsecap_jax.types import PyTree

Data = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A model, its data and its recipe.

    Attributes:
        name: heads the columns and panels of results.
        model: the module of Linen.
        kernels: paths of its kernels in the order in which they run, the weights to prune.
        train: inputs and targets that batches are drawn from, int32 or float32 `[N, ...]`.
        test: those of the score.
        batch_size: examples of a step.
        learning_rate: of Adam, at the first step; it falls to 0 along a half cosine.
        score: `score(logits, targets)` of the test split, a scalar.
    """

    name: str
    model: nn.Module
    kernels: tuple[str, ...]
    train: Data
    test: Data
    batch_size: int
    learning_rate: float
    score: Callable[[Array, Array], Array]

    def init(self, rng: Array) -> PyTree:
        """Return fresh parameters."""
        return self.model.init(rng, jnp.asarray(self.train[0][:1]))["params"]

    def apply(self, params: PyTree, inputs: Any) -> Array:
        """Return logits."""
        logits: Any = self.model.apply({"params": params}, inputs)
        return logits

    def batch(self, rng: Array) -> tuple[Array, Array]:
        """Draw the examples of a step."""
        rows = jax.random.randint(rng, (self.batch_size,), 0, len(self.train[0]))
        return jnp.asarray(self.train[0])[rows], jnp.asarray(self.train[1])[rows]

    def loss(self, params: PyTree, batch: tuple[Array, Array], rng: Array) -> Array:
        """Return the mean cross-entropy, in nats."""
        return _cross_entropy(self.apply(params, batch[0]), batch[1])

    def test_score(self, params: PyTree) -> Array:
        """Return the score of the test split."""
        return self.score(self.apply(params, jnp.asarray(self.test[0])), jnp.asarray(self.test[1]))


def _cross_entropy(logits: Array, targets: Array) -> Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))


LAYERS = ("query", "key", "value", "mix", "up", "down", "out")  # of the transformer


class Perceptron(nn.Module):
    """Images `[B, pixels]` to logits `[B, classes]`."""

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, images: Float[Array, "B P"]) -> Float[Array, "B C"]:
        """Return logits."""
        x = images
        for size in self.sizes[:-1]:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(self.sizes[-1])(x)


class Transformer(nn.Module):
    """A causal transformer of one layer: characters `[B, T]` to logits of the next `[B, T, V]`."""

    vocabulary: int
    width: int
    heads: int = 4

    @nn.compact
    def __call__(self, characters: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        """Return logits."""
        batch, length = characters.shape
        x = nn.Embed(self.vocabulary, self.width)(characters)
        x += self.param("places", nn.initializers.normal(0.1), (length, self.width))
        h = nn.LayerNorm()(x)
        shape = (batch, length, self.heads, self.width // self.heads)
        parts = (nn.Dense(self.width, name=n)(h).reshape(shape) for n in ("query", "key", "value"))
        h = jax.nn.dot_product_attention(*parts, is_causal=True)
        x += nn.Dense(self.width, name="mix")(h.reshape(x.shape))
        h = nn.gelu(nn.Dense(4 * self.width, name="up")(nn.LayerNorm()(x)))
        x += nn.Dense(self.width, name="down")(h)
        return nn.Dense(self.vocabulary, name="out")(nn.LayerNorm()(x))


def digits(images: Float[np.ndarray, "N P"], labels: Int[np.ndarray, " N"]) -> Problem:
    """Classify images of digits; a fifth of them, drawn once, is the test split."""
    order = np.random.default_rng(0).permutation(len(images))
    pixels, labels = images[order].astype(np.float32) / 16, labels[order].astype(np.int32)
    size = len(images) // 5

    def score(logits, targets):
        return 100.0 * jnp.mean(jnp.argmax(logits, -1) == targets)

    return Problem(
        name="digits",
        model=Perceptron((128, 128, 10)),
        kernels=tuple(f"Dense_{number}/kernel" for number in range(3)),
        train=(pixels[size:], labels[size:]),
        test=(pixels[:size], labels[:size]),
        batch_size=64,
        learning_rate=3e-3,
        score=score,
    )


def characters(text: str, length: int = 32, width: int = 48) -> Problem:
    """Predict the next character of a text; its last tenth is the test split."""
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    codes = np.array([letters[letter] for letter in text], np.int32)
    cut = len(codes) * 9 // 10

    def split(codes: np.ndarray, every: int) -> Data:
        windows = np.lib.stride_tricks.sliding_window_view(codes, length + 1)[::every]
        return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])

    return Problem(
        name="characters",
        model=Transformer(len(letters), width),
        kernels=tuple(f"{name}/kernel" for name in LAYERS),
        train=split(codes[:cut], 8),
        test=split(codes[cut:], length * 3),
        batch_size=16,
        learning_rate=1e-2,
        score=lambda logits, targets: _cross_entropy(logits, targets) / jnp.log(2.0),
    )


def _sklearn_digits() -> Problem:
    optional_package("sklearn", "experiments", "the sweep of pruning methods, for its digits,")
    from sklearn.datasets import load_digits

    return digits(*load_digits(return_X_y=True))


def _manual() -> Problem:
    from pydoc_data.topics import topics

    return characters("".join(topics[name] for name in sorted(topics)))


UNITS = {"digits": "accuracy, %", "characters": "bits per character"}
PROBLEMS = {"digits": _sklearn_digits, "characters": _manual}


@functools.cache
def load_problem(name: str) -> Problem:
    """Return the problem of that name.

    Raises:
        ConfigError: there is none, or scikit-learn is not installed.
    """
    if name not in PROBLEMS:
        raise ConfigError(f"model is {name!r}; expected one of {', '.join(PROBLEMS)}")
    return PROBLEMS[name]()


def calibration(problem: Problem, batches: int = 4) -> Iterator[Any]:
    """Yield inputs of the training split for methods that prune layer by layer."""
    rows = np.random.default_rng(1).permutation(len(problem.train[0]))[: 64 * batches]
    yield from (jnp.asarray(problem.train[0][part]) for part in np.split(rows, batches))
