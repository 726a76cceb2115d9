"""Characters beyond ASCII as the Java PTB tokenizer sees them, observed one by one.

It knows the letters and digits of Unicode 6.3; some combining marks, which belong to words; and
some symbols, each a token. It skips everything else, so that words end there: emoji and all else
beyond U+FFFF, joiners, and the marks of Oriya, Kannada, Sinhala, Khmer and Burmese among them.
"""

import unicodedata

MARK, SYMBOL, SMALL_DIGIT, SKIPPED = "\uabbf", "\u00a4", "\u00a8", "\u00b8"
"""What stands for a combining mark (a word character that Java skips), a symbol, and a raised or
lowered digit in the text that the rules read."""

# Ranges of code points.
_MARKS = """2c2-2c5 2d2-2df 2e5-2eb 2ed 2ef-36f 375 378-379 384-385 3f6 483-487 55a-55f 591-5bd 5bf
5c1-5c2 5c4-5c5 5c7 615-61a 64b-65e 670 6d6-6e4 6e7-6ed 6fd-6fe 70f 711 730-74c 7a6-7b0 7eb-7f3
900-903 93c 93e-94e 951-955 962-963 981-983 9bc 9be-9c4 9c7-9c8 9cb-9cd 9d7 9e2-9e3 a01-a03 a3c
a3e-a4f a81-a83 abc abe-acf b82 bbe-bc2 bc6-bc8 bca-bcd c01-c03 c3e-c56 d3e-d44 d46-d48 e31 e34-e3a
e47-e4e eb1 eb4-ebc ec8-ecd"""
_SYMBOLS = """80 a1-a9 ac-b1 b4 b6-b8 bc-bf d7 f7 37e 387 589 5be-5c6 5f3-5f4 600-603 606-60c
614-61b 61e-61f 66a-66d 6d4 700-70d 7f6-7f8 964-965 e3f e4f 1fbd 2016-2017 2020-2023 2030-2038 203b
203e-2042 207a-207e 208a-208e 20a0 20a4 20ac 2100-2101 2103-2106 2108-2109 2114 2116-2118 211e-2123
2125 2127 2129 212e 213a-213b 2140-2144 214a-214d 214f 2153-215e 2190-2bff 3002 3012 30fb ff01-ff0f
ff1a-ff20 ff3b-ff40 ff5b-ff65 ffe0-ffe1 ffe5-ffe6"""
_NEWER_LETTERS = """37f 528-52f 560 588 5ef 860-88e 8a1 8ad-8c9 978 980 9fc af9 c34 c5a-c5d c80 cdd
d04 d54-d5f de6-def e86 e89 e8c e8e-e93 e98 ea0 ea8-ea9 eac 13f5-13fd 16f1-16f8 170d 171f 1878
191d-191e 19b0-19c0 19c8-19c9 1b4c 1c80-1cbf 1cf2-1cf3 1cfa 2c2f 2c5f 312e-312f 31bb-31bf 4db6-4dbf
9fcd-9fff a698-a69d a78f a794-a79f a7ab-a7f7 a8fd-a8fe a9e0-a9fe aa7e-aa7f ab30-abbf"""
_SMALL_DIGITS = "b2-b3 b9 2070 2074-2079 2080-2089"
# Marks that the rules know: quotation marks, hyphens, dashes, dots, slash, decimal separators.
_OF_RULES = (
    "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2039\u203a\u00ab\u00bb"
    "\u058a\u2010\u2011\u2013\u2014\u2015\u2026\u2044\u066b\u066c\u3001"
)


def _codes(ranges: str) -> list[int]:
    pairs = ((part.split("-")[0], part.split("-")[-1]) for part in ranges.split())
    return [code for first, last in pairs for code in range(int(first, 16), int(last, 16) + 1)]


class _Rewritten(dict[int, str]):
    """Table for `str.translate`; characters that are not in it are letters, or blanks."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        letter = unicodedata.category(char) in ("Lu", "Ll", "Lt", "Lm", "Lo", "Nd")
        if (letter and code < 0x10000) or " " <= char <= "~" or char in "\n\u00a0":
            self[code] = char
        else:
            self[code] = "\t" if char.isspace() else SKIPPED
        return self[code]


SEEN_AS = _Rewritten(dict.fromkeys(_codes(_NEWER_LETTERS), SKIPPED))
"""One character for each of the text that the rules read, for `str.translate`."""
SEEN_AS.update(dict.fromkeys(_codes(_SYMBOLS), SYMBOL))
SEEN_AS.update(dict.fromkeys(_codes(_MARKS), MARK))
SEEN_AS.update(dict.fromkeys(_codes(_SMALL_DIGITS), SMALL_DIGIT))
SEEN_AS.update({ord(char): char for char in _OF_RULES})
SEEN_AS.update(dict.fromkeys((0x1885, 0x1886), "\u1884"))  # letters before Unicode 9
# Quotation marks and dashes of Windows-1252 in a file that was read as Latin-1.
SEEN_AS.update({code: bytes([code]).decode("cp1252") for code in (*range(0x91, 0x95), 0x96, 0x97)})
