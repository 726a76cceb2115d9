"""Unicode rules for captions in any script (docs/data.md, "Text of captions")."""

import functools
import re
import unicodedata

_APOSTROPHES = str.maketrans("", "", "'\u2019")
_NO_LETTER = re.compile(r"[^\w\s]|_")
AM_COMPOSITIONS = (("\u0e4d\u0e32", "\u0e33"), ("\u0ecd\u0eb2", "\u0eb3"))
# Scripts that put no blanks between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters.
_UNSPACED = (
    "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED_LETTER = re.compile(rf"((?=\w)[{_UNSPACED}][^\w\s]*)")


def normalize(text: str) -> str:
    """Return text in the form that SentencePiece models of captions write.

    Accents are composed (NFC); ligatures, presentation forms, half and full widths of letters
    become letters (NFKC), while digits and symbols stay. ASCII text is returned as it is.
    """
    if text.isascii():
        return text
    return compose_am(unicodedata.normalize("NFC", "".join(map(_plain_letter, text))))


def compose_am(text: str) -> str:
    """Write the vowel AM of Thai and Lao as one character, which NFKC takes apart."""
    for parts, whole in AM_COMPOSITIONS:
        text = text.replace(parts, whole)
    return text


def words(caption: str) -> list[str]:
    """Split a caption into words like the tokens of Karpathy's splits, in any script.

    Lower case, apostrophes dropped ("a man's" -> "a mans"), split at everything that is no letter,
    digit, or combining mark ("t-shirt" -> "t", "shirt"); normalised (see `normalize`). For
    datasets that have raw captions only.
    """
    text = normalize(caption.lower().translate(_APOSTROPHES))
    text = _NO_LETTER.sub(lambda match: _in_words(match[0]), text)
    return [word for part in text.split() if (word := part.strip("\u200d"))]


def unicode_words(caption: str) -> list[str]:
    """Return `words`, with each letter of a script without blanks as a word, marks included."""
    return _UNSPACED_LETTER.sub(r" \1 ", " ".join(words(caption))).split()


def is_unspaced(text: str) -> bool:
    """Return whether text is, for the most part, in a script without blanks between words."""
    letters = sum(map(str.isalpha, text))
    return len(_UNSPACED_LETTER.findall(text)) * 2 > letters


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 image", "2,000 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@functools.lru_cache(4096)
def _plain_letter(char: str) -> str:
    return unicodedata.normalize("NFKC", char) if unicodedata.category(char)[0] in "LM" else char


@functools.lru_cache(4096)
def _in_words(char: str) -> str:
    """Return what stands for a character in words: itself, a blank, or nothing."""
    category = unicodedata.category(char)
    if category == "Me" or "\ufe00" <= char <= "\ufe0f":  # of emoji
        return ""
    # Words of Indic scripts hold zero-width joiners.
    return char if category in ("Mn", "Mc") or char == "\u200d" else " "
