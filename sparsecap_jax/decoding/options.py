"""Options of a search, and its captions."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from flax import struct
from jaxtyping import Float, Int

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.types import ArrayLike

METHODS = ("greedy", "sample", "gumbel", "beam")


@dataclasses.dataclass(frozen=True)
class DecodeOptions:
    """Static options of a search; hashable, so that one compilation serves each value.

    Attributes:
        method: "greedy"; "sample", random captions; "gumbel", the same distribution drawn by the
            Gumbel-max trick (slower, but two similar models given one key draw alike); "beam".
        max_length: most tokens of a caption, EOS included, BOS not.
        beam_size: number of captions K kept and returned by "beam", over all groups.
        num_samples: number of captions K drawn per image by "sample" and "gumbel".
        temperature: divides log-probs before they are renormalised. When sampling it shapes the
            distribution that is drawn from, not the log-probs returned; in a beam search it
            applies from the second token on, as in the reference.
        top_k: sample among the k most probable tokens; 0 for all.
        top_p: sample among the most probable tokens that together reach this mass (nucleus).
        length_penalty: "" or "wu_ALPHA" or "avg_ALPHA", see `penalty_factors`.
        num_groups: number of groups of a diverse beam search, a divisor of `beam_size`.
        diversity: log-prob taken off a token for each beam of an earlier group that chose it.
        no_repeat: forbid the same token twice in a row (the reference's `decoding_constraint`).
        no_repeat_ngram: forbid a second occurrence of any n-gram of this length; 0 for none.
        suppress: ids that are never produced.
        suppress_unk: whether `unk_id` is never produced.
        bad_endings: ids that no caption may end with.
        min_length: least number of tokens before EOS.
        constraints: further functions `(log_probs [B, K, V], Prefix) -> log_probs`, hashable.
        bos_id, eos_id, pad_id, unk_id: the tokenizer's special ids.

    Raises:
        ConfigError: a value is out of range, or the method does not use it.
    """

    method: str = "beam"
    max_length: int = 18
    beam_size: int = 5
    num_samples: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    length_penalty: str = ""
    num_groups: int = 1
    diversity: float = 0.5
    no_repeat: bool = False
    no_repeat_ngram: int = 0
    suppress: Sequence[int] = ()
    suppress_unk: bool = False
    bad_endings: Sequence[int] = ()
    min_length: int = 0
    constraints: Sequence[Callable] = ()
    bos_id: int = 2
    eos_id: int = 3
    pad_id: int = 0
    unk_id: int = 1

    def __post_init__(self):
        for name in ("suppress", "bad_endings", "constraints"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, good, expected in self._rules():
            if not good:
                value = getattr(self, name)
                raise ConfigError(f"decoding option {name}: found {value!r}, expected {expected}")

    @property
    def rows(self) -> int:
        """Number of captions K per image."""
        return {"greedy": 1, "beam": self.beam_size}.get(self.method, self.num_samples)

    def _rules(self):
        """Yield (field, whether it is good, what was expected)."""
        yield "method", self.method in METHODS, f"one of {', '.join(METHODS)}"
        for name in ("max_length", "beam_size", "num_samples", "num_groups"):
            yield name, _is_int(getattr(self, name), 1), "an integer of at least 1"
        for name in ("top_k", "no_repeat_ngram", "min_length"):
            yield name, _is_int(getattr(self, name), 0), "an integer of at least 0"
        yield "temperature", 0 < self.temperature < float("inf"), "a positive number"
        yield "top_p", 0 < self.top_p <= 1, "a number in (0, 1]"
        yield "diversity", 0 <= self.diversity < float("inf"), "a number of at least 0"
        yield (
            "min_length",
            self.min_length <= self.max_length,
            f"at most max_length {self.max_length}",
        )
        divides = self.beam_size % self.num_groups == 0
        yield "num_groups", divides, f"a divisor of beam_size {self.beam_size}"
        good = _parsed_penalty(self.length_penalty) is not None
        yield "length_penalty", good, '"", "wu_ALPHA" or "avg_ALPHA"'
        sampling, beam = self.method in ("sample", "gumbel"), self.method == "beam"
        yield "top_k", sampling or self.top_k == 0, f"0 with method {self.method}"
        yield "top_p", sampling or self.top_p == 1, f"1 with method {self.method}"
        yield "num_samples", sampling or self.num_samples == 1, f"1 with method {self.method}"
        yield "num_groups", beam or self.num_groups == 1, f"1 with method {self.method}"
        yield "length_penalty", beam or not self.length_penalty, f'"" with method {self.method}'


@struct.dataclass
class Decoded:
    """Captions of a batch. A caption ends at its first EOS, not at its first PAD.

    Where constraints leave fewer than K captions, the missing ones have length 0 and score -inf.

    Attributes:
        tokens: int32 `[B, K, T]`, without BOS, with EOS where one was produced, PAD after the end.
            Beams come best first (within each group of a diverse search).
        log_probs: float32 `[B, K, T]`, natural log-prob of each token, 0 after the end.
        scores: float32 `[B, K]`, the rank of beams: the sum of log-probs (less the diversity
            penalties), times the factor of the length penalty; without penalties the plain sum.
        lengths: int32 `[B, K]`, number of tokens, EOS included.
    """

    tokens: Int[ArrayLike, "B K T"]
    log_probs: Float[ArrayLike, "B K T"]
    scores: Float[ArrayLike, "B K"]
    lengths: Int[ArrayLike, "B K"]


def penalty_factors(penalty: str, max_length: int) -> Float[np.ndarray, " T"]:
    """Return the factors of the length penalty, by which sums of log-probs are multiplied.

    "wu_ALPHA" divides by `((5 + length) / 6) ** ALPHA` (Wu et al., "Google's Neural Machine
    Translation System", 2016), "avg_ALPHA" by the length, whatever ALPHA, and "" by 1, as in the
    reference (`utils/model_utils.py`).

    Args:
        penalty: as above.
        max_length: T.

    Returns:
        float32 `[T]`, reciprocals of those divisors for captions of 1, 2, ... T tokens.
    """
    kind, alpha = _parsed_penalty(penalty)
    lengths = np.arange(1, max_length + 1, dtype=np.float64)
    divisors = lengths if kind == "avg" else ((5 + lengths) / 6) ** alpha
    return (1 / divisors).astype(np.float32)


def _parsed_penalty(penalty: str) -> tuple[str, float] | None:
    """Split "KIND_ALPHA" ("" is "wu" with alpha 0); None when it is neither."""
    if penalty == "":
        return "wu", 0.0
    kind, _, alpha = penalty.partition("_")
    try:
        return (kind, float(alpha)) if kind in ("wu", "avg") else None
    except ValueError:
        return None


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
