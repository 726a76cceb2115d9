"""From sampled tokens to rewards, and the baselines that they are compared with."""

import dataclasses
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from sparsecap_jax.scst.document_frequency import DocumentFrequency
from sparsecap_jax.scst.scorers import HostScorer, idf_tables, score_on_device
from sparsecap_jax.scst.words import References, Vocabulary, word_table
from sparsecap_jax.tokenizers import Tokenizer
from sparsecap_jax.types import ArrayLike, PyTree


@dataclasses.dataclass(frozen=True)
class RewardWeights:
    """Weights of the scores in a reward.

    Attributes:
        cider_d: of CIDEr-D, on its scale of 0 to 10.
        bleu: of BLEU-1 to 4.
    """

    cider_d: float = 1.0
    bleu: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def combine(
        self, xp: ModuleType, cider_d: Float[ArrayLike, "*N"], bleu: Float[ArrayLike, "*N 4"]
    ) -> Float[ArrayLike, "*N"]:
        """Return the weighted sum, in the type of `cider_d`; `xp` is `numpy` or `jax.numpy`."""
        return self.cider_d * cider_d + bleu @ xp.asarray(self.bleu, cider_d.dtype)


def leave_one_out(rewards: Float[ArrayLike, "*B K"]) -> Float[ArrayLike, "*B K"]:
    """Return the mean reward of an image's other captions, the baseline of each; K is 2 or more.

    Source: `scst/scorers.py` of the reference; also Luo, "A Better Variant of Self-Critical
    Sequence Training", 2020, arXiv 2003.09971.
    """
    return (rewards.sum(axis=-1, keepdims=True) - rewards) / (rewards.shape[-1] - 1)


@dataclasses.dataclass(frozen=True, eq=False)
class DeviceRewards:
    """Rewards of word and radix tokens, computed where the captions were sampled.

    Attributes:
        weights: of the scores.
        resources: arrays that `__call__` needs, to be passed to compiled code.
        references: of the split's images.
    """

    weights: RewardWeights
    resources: PyTree
    references: References

    def gather(self, images: Int[np.ndarray, "*B"]) -> PyTree:
        """Return the arrays `[*B, ...]` of images that `__call__` takes."""
        return self.references.gather(images)

    def __call__(
        self,
        resources: PyTree,
        gathered: PyTree,
        tokens: Int[Array, "B K T"],
        lengths: Int[Array, "B K"],
    ) -> Float[Array, "B K"]:
        """Reward captions without BOS, EOS included in `lengths`; for compiled code.

        `resources` are the attribute of that name, `gathered` the result of `gather`.
        """
        words, tables = resources
        return self.weights.combine(
            jnp, *score_on_device(tables, *words(tokens, lengths), *gathered)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class HostRewards:
    """Rewards of subword tokens as in `DeviceRewards`: the step calls the host, which decodes.

    Attributes:
        weights: of the scores.
        tokenizer: the model's.
        scorer: of their words.
        mesh: devices that images are split over; each calls its own host, for its own images.
        resources: none.
    """

    weights: RewardWeights
    tokenizer: Tokenizer
    scorer: HostScorer
    mesh: Mesh | None = None
    resources: PyTree = ()

    def gather(self, images: Int[np.ndarray, "*B"]) -> PyTree:
        """Return the numbers of the images."""
        return np.asarray(images, np.int32)

    def __call__(
        self,
        resources: PyTree,
        gathered: PyTree,
        tokens: Int[Array, "B K T"],
        lengths: Int[Array, "B K"],
    ) -> Float[Array, "B K"]:
        """Reward captions, as `DeviceRewards` does."""

        def score(gathered, tokens, lengths):
            shape = jax.ShapeDtypeStruct(lengths.shape, jnp.float32)
            return jax.pure_callback(self._score, shape, gathered, tokens, lengths)

        if self.mesh is not None and self.mesh.size > 1:
            split = PartitionSpec("data")
            options: dict[str, Any] = {"in_specs": split, "out_specs": split, "check_vma": False}
            score = jax.shard_map(score, mesh=self.mesh, **options)
        return score(gathered, tokens, lengths)

    def _score(self, images: Any, tokens: Any, lengths: Any) -> np.ndarray:
        images, tokens, lengths = (np.asarray(array) for array in (images, tokens, lengths))
        texts = [
            [self.tokenizer.decode(row[:n]) for row, n in zip(rows, counts, strict=True)]
            for rows, counts in zip(tokens, lengths, strict=True)
        ]
        scores = self.scorer.score_texts(texts, images)
        return self.weights.combine(np, *scores).astype(np.float32)


Rewards = DeviceRewards | HostRewards


def make_rewards(
    weights: RewardWeights,
    frequency: DocumentFrequency,
    references: Sequence[Sequence[str]],
    tokenizer: Tokenizer,
    mesh: Mesh | None = None,
) -> Rewards:
    """Make the rewards of captions of a split's images; subwords are scored on the host.

    Args:
        weights: of the scores.
        frequency: document frequencies.
        references: captions of each image of the split, words separated by blanks.
        tokenizer: the model's.
        mesh: devices that images are split over; None for one.

    Raises:
        DataError: an image without references.
    """
    vocabulary = Vocabulary(frequency.words)
    table = word_table(tokenizer, vocabulary)
    known = References(references, vocabulary)
    if table is None:
        return HostRewards(weights, tokenizer, HostScorer(frequency, known, vocabulary), mesh)
    return DeviceRewards(weights, (table, idf_tables(frequency)), known)
