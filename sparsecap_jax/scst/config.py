"""Section `scst` of a config: self-critical training."""

import dataclasses
import math
from typing import Any, Literal

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.scst.rewards import RewardWeights
from sparsecap_jax.settings import Range, build, check_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScstConfig:
    """Section `scst` of a config.

    Attributes:
        start_epoch: epoch, counted from 0, from which captions are rewarded; -1: never.
        sample: `random` captions, or the best of a `beam` search.
        baseline: what a reward is compared with: the `greedy` caption's, or the mean of the other
            samples of the image, `sample` (leave-one-out).
        num_samples: captions per image.
        cider_d: weight of CIDEr-D (0 to 10) in the reward.
        bleu_1, bleu_2, bleu_3, bleu_4: weights of BLEU (0 to 1).
        micro_batch: captions whose gradients are computed at once, to bound the memory; 0: all.
        length_buckets: sizes compiled for the gradient, of which each micro-batch takes the
            smallest that holds its captions: the work follows their lengths. Each takes compile
            time; 1 is right for small models.
        document_frequency: `.npz` of `launch/prepare_data.py df`; "": counted on the training
            split when training starts, which is always right.
    """

    start_epoch: int = -1
    sample: Literal["random", "beam"] = "random"
    baseline: Literal["sample", "greedy"] = "sample"
    num_samples: int = 15
    cider_d: float = 1.0
    bleu_1: float = 0.0
    bleu_2: float = 0.0
    bleu_3: float = 0.0
    bleu_4: float = 1.0
    micro_batch: int = 0
    length_buckets: int = 4
    document_frequency: str = ""

    def __post_init__(self):
        for name, low, high in (
            ("start_epoch", -1.0, 1e6),
            ("num_samples", 1.0, 1e4),
            ("micro_batch", 0.0, 1e6),
            ("length_buckets", 1.0, 16.0),
            *(
                (name, 0.0, math.inf)
                for name in ("cider_d", "bleu_1", "bleu_2", "bleu_3", "bleu_4")
            ),
        ):
            check_range(f"scst.{name}", float(getattr(self, name)), Range(low, high))
        if not self.weights.cider_d and not any(self.weights.bleu):
            raise ConfigError(
                "scst: all weights are 0; expected one of cider_d and bleu_1 to 4 > 0"
            )
        if self.baseline == "sample" and self.num_samples < 2:
            raise ConfigError(
                f"scst.num_samples is {self.num_samples}; expected 2 or more with scst.baseline "
                "'sample', which compares the captions of an image with each other"
            )

    @property
    def weights(self) -> RewardWeights:
        """The weights of the scores."""
        return RewardWeights(self.cider_d, (self.bleu_1, self.bleu_2, self.bleu_3, self.bleu_4))

    @property
    def enabled(self) -> bool:
        """Whether captions are ever rewarded."""
        return self.start_epoch >= 0


def parse(config: Any) -> ScstConfig:
    """Read the section `scst`; a `ScstConfig` is passed through.

    Raises:
        ConfigError: an unknown key, or a value of the wrong type or out of range.
    """
    return config if isinstance(config, ScstConfig) else build(ScstConfig, config, "scst")
