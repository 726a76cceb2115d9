"""From scores to rewards, and the baselines that they are compared with."""

import dataclasses
from types import ModuleType

from jaxtyping import Float

from sparsecap_jax.types import ArrayLike


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
        """The weighted sum, in the type of `cider_d`; `xp` is `numpy` or `jax.numpy`."""
        return self.cider_d * cider_d + bleu @ xp.asarray(self.bleu, cider_d.dtype)


def leave_one_out(rewards: Float[ArrayLike, "*B K"]) -> Float[ArrayLike, "*B K"]:
    """The mean reward of an image's other captions, the baseline of each; K is 2 or more.

    Source: `scst/scorers.py` of the reference; also Luo, "A Better Variant of Self-Critical
    Sequence Training", 2020, arXiv 2003.09971.
    """
    return (rewards.sum(axis=-1, keepdims=True) - rewards) / (rewards.shape[-1] - 1)
