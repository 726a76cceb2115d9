"""How to search, in words: the options that `Captioner` and the command lines share."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from sparsecap_jax.data.karpathy import ImageId
from sparsecap_jax.decoding import Automaton, DecodeOptions, must_contain
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.tokenizers import Tokenizer

SEARCHES = ("greedy", "beam", "diverse_beam", "sample", "gumbel")
_BEAMS, _SAMPLES = SEARCHES[1:3], SEARCHES[3:]
# Options that only some searches have a use for.
_USED_BY = {
    "beam_size": _BEAMS,
    "length_penalty": _BEAMS,
    "num_groups": ("diverse_beam",),
    "diversity": ("diverse_beam",),
    "num_samples": _SAMPLES,
    "top_k": _SAMPLES,
    "top_p": _SAMPLES,
    "seed": _SAMPLES,
    "temperature": _BEAMS + _SAMPLES,
}


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """Options of a search, with words where `DecodeOptions` has ids.

    Attributes:
        search: "greedy", "beam", "diverse_beam", "sample" or "gumbel".
        beam_size: beams K; one is greedy search.
        length_penalty: "", "wu_ALPHA" or "avg_0".
        num_groups: groups of "diverse_beam", a divisor of `beam_size`; 0: every beam is one.
        diversity: nats taken off a token for each beam of an earlier group that chose it.
        num_samples: captions drawn per image.
        temperature: see `DecodeOptions`.
        top_k: sample among the k most probable tokens; 0 for all.
        top_p: sample among the most probable tokens that together reach this mass.
        seed: of samples; an image's samples depend on it and on the image's id alone.
        no_repeat: forbid the same token twice in a row.
        no_repeat_ngram: forbid a second occurrence of any n-gram of so many tokens; 0 for none.
        suppress: words that are never produced, each of one token.
        suppress_unk: whether the token of unknown words is never produced.
        bad_endings: words that no caption may end with, each of one token.
        min_length: least number of tokens before EOS.
        prefix: text that captions start with; or, by image id, the text of each.
        required: words or phrases that captions contain, "dog|puppy" for either of two; or, by
            image id, those of each. Without groups, beams become constrained beam search.

    Raises:
        ConfigError: there is no such search, or it has no use for an option that is given.
    """

    search: str = "beam"
    beam_size: int = 5
    length_penalty: str = ""
    num_groups: int = 0
    diversity: float = 0.5
    num_samples: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    no_repeat: bool = False
    no_repeat_ngram: int = 0
    suppress: Sequence[str] = ()
    suppress_unk: bool = False
    bad_endings: Sequence[str] = ()
    min_length: int = 0
    prefix: str | Mapping[ImageId, str] = ""
    required: Sequence[str] | Mapping[ImageId, Sequence[str]] = ()

    def __post_init__(self):
        if self.search not in SEARCHES:
            expected = f"expected one of {', '.join(SEARCHES)}"
            raise ConfigError(f"search: found {self.search!r}, {expected}")
        for field in dataclasses.fields(self):
            users, value = _USED_BY.get(field.name, SEARCHES), getattr(self, field.name)
            if self.search not in users and value != field.default:
                raise ConfigError(
                    f"search option {field.name}: found {value!r} with search {self.search!r}; "
                    f"only {', '.join(users)} can use it"
                )
        for name in ("suppress", "bad_endings", "required"):
            if isinstance(getattr(self, name), str):
                raise ConfigError(f"search option {name}: found text, expected a list of words")

    @property
    def samples(self) -> bool:
        """Whether captions are drawn at random."""
        return self.search in _SAMPLES

    def decode_options(self, tokenizer: Tokenizer, max_length: int) -> DecodeOptions:
        """The same for `decode`: all but `prefix`, `required` and `seed`.

        Raises:
            ConfigError: a value out of range, or a word that is unknown or takes several tokens.
        """
        given = {name: getattr(self, name) for name in self._shared_names()}
        given["method"] = "beam" if self.search == "diverse_beam" else self.search
        if self.search == "beam" and self.beam_size == 1:
            given = {**given, "method": "greedy", "length_penalty": "", "temperature": 1.0}
        if self.search == "diverse_beam":
            given["num_groups"] = self.num_groups or self.beam_size
        for name in ("suppress", "bad_endings"):
            given[name] = [_one_id(tokenizer, word, name) for word in getattr(self, name)]
        if self.suppress_unk and tokenizer.unk_id is None:
            raise ConfigError(
                f"search option suppress_unk: tokenizer {tokenizer.name!r} spells unknown words "
                "with the tokens of others; expected False"
            )
        return decode_options(tokenizer, max_length, **given)

    def _shared_names(self) -> list[str]:
        names = {field.name for field in dataclasses.fields(self)}
        names &= {field.name for field in dataclasses.fields(DecodeOptions)}
        return [name for name in sorted(names) if self.search in _USED_BY.get(name, SEARCHES)]


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """What differs from image to image, one row for each of N images.

    Attributes:
        keys: random keys `[N]`, or None.
        prefix: int32 `[N, P]`, or None.
        required: an automaton per image, or None.
    """

    keys: Key[Array, " N"] | None = None
    prefix: Int[np.ndarray, "N P"] | None = None
    required: Automaton | None = None

    def rows(self, index: Int[np.ndarray, " B"]) -> dict[str, Any]:
        """Arguments of `decode` for the images of a batch."""
        found = {"rng": self.keys, "prefix": self.prefix, "required": self.required}
        return {name: jax.tree.map(lambda leaf: leaf[index], all_) for name, all_ in found.items()}


def image_options(
    search: SearchOptions,
    tokenizer: Tokenizer,
    options: DecodeOptions,
    image_ids: Sequence[ImageId],
) -> ImageOptions:
    """Prepare what `search` wants of each image.

    All images together, so that no batch has another shape than the one before.

    Raises:
        ConfigError: words that are unknown, too many or too long.
    """
    keys = prefix = required = None
    if search.samples:
        ids = np.array([zlib.crc32(str(image_id).encode()) for image_id in image_ids], np.uint32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(search.seed), ids)
    if search.prefix:
        texts = _by_image(search.prefix, image_ids, "")
        rows = [_text_ids(tokenizer, text, "prefix") for text in texts]
        width = max(map(len, rows))
        if width > options.max_length:
            raise ConfigError(
                f"search option prefix: found {width} tokens, expected at most {options.max_length}"
            )
        padded = [(*row, *[options.pad_id] * (width - len(row))) for row in rows]
        prefix = _for_all(np.array(padded, np.int32).reshape(len(rows), width), len(image_ids))
    if search.required:
        wanted = _by_image(search.required, image_ids, ())
        phrases = [[_alternatives(tokenizer, text) for text in one] for one in wanted]
        automaton = must_contain(phrases, options)
        required = jax.tree.map(lambda leaf: _for_all(leaf, len(image_ids)), automaton)
    return ImageOptions(keys, prefix, required)


def decode_options(tokenizer: Tokenizer, max_length: int, **options: Any) -> DecodeOptions:
    """Options of a search with the special ids of `tokenizer`."""
    return DecodeOptions(
        max_length=max_length,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        # Radix tokens spell an unknown word in several ids; there is no single one to suppress.
        unk_id=-1 if tokenizer.unk_id is None else tokenizer.unk_id,
        **options,
    )


def _by_image(value: Any, image_ids: Sequence[ImageId], default: Any) -> list[Any]:
    """The value of each image, or the one of all."""
    if isinstance(value, Mapping):
        return [value.get(image_id, default) for image_id in image_ids]
    return [value]


def _for_all(array: np.ndarray, count: int) -> np.ndarray:
    return np.broadcast_to(array, (count, *array.shape[1:]))


def _text_ids(tokenizer: Tokenizer, text: str, option: str) -> tuple[int, ...]:
    """Ids of a text without unknown words."""
    ids = tuple(tokenizer.encode(text, add_special=False))
    unknown = tokenizer.unk_ids
    for start in range(0, len(ids), len(unknown)):
        if ids[start : start + len(unknown)] == unknown:
            raise ConfigError(
                f"search option {option}: {text!r} has a word that the tokenizer does not know"
            )
    return ids


def _one_id(tokenizer: Tokenizer, word: str, option: str) -> int:
    ids = _text_ids(tokenizer, word, option)
    if len(ids) != 1:
        raise ConfigError(
            f"search option {option}: {word!r} takes {len(ids)} tokens of tokenizer "
            f"{tokenizer.name!r}, expected one"
        )
    return ids[0]


def _alternatives(tokenizer: Tokenizer, text: str) -> list[tuple[int, ...]]:
    """Ids of the phrases between "|"."""
    phrases = [_text_ids(tokenizer, phrase.strip(), "required") for phrase in text.split("|")]
    if not all(phrases):
        raise ConfigError(f"search option required: found {text!r}, expected words around '|'")
    return phrases
