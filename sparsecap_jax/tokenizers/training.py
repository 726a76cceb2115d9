"""Training of SentencePiece models with the reference's settings."""

import io
import re
from collections.abc import Iterable
from typing import Any

import sentencepiece

from sparsecap_jax.errors import ConfigError, DataError

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
SPECIAL_IDS = {"pad_id": PAD_ID, "unk_id": UNK_ID, "bos_id": BOS_ID, "eos_id": EOS_ID}

_TOO_FEW = re.compile(r"Vocabulary size is smaller than required_chars\. (\d+) vs (\d+)")
# SentencePiece leaves out lines of more bytes, by default, and lines with this character.
_DEFAULT_BYTES, _RESERVED = 4192, "\u2585"
_MAX_BYTES = 2**20


def train_sentencepiece(model_type: str, captions: Iterable[str], vocab_size: int) -> bytes:
    """Return a serialized SentencePiece model, of the reference's settings.

    Args:
        model_type: "word", "unigram", "bpe" or "char".
        captions: texts to train on.
        vocab_size: at most so many ids, the special ones included.

    Raises:
        ConfigError: a vocabulary that cannot be made.
        DataError: there are no captions, or some are not text.
    """
    too_small = f"tokenizer.vocab_size: found {vocab_size}, expected at least"
    if vocab_size < 5:
        raise ConfigError(f"{too_small} 5: four special ids and one token")
    captions = list(_checked(captions))
    longest = max((len(text.encode()) for text in captions), default=0)
    # The model file keeps this setting: it differs from the reference's only where it must.
    length = {"max_sentence_length": longest} if longest > _DEFAULT_BYTES else {}
    pieces = {f"{name}_piece": f"<{name}>" for name in ("pad", "unk", "bos", "eos")}
    options: dict[str, Any] = {**length, **SPECIAL_IDS, **pieces}
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(captions),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            minloglevel=2,  # errors alone
            unk_surface="<unk>",
            **options,
        )
    except RuntimeError as error:
        if too_few := _TOO_FEW.search(str(error)):
            needed = f"{too_few[2]}: the captions hold that many characters and special ids"
            raise ConfigError(f"{too_small} {needed}") from error
        if "sentences_.empty()" in str(error) or "all_chars_count" in str(error):
            raise DataError("no text to train a tokenizer on; expected captions") from error
        raise DataError(f"sentencepiece cannot train {model_type!r}: {error}") from error
    return model.getvalue()


def _checked(captions: Iterable[str]) -> Iterable[str]:
    for number, caption in enumerate(captions):
        if not isinstance(caption, str):
            kind = type(caption).__name__
            raise DataError(f"training caption {number}: expected text, found {kind}")
        try:
            size = len(caption.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise DataError(f"training caption {number}: {error.reason} in {caption!r}") from error
        if size > _MAX_BYTES:
            found = f"found {size} bytes, expected at most {_MAX_BYTES}"
            raise DataError(f"training caption {number}, {caption[:40]!r} ...: {found}")
        yield caption.replace(_RESERVED, " ")
