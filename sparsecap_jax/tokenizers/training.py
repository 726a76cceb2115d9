"""Training SentencePiece models with the reference's settings, and writing their folders."""

import io
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Mapping

import sentencepiece

from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.files import write_atomically

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
SPECIAL_IDS = {"pad_id": PAD_ID, "unk_id": UNK_ID, "bos_id": BOS_ID, "eos_id": EOS_ID}
_TOO_FEW = re.compile(r"Vocabulary size is smaller than required_chars\. (\d+) vs (\d+)")


def train_model(model_type: str, captions: Iterable[str], vocab_size: int) -> bytes:
    """Return a serialized SentencePiece model; see `Tokenizer.train` for arguments and errors."""
    too_small = f"tokenizer.vocab_size: found {vocab_size}, expected at least"
    if vocab_size < 5:
        raise ConfigError(f"{too_small} 5: four special ids and one token")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_checked(captions),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            minloglevel=2,  # errors alone
            **SPECIAL_IDS,
            unk_surface="<unk>",
            **{f"{name}_piece": f"<{name}>" for name in ("pad", "unk", "bos", "eos")},
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
            caption.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"training caption {number}: {error.reason} in {caption!r}") from error
        yield caption


def read_captions(path: str | os.PathLike) -> list[str]:
    """Read a UTF-8 text file of one caption a line; blank lines are left out.

    Raises:
        DataError: the file is missing, holds no caption, or a line is not UTF-8.
    """
    try:
        lines = pathlib.Path(path).read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; expected a text file of captions") from error
    captions = []
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: line {number} is not UTF-8 (byte {error.start})") from error
        if text:
            captions.append(text)
    if not captions:
        raise DataError(f"{path}: no captions; expected one a line")
    return captions


def write_folder(directory: str | os.PathLike, files: Mapping[str, bytes]) -> None:
    """Write a tokenizer folder; a new one appears complete or not at all."""
    directory = pathlib.Path(directory)
    if directory.exists():
        for name, data in files.items():
            with write_atomically(directory / name, "wb") as file:
                file.write(data)
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as folder:
        written = pathlib.Path(folder, directory.name)
        written.mkdir()
        write_folder(written, files)
        os.rename(written, directory)
