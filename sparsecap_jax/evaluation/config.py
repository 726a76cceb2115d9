"""Section `eval` of a config: validation and evaluation."""

import dataclasses
from typing import Annotated, Literal

from sparsecap_jax.decoding import DecodeOptions
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.settings import MAY_CHANGE, Range


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Section `eval` of a config.

    Attributes:
        beam_size_val: beams in validation.
        beam_size_test: beams in evaluation on the test split.
        length_penalty: "", "wu_ALPHA" or "avg_0", see docs/decoding.md.
        tokenizer: of the scores; "unicode" for Chinese, Japanese and scripts that "python" splits
            (see docs/metrics.md).
        images: validate on the first so many images; 0: all.
        sparsity_tolerance: a checkpoint may be the best one where its number of nonzeros is within
            this fraction of the target.
    """

    beam_size_val: Annotated[int, Range(1, 1000), MAY_CHANGE] = 1
    beam_size_test: Annotated[int, Range(1, 1000), MAY_CHANGE] = 2
    length_penalty: Annotated[str, MAY_CHANGE] = ""
    tokenizer: Annotated[Literal["python", "unicode"], MAY_CHANGE] = "python"
    images: Annotated[int, Range(0), MAY_CHANGE] = 0
    sparsity_tolerance: Annotated[float, Range(0, 1), MAY_CHANGE] = 0.05

    def __post_init__(self):
        try:
            DecodeOptions(length_penalty=self.length_penalty)
        except ConfigError as error:
            raise ConfigError(f"eval.length_penalty is {self.length_penalty!r}: {error}") from error
