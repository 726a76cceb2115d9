"""Captions of chance in many scripts, to compare tokenizers."""

import pathlib
import random
import unicodedata

_LINES = pathlib.Path(__file__).with_name("script_words.txt").read_text("utf-8").splitlines()
WORDS = {script: words.split() for script, words in (line.split(": ") for line in _LINES)}
"""Words of captions in each script."""

MARKS = list(", .!?;:-/'\"()[]&–—…“”‘’«»।۔،؟؛。，、！？「」・～־׳״፣።։་၊៖\u00a0\u3000")
JOINERS = list("\u200c\u200d\u200b\u200f\u2060\ufe0f\ufeff")
SYMBOLS = ["...", "--", "😀", "🐶🐶", "❤\ufe0f", "☺", "👍🏽", "👨\u200d👩\u200d👧", "🇫🇷"]
SYMBOLS += ["1\ufe0f\u20e3", "☀", "→", "★", "✓", "№", "™", "²", "½", "°", "€", "£", "3⁄4"]


def script_captions(number: int, seed: int = 0) -> list[str]:
    """Return `number` captions, most in one script each, a third of them decomposed (NFD)."""
    rng = random.Random(seed)
    scripts = list(WORDS)
    captions = []
    for place in range(number):
        text = ""
        for _ in range(rng.randint(3, 9)):
            script = scripts[place % len(scripts)] if rng.random() < 0.9 else rng.choice(scripts)
            text += rng.choice(WORDS[script])
            if rng.random() < 0.7:
                text += " "
            else:
                mark = rng.choice(rng.choice([MARKS, MARKS, JOINERS, SYMBOLS]))
                text += rng.choice([mark, f"{mark} ", f" {mark}", f" {mark} "])
        captions.append(unicodedata.normalize(rng.choice(["NFC", "NFC", "NFD"]), text))
    return captions
