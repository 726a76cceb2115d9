"""Penn Treebank tokenisation of captions in plain Python, equal to the Java one of the scorers.

The COCO scores are defined on the output of pycocoevalcap's Stanford PTBTokenizer (-preserveLines
-lowerCase) without punctuation. This module returns the same strings without Java. It was written
from the observed behaviour of that program; `python -m sparsecap_jax.evaluation.ptb_java` compares
the two on every COCO caption, and docs/metrics.md lists the known differences (none on COCO or
Flickr8k).

Like the Java program, `ptb_tokens` is a longest-match lexer: the rule that reads furthest wins,
look-ahead included, and the earlier rule breaks a tie. Look-ahead crosses the end of a line:
whether a caption that ends in "p.m." loses that period depends on the caption after it. Captions
are therefore tokenized as a list, in the order of the file. Unlike in Java, no rule reads further
than `_WINDOW` characters, so that the time grows with the length of a caption, whatever it holds.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence

from sparsecap_jax.evaluation._ptb_characters import MARK, SEEN_AS, SKIPPED, SMALL_DIGIT

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Tokens that the scorers drop. Brackets stay: pycocoevalcap looks for "-LRB-" in lower case."""

# Abbreviations that keep their period, in any case. At the end of a sentence, those of the first
# list yield a second period; names of states count only when capitalised.
_MAY_END = """al ala apr assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est
etc ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb
nev nov oct okla penn plc rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed
wis wisc wyo"""
_CAPITALISED = "ark az del ill la mass miss ore pa tex wash"
_NEVER_END = """adj adm adv alex assoc asst atty ave brig capt cf cie cmdr col comdr cpl dept det dr
drs elec ens ft gen gov hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms mt natl pfc ph pres
prof pvt rep reps rev sen sens sfc sgt spc st ste supt treas vs wm"""
_BEFORE_NUMBER = "art ca fig figs no nos op pp prop"
# Words after which an acronym is taken to have ended the sentence.
_STARTERS = """about according after an as at but earlier he her here however if in it last many
more now once one other our she since so some such that the their then there these they this we what
when while yet you"""


_WINDOW = 1000  # characters of the longest token, look-ahead included


def _any_of(words: str) -> str:
    return "|".join(sorted(words.split(), key=len, reverse=True))


_A = "[A-Za-z]"
_WORD = rf"[^\W_{MARK}]+"
_MARKED = r"[^\W\d_][^\W_]*"  # may hold combining marks, unlike the parts of a compound
_BLANK = r"[ \t\u00a0]"
_APOSTROPHE = "['`\u2018\u2019]"
_DECIMAL = "[.,:\u066b\u066c]"
_QUOTE = "[`\u2018-\u201f\u2039\u203a\u00ab\u00bb]"
_ASCII_QUOTES = str.maketrans(
    {**dict.fromkeys("\u2018\u201b\u2039", "`"), **dict.fromkeys("\u2019\u203a", "'")}
    | {**dict.fromkeys("\u201c\u00ab", "``"), **dict.fromkeys("\u201d\u00bb", "''")}
)
_NAME = rf"{_A}[A-Za-z0-9_.:-]*"
_TAG = (
    rf"<(?:!--.*?--|[!?][A-Za-z-][^>\n]*|/{_NAME}{_BLANK}*"
    rf"|{_NAME}(?:{_BLANK}+{_NAME}(?:=(?:'[^'\n]*'|\"[^\"\n]*\"))?)*(?:{_BLANK}*/)?{_BLANK}*)>"
)
_ENDING = (
    rf"(?i:{_any_of(_MAY_END)})|(?=[A-Z])(?i:{_any_of(_CAPITALISED)})|[Pp][Tt][ey]|(?i:ph\.d|ed\.d)"
)
_INNER = rf"(?i:{_any_of(_NEVER_END)})|[Mm][FfTt]g"
_CAPITALS = "".join(filter(str.isupper, map(chr, range(0x2C00))))
_INITIALS = rf"{_A}(?:\.{_A})+"
_SENTENCE_END = rf"(?:\s\s|\s?(?:\Z|{_TAG})|\s[{_CAPITALS}])"
_STARTER = rf"A|{_any_of(_STARTERS.title())}|{_any_of(_STARTERS.upper())}"
_NEW_SENTENCE = rf"(?:\s+(?:{_STARTER})\s|\s+{_TAG})"
_SUFFIX = "['\u2019](?:[sSmMdD]|(?i:ll|ve|re))"
_NO_LETTER = "(?:[^A-Za-z]|\\Z)"
_DOTTED = rf"{_MARKED}(?:[.!?]{_MARKED})+"
_PART = rf"(?:[dDlLoO]{_APOSTROPHE}(?=[^\W_{MARK}]{{2}}))?{_WORD}"
_COMPOUND = rf"{_PART}(?:[-_\u2010\u2011\u058a]{_PART})*"
_HYPHENATED = rf"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:{_INITIALS}\.|[A-Za-z0-9]+))+"
_SLASHED = rf"[A-Za-z0-9]+(?:-{_A}+)*"
_URL_TAIL = r"[^\s\"<>|()]+[^\s\"<>|.!?(){},-]"
_PHONE = "(?:[0-9]{2,4}[- ])?[0-9]{2,4}[- ][0-9]{3,4}[- ]?[0-9]{3,5}"
_AT_TAIL = r"(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+"

# Treatments of the matched text, besides a replacement string.
_SAME, _STRAIGHT, _QUOTES, _UNBREAKABLE, _PERIOD_TWICE = (object() for _ in range(5))

# (pattern, emit): the token is group 1 where there is one, the rest of the pattern is look-ahead.
_ALNUM_RULES = [
    (rf"https?://{_URL_TAIL}", _SAME),
    (rf"(?:{_A}[A-Za-z0-9]*\.)+(?:com|net|org|edu)/{_URL_TAIL}", _SAME),
    (rf"[A-Za-z0-9][^\s\"<>|(){{}}]*@{_AT_TAIL}", _SAME),
    ("(?i:(can)not|(gon)na|(got)ta|(lem)me|(gim)me|(wan)na)", _SAME),
    (f"(?i:(more)'n)(?!{_A})", _SAME),
    (rf"({_A}*?[A-MO-Za-mo-z])[nN]{_APOSTROPHE}[tT]", _SAME),
    (rf"[nN]{_APOSTROPHE}[tT]", _STRAIGHT),
    ("(?i:nor'easter|o'clock|c'mon|cap'n|nat'l|li'l|c['\u2019]est|e'er|ev'ry|d'ye)", _SAME),
    ("(?:[dD]unkin|[sS]omethin|[oO]l)['\u2019]", _SAME),
    (rf"[nA-HJ-XZ]{_APOSTROPHE}[^\W\d_{MARK}]{{2,}}", _SAME),
    (rf"({_WORD}|{_MARKED}){_SUFFIX}{_NO_LETTER}?", _SAME),
    (rf"[^\W\d_{MARK}]+[aeiouyAEIOUY]{_APOSTROPHE}[aeiouA-Z][^\W\d_{MARK}]*", _SAME),
    ("[dDlLjJ]['\u2019]|([yY]['\u2019])[^\\W\\d_]", _SAME),
    (_COMPOUND, _SAME),
    (_MARKED, _SAME),
    (_HYPHENATED, _SAME),
    (rf"{_SLASHED}(?:/{_SLASHED}){{1,2}}", _SAME),
    (_DOTTED, _SAME),
    (rf"((?i:{_any_of(_BEFORE_NUMBER)})\.)\s?\d", _SAME),
    (rf"((?:{_ENDING})\.){_SENTENCE_END}", _PERIOD_TWICE),
    (rf"((?:{_ENDING})\.)[\s\S][\s\S]", _SAME),
    (rf"(?:{_ENDING}|{_INNER})\.", _SAME),
    (rf"({_INITIALS}\.){_NEW_SENTENCE}", _PERIOD_TWICE),
    (rf"{_INITIALS}\.?|(?i:ph\.d|ed\.d)", _SAME),
    (rf"({_A})\.{_NEW_SENTENCE}", _SAME),
    (rf"{_A}\.", _SAME),
    (rf"((?:{_COMPOUND}|{_HYPHENATED}|{_DOTTED}|{_MARKED}|[A-Z]+&[A-Z]+)\.)[,;:\u3001]", _SAME),
    (rf"\d+(?:{_DECIMAL}\d+)*", _SAME),
    (r"(?:\d{1,4}[- \u00a0])?\d{1,4}[/\u2044]\d{1,4}|\d{1,2}[-/]\d{1,2}[-/]\d{2,4}", _UNBREAKABLE),
    (_PHONE, _UNBREAKABLE),
    (r"[A-Z]+(?:[&+][A-Z]+)+|[cC]\+\+|[cCfF]#|[A-Z]+\$", _SAME),
    (r"\S", _SAME),
]
_OTHER_RULES = [
    (_TAG, _UNBREAKABLE),
    ("@[A-Za-z_][A-Za-z0-9_]*|#[^\\W\\d_]+|@+", _SAME),
    ("(?i:('t)(?:is|was))", _SAME),
    (f"({_SUFFIX}){_NO_LETTER}|\u2019(?:[sSmMdD]|(?i:ll|ve|re))", _STRAIGHT),
    (
        r"['\u2019][nN]['\u2019]?|(?i:['\u2019](?:em|till?|cause))|['\u2019][2-9]0s|(['\u2019][0-9]{2})\s",
        _SAME,
    ),
    (rf"[+-]?(?:\d+(?:{_DECIMAL}\d+)*|(?:{_DECIMAL}\d+)+)", _SAME),
    (r"\([0-9]{2,3}\) ?[0-9]{3,4}[- ]?[0-9]{3,5}", _UNBREAKABLE),
    (rf"\+\+?{_PHONE}", _UNBREAKABLE),
    (r"[<>]?[:;=][-o*']?[()DPdpO|\\@\[\]](?![A-Za-z0-9])|-_-", _SAME),
    (r"-{2,4}|[\u2013\u2014\u2015]", "--"),
    (r"\.{3,5}|\.(?: \.){2,4}|\u2026", "..."),
    (r"[!?]+|-{5,}|''|``|<<|>>|\*+|_+|#+", _SAME),
    ('(")[A-Za-z0-9$]', "``"),
    ('"', "''"),
    (rf"('){_A}\S", "`"),
    (f"{_QUOTE}{{1,2}}", _QUOTES),
    (f"{SMALL_DIGIT}+", _SAME),
    ("[\u2010\u2011\u058a\u066b\u066c]", ""),
    (r"\[", "-lsb-"),
    (r"\]", "-rsb-"),
    (r"\{", "-lcb-"),
    (r"\}", "-rcb-"),
    (r"\S", _SAME),
]

_ALNUM = [(re.compile(pattern), emit) for pattern, emit in _ALNUM_RULES]
_OTHER = [(re.compile(pattern), emit) for pattern, emit in _OTHER_RULES]
_SPACE = re.compile(rf"[\s{SKIPPED}]*")
_PLAIN_WORD = re.compile("[A-Za-z]{2,}(?= )")
# Captions of nothing but words and commas with at most one period at the end, the bulk of all.
_PLAIN_CAPTION = re.compile("[A-Za-z]+(?:,? +[A-Za-z]+)*(?: *\\. *)?")
_LAST_WORD = re.compile(r"(?<![A-Za-z])([A-Za-z]+)\.")
_SPLIT_WORDS = frozenset(["cannot", "gonna", "gotta", "lemme", "gimme", "wanna"])
_ABBREVIATIONS = frozenset(
    f"{_MAY_END} {_CAPITALISED} {_NEVER_END} {_BEFORE_NUMBER} pte pty mtg mfg".split()
)
_UNUSUAL = re.compile("[^\n -~]")
_SPELLED = {
    **{"\u00bd": "1/2", "\u00bc": "1/4", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"},
    **{"\u00a2": "cents", "\u00a3": "#"},
    **dict.fromkeys("\x80\u00a4\u20a0\u20ac", "$"),
}


def ptb_tokens(caption: str, following: str | None = None) -> list[str]:
    """Return the lower-cased Penn Treebank tokens of one caption, punctuation included.

    Args:
        caption: any text; line breaks in it count as blanks.
        following: the next line of the file, None at its end (see the top of this file).

    Returns:
        The tokens, as the Stanford PTBTokenizer of CoreNLP 3.4.1 prints them. Blanks within a
        token (markup, telephone numbers, "1 1/2") are U+00A0.
    """
    line = _one_line(caption)
    text = line if following is None else f"{line}\n{_one_line(following)}"
    seen = text.translate(SEEN_AS) if _UNUSUAL.search(text) else text
    end = len(line)
    tokens = []
    position = _after_space(seen, 0)
    while position < end:
        plain = _PLAIN_WORD.match(seen, position, position + _WINDOW)
        if plain and plain[0].lower() not in _SPLIT_WORDS:
            tokens.append(plain[0])
            position = plain.end()
        else:
            token, position = _longest_match(seen, text, position)
            tokens += [token] * bool(token)
        position = _after_space(seen, position)
    # Java does not take a sigma before a hyphen for a final one.
    return " ".join(tokens).replace("Σ-", "σ-").lower().split(" ") if tokens else []


def _after_space(seen: str, position: int) -> int:
    """Return the first place from `position` on that is not skipped."""
    space = _SPACE.match(seen, position)
    return space.end() if space else position


def _longest_match(seen: str, text: str, position: int) -> tuple[str, int]:
    """Return the token at `position` and the position after it."""
    rules = _ALNUM if seen[position].isalnum() else _OTHER
    end = position + _WINDOW
    matches = [(m, emit) for pattern, emit in rules if (m := pattern.match(seen, position, end))]
    best, emit = max(matches, key=lambda match: match[0].end())
    end = best.end(best.lastindex or 0)
    token = text[position:end]
    if emit is _PERIOD_TWICE:
        return token, end - 1
    if isinstance(emit, str):
        return emit, end
    if emit is _STRAIGHT:
        return token.translate(_ASCII_QUOTES), end
    if emit is _QUOTES:
        return seen[position:end].translate(_ASCII_QUOTES), end
    if emit is _UNBREAKABLE:
        token = token.replace(" ", "\u00a0")
    token = _SPELLED.get(token, token)
    return token.replace("(", "-lrb-").replace(")", "-rrb-"), end


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\u00ad", "")


def _scored_tokens(caption: str, following: str | None) -> str:
    if _PLAIN_CAPTION.fullmatch(caption):
        words = caption.lower().replace(",", "").replace(".", "").split()
        last = _LAST_WORD.search(caption)
        if _SPLIT_WORDS.isdisjoint(words) and not (
            last and (len(last[1]) == 1 or last[1].lower() in _ABBREVIATIONS)
        ):
            return " ".join(words)
    return " ".join(t for t in ptb_tokens(caption, following) if t not in PUNCTUATION)


def tokenize_captions(captions: Sequence[str]) -> list[str]:
    """Prepare captions for the scorers: Penn Treebank tokens without punctuation.

    Captions come in the order of the file; tokens are lower case and separated by single blanks.
    """
    return list(map(_scored_tokens, captions, [*captions[1:], None]))


def tokenize(
    captions: Mapping[Hashable, Sequence[str]],
    tokenizer: Callable[[Sequence[str]], Sequence[str]] = tokenize_captions,
) -> dict[Hashable, list[str]]:
    """Apply a tokenizer of lists to the captions of all images at once; keeps keys and order."""
    flat = iter(tokenizer([text for texts in captions.values() for text in texts]))
    return {key: [next(flat) for _ in texts] for key, texts in captions.items()}
