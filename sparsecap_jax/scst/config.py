"""Section `scst` of a config: self-critical training."""

import dataclasses
from typing import Annotated, Literal

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.scst.rewards import RewardWeights
from sparsecap_jax.settings import Range


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
        document_frequency: `.npz` of `sparsecap prepare_data df`; "": counted on the training
            split when training starts, which is always right.
    """

    start_epoch: Annotated[int, Range(-1, 10**6)] = -1
    sample: Literal["random", "beam"] = "random"
    baseline: Literal["sample", "greedy"] = "sample"
    num_samples: Annotated[int, Range(1, 10_000)] = 15
    cider_d: Annotated[float, Range(0)] = 1.0
    bleu_1: Annotated[float, Range(0)] = 0.0
    bleu_2: Annotated[float, Range(0)] = 0.0
    bleu_3: Annotated[float, Range(0)] = 0.0
    bleu_4: Annotated[float, Range(0)] = 1.0
    micro_batch: Annotated[int, Range(0, 10**6)] = 0
    length_buckets: Annotated[int, Range(1, 16)] = 4
    document_frequency: str = ""

    def __post_init__(self):
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
