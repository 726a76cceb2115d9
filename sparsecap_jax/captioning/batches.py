"""From batches of features to captions: decoding and detokenising, one image at a time."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Float

from sparsecap_jax.captioning.search_options import ImageOptions
from sparsecap_jax.decoding import Decoded, DecodeOptions, attention_weights, decode
from sparsecap_jax.tokenizers import Tokenizer
from sparsecap_jax.types import Batch, PyTree


@dataclasses.dataclass(frozen=True)
class Caption:
    """One caption.

    Attributes:
        text: the caption.
        log_prob: natural log of its probability under the model, EOS included, no penalties.
        tokens: its token ids, without BOS, EOS kept where one was produced.
        score: what its search ranks it by: `log_prob` after length and diversity penalties.
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
    model: nn.Module,
    params: PyTree,
    batches: Iterable[Batch],
    tokenizer: Tokenizer,
    options: DecodeOptions,
    image_options: ImageOptions | None = None,
    *,
    attention: bool = False,
) -> Iterator[tuple[int, list[Caption]]]:
    """Caption batches of images.

    Args:
        model: an unbound captioner.
        params: its weights, pruned already.
        batches: their `index` says which image each row is; fill-up rows (-1) are left out.
        tokenizer: turns tokens into text.
        options: the search.
        image_options: what differs between the images, by their index.
        attention: whether captions come with their attention.

    Yields:
        `(index, captions)` for each image, captions in the order of `Decoded`; those that
        constraints left no room for are missing.
    """
    image_options = image_options or ImageOptions()
    for batch in batches:
        index = np.asarray(batch.index)
        given = image_options.rows(np.maximum(index, 0))
        found = decode(model, params, batch.regions, options, **given)
        weights = None
        if attention:
            weights = jax.device_get(
                attention_weights(model, params, batch.regions, found.tokens, bos_id=options.bos_id)
            )
        found = jax.device_get(found)
        for row in np.flatnonzero(index >= 0).tolist():
            captions = _captions(found, row, tokenizer)
            if weights is not None:
                real = weights[row][..., np.asarray(batch.regions.mask)[row]]
                captions = [
                    dataclasses.replace(one, attention=_per_word(one.tokens, seen, tokenizer))
                    for one, seen in zip(captions, real, strict=False)
                ]
            yield int(index[row]), captions


def best_caption(captions: list[Caption]) -> Caption:
    """The one of the best score; the first of equals."""
    return max(captions, key=lambda caption: caption.score)


def _captions(found: Decoded, row: int, tokenizer: Tokenizer) -> list[Caption]:
    captions = []
    for tokens, log_probs, length, score in zip(
        found.tokens[row], found.log_probs[row], found.lengths[row], found.scores[row], strict=True
    ):
        kept = tokens[:length].tolist()
        log_prob = float(np.sum(log_probs[:length], dtype=np.float64))
        if length:
            captions.append(Caption(tokenizer.decode(kept), log_prob, tuple(kept), float(score)))
    return captions or [Caption("", -np.inf, (), -np.inf)]


def _per_word(
    tokens: tuple[int, ...], weights: Float[np.ndarray, "T R"], tokenizer: Tokenizer
) -> Float[np.ndarray, "W R"]:
    """Mean over the tokens of each word; a token belongs to the last word of the text so far."""
    words: dict[int, list[np.ndarray]] = {}
    for place, token in enumerate(tokens):
        if token not in (tokenizer.eos_id, tokenizer.pad_id):
            word = len(tokenizer.decode(tokens[: place + 1]).split())
            words.setdefault(word, []).append(weights[place])
    means = [np.mean(words[word], axis=0) for word in sorted(words) if word]
    return np.array(means, np.float32).reshape(-1, weights.shape[-1])


def to_coco(captions: Mapping[Any, Caption]) -> list[dict[str, Any]]:
    """Captions by image id in COCO's results format, with `log_prob` beside each."""
    return [
        {"image_id": image_id, "caption": caption.text, "log_prob": caption.log_prob}
        for image_id, caption in captions.items()
    ]
