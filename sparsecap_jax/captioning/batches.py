"""Captions of batches of images: decoding, text and attention, one image at a time."""

import dataclasses
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sparsecap_jax.array_modules.numpy_arrays import tree_map
from sparsecap_jax.captioning.engines import Engine
from sparsecap_jax.decoding.options import DecodeOptions
from sparsecap_jax.decoding.stepper import Decoded
from sparsecap_jax.tokenizers import Tokenizer
from sparsecap_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Caption:
    """One caption.

    Attributes:
        text: the caption.
        log_prob: natural log of its probability under the model, EOS included, no penalties.
        tokens: its token ids, without BOS, EOS kept where one was produced.
        score: figure that its search ranks by: `log_prob` after length and diversity penalties.
        attention: float32 `[W, R]`, on request: for each word of `text.split()`, the weights of the
            image's regions while its tokens were produced (their mean).
    """

    text: str
    log_prob: float
    tokens: tuple[int, ...]
    score: float
    attention: Float[np.ndarray, "W R"] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )


def caption_batches(
    engine: Engine,
    batches: Iterable[Batch],
    tokenizer: Tokenizer,
    options: DecodeOptions,
    image_options: Mapping[str, Any] | None = None,
    *,
    attention: bool = False,
) -> Iterator[tuple[int, list[Caption]]]:
    """Caption batches of images.

    Args:
        engine: model and weights, pruned already.
        batches: their `index` holds the number of each row's image; padding rows (-1) are skipped.
        tokenizer: turns tokens into text.
        options: the search.
        image_options: arguments of `Engine.decode` that differ between the images, leaves
            `[N, ...]`.
        attention: whether captions come with their attention.

    Yields:
        `(index, captions)` for each image, captions in the order of `Decoded`, without those that
        constraints left no room for.
    """
    for batch in batches:
        index = np.asarray(batch.index)
        place = np.maximum(index, 0)
        rows = tree_map(operator.itemgetter(place), dict(image_options or {}))
        decoded, weights = engine.decode(batch.regions, options, **rows), None
        if attention:
            weights = engine.attention(batch.regions, decoded.tokens, options.bos_id)
        mask = np.asarray(batch.regions.mask)
        for row in np.flatnonzero(index >= 0).tolist():
            of_regions = None if weights is None else weights[row][..., mask[row]]
            yield int(index[row]), _captions(decoded, row, of_regions, tokenizer)


def best_caption(captions: Sequence[Caption]) -> Caption:
    """Return the caption of the best score, the first of equals."""
    return max(captions, key=lambda caption: caption.score)


def _captions(
    decoded: Decoded, row: int, weights: np.ndarray | None, tokenizer: Tokenizer
) -> list[Caption]:
    captions = []
    for place, length in enumerate(decoded.lengths[row]):
        if length:
            tokens = tuple(decoded.tokens[row, place, :length].tolist())
            log_prob = float(decoded.log_probs[row, place, :length].sum(dtype=np.float64))
            score = float(decoded.scores[row, place])
            attention = None if weights is None else _per_word(tokens, weights[place], tokenizer)
            captions.append(Caption(tokenizer.decode(tokens), log_prob, tokens, score, attention))
    nothing = None if weights is None else np.zeros((0, weights.shape[-1]), np.float32)
    return captions or [Caption("", -np.inf, (), -np.inf, nothing)]


def _per_word(
    tokens: tuple[int, ...], weights: Float[np.ndarray, "T R"], tokenizer: Tokenizer
) -> Float[np.ndarray, "W R"]:
    """Average over the tokens of each word; a token belongs to the last word of the text so far."""
    words: dict[int, list[np.ndarray]] = {}
    for place, token in enumerate(tokens):
        if token not in (tokenizer.eos_id, tokenizer.pad_id):
            word = len(tokenizer.decode(tokens[: place + 1]).split())
            words.setdefault(word, []).append(weights[place])
    means = [np.mean(words[word], axis=0) for word in sorted(words) if word]
    return np.array(means, np.float32).reshape(-1, weights.shape[-1])


def finite(value: float) -> float | None:
    """Return `value`, or None where JSON has no number for it."""
    return value if np.isfinite(value) else None


def to_coco(image_id: Any, caption: Caption) -> dict[str, Any]:
    """Return an entry of COCO's results format, along with `log_prob` and any `attention`.

    `log_prob` is None where constraints left no caption.
    """
    log_prob = finite(caption.log_prob)
    entry = {"image_id": image_id, "caption": caption.text, "log_prob": log_prob}
    if caption.attention is not None:
        weights = caption.attention.tolist()
        entry["attention"] = [[round(weight, 5) for weight in row] for row in weights]
    return entry
