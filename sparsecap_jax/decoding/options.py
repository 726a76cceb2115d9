"""Options of a search; free of JAX and NumPy."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

from sparsecap_jax.errors import ConfigError

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

    def _rules(self) -> Iterator[tuple[str, bool, str]]:
        """Yield (field, whether it is good, what was expected)."""
        yield "method", self.method in METHODS, f"one of {', '.join(METHODS)}"
        for least, names in (
            (1, ("max_length", "beam_size", "num_samples", "num_groups")),
            (0, ("top_k", "no_repeat_ngram", "min_length")),
        ):
            for name in names:
                value = getattr(self, name)
                whole = isinstance(value, int) and not isinstance(value, bool)
                yield name, whole and value >= least, f"an integer of at least {least}"
        yield "temperature", 0 < self.temperature < math.inf, "a positive number"
        yield "top_p", 0 < self.top_p <= 1, "a number in (0, 1]"
        yield "diversity", 0 <= self.diversity < math.inf, "a number of at least 0"
        fits = self.min_length <= self.max_length
        yield "min_length", fits, f"at most max_length {self.max_length}"
        divides = self.beam_size % self.num_groups == 0
        yield "num_groups", divides, f"a divisor of beam_size {self.beam_size}"
        good = parsed_penalty(self.length_penalty) is not None
        yield "length_penalty", good, '"", "wu_ALPHA" or "avg_ALPHA"'
        sampling, beam = self.method in ("sample", "gumbel"), self.method == "beam"
        for name, used, unused in (
            ("top_k", sampling, 0),
            ("top_p", sampling, 1),
            ("num_samples", sampling, 1),
            ("num_groups", beam, 1),
            ("length_penalty", beam, ""),
        ):
            good, shown = used or getattr(self, name) == unused, '""' if unused == "" else unused
            yield name, good, f"{shown} with method {self.method}"


def parsed_penalty(penalty: str) -> tuple[str, float] | None:
    """Split "KIND_ALPHA" ("" is "wu" with alpha 0); None when it is neither."""
    kind, _, alpha = (penalty or "wu_0").partition("_")
    try:
        good = kind in ("wu", "avg") and math.isfinite(float(alpha))
    except ValueError:
        return None
    return (kind, float(alpha)) if good else None
