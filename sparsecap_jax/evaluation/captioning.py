"""From batches of features to captions: decoding and detokenising, one image at a time."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from sparsecap_jax.decoding import DecodeOptions, decode
from sparsecap_jax.tokenizers import Tokenizer
from sparsecap_jax.types import Batch, PyTree


@dataclasses.dataclass(frozen=True)
class Caption:
    """One caption.

    Attributes:
        text: the caption.
        log_prob: natural log of its probability under the model, EOS included, no penalties.
        tokens: its token ids, without BOS, EOS kept where one was produced.
    """

    text: str
    log_prob: float
    tokens: tuple[int, ...]


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


def search_options(beam_size: int, length_penalty: str = "") -> dict[str, Any]:
    """Options of greedy search for one beam, else of a beam search."""
    if beam_size == 1:
        return {"method": "greedy"}
    return {"method": "beam", "beam_size": beam_size, "length_penalty": length_penalty}


def caption_batches(
    model: nn.Module,
    params: PyTree,
    batches: Iterable[Batch],
    tokenizer: Tokenizer,
    options: DecodeOptions,
    rng: jax.Array | None = None,
) -> Iterator[tuple[int, list[Caption]]]:
    """Caption batches of images.

    Args:
        model: an unbound captioner.
        params: its weights, pruned already.
        batches: their `index` says which image each row is; fill-up rows (-1) are left out.
        tokenizer: turns tokens into text.
        options: the search.
        rng: needed for sampling; every batch folds its number in.

    Yields:
        `(index, captions)` for each image, captions in the order of `Decoded`.
    """
    for number, batch in enumerate(batches):
        key = None if rng is None else jax.random.fold_in(rng, number)
        found = jax.device_get(decode(model, params, batch.regions, options, key))
        for row, index in enumerate(np.asarray(batch.index)):
            if index >= 0:
                yield int(index), _captions(found, row, tokenizer)


def _captions(found: Any, row: int, tokenizer: Tokenizer) -> list[Caption]:
    captions = []
    for tokens, log_probs, length in zip(
        found.tokens[row], found.log_probs[row], found.lengths[row], strict=True
    ):
        kept = tokens[:length].tolist()
        log_prob = float(np.sum(log_probs[:length], dtype=np.float64))
        captions.append(Caption(tokenizer.decode(kept), log_prob, tuple(kept)))
    return captions


def to_coco(captions: Mapping[Any, Caption]) -> list[dict[str, Any]]:
    """Captions by image id in COCO's results format, with `log_prob` beside each."""
    return [
        {"image_id": image_id, "caption": caption.text, "log_prob": caption.log_prob}
        for image_id, caption in captions.items()
    ]
