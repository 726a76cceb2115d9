"""Facts that captions of toy scenes state, above all spatial relations, against the scenes.

CIDEr hardly notices a "left" for a "right", or the wrong background; these measures do. The truth
comes from the scene, which is drawn again from its seed and number.
"""

import os
import re
from collections.abc import Collection, Mapping

from sparsecap_jax.data.toy_grammar import (
    COLOURS,
    NEAR,
    NOUNS,
    NUMBERS,
    PATTERNS,
    PLACES,
    PLURALS,
    RELATIONS,
)
from sparsecap_jax.data.toy_scenes import read_manifest
from sparsecap_jax.data.toy_world import INVERSE, Group, Scene, sample_scene
from sparsecap_jax.errors import DataError

_NOUN_FORMS = {
    shape: {form for noun in nouns for form in (noun, PLURALS.get(noun, noun + "s"))}
    for shape, nouns in NOUNS.items()
}
_PHRASES = {phrase: name for name, phrases in RELATIONS.items() for phrase in phrases}
FACTS = ("object", "colour", "pattern", "number", "relation", "background")
"""Kinds of facts that `wrong_facts` judges."""
# Longer phrases come first: "to the left of" holds "left of".
_PHRASE = re.compile(r"\b(" + "|".join(sorted(_PHRASES, key=len, reverse=True)) + r")\b")


def told_relation(caption: str, scene: Scene) -> str | None:
    """Return the relation of the first group of `scene` to the second that a caption states.

    Captions may name either group first. Shapes and colours identify it; where they do not, the
    caption is taken to begin with the more salient group, as most captions do.
    """
    phrase = _PHRASE.search(caption)
    if not phrase:
        return None
    relation = _PHRASES[phrase.group()]
    return INVERSE[relation] if _split(caption, scene)[2] else relation


def _split(caption: str, scene: Scene) -> tuple[list[str], list[str], bool]:
    """Return the words on the first group, those on the second, and whether these come first."""
    phrase = _PHRASE.search(caption) or re.search(r"\band\b", caption)
    start, end = phrase.span() if phrase else (len(caption), len(caption))
    before, after = caption[:start].split(), caption[end:].split()
    first, second = scene.groups[:2]
    in_order = _fit(before, first) + _fit(after, second)
    swapped = _fit(before, second) + _fit(after, first) > in_order
    return (after, before, True) if swapped else (before, after, False)


def wrong_facts(captions: Mapping[int | str, str], directory: str | os.PathLike) -> dict[str, int]:
    """Count the captions of a toy dataset that state a wrong fact, for each kind of `FACTS`.

    A caption says nothing wrong by leaving out a pattern, the relation or the background. Both
    groups need their shape, colour and number, as every caption of the dataset gives them. The
    arguments and errors are those of `relation_scores`.
    """
    pairs = _with_scenes(captions, directory)
    wrong = [kind for text, scene in pairs for kind in _wrong_kinds(text, scene)]
    return {kind: wrong.count(kind) for kind in FACTS}


def _wrong_kinds(caption: str, scene: Scene) -> set[str]:
    wrong = set()
    first, second, _ = _split(caption, scene)
    for words, group in zip((first, second), scene.groups[:2], strict=True):
        numbers = {count for count, word in NUMBERS.items() if count > 1 and word in words}
        numbers |= {2} if "pair" in words else set()
        judged = {
            "object": _named(words, _NOUN_FORMS) == {group.shape},
            "colour": _named(words, COLOURS) == {group.colour},
            "pattern": _named(words, PATTERNS) <= {group.pattern},
            "number": (numbers or {1}) == {group.count},
        }
        wrong |= {kind for kind, right in judged.items() if not right}
    places = {name for name, phrases in PLACES.items() if any(p in caption for p in phrases)}
    if not places <= {scene.background}:
        wrong.add("background")
    if told_relation(caption, scene) not in (None, scene.relation):
        wrong.add("relation")
    return wrong


def relation_scores(
    captions: Mapping[int | str, str], directory: str | os.PathLike
) -> dict[str, float]:
    """Return how often captions of a toy dataset state the right relation.

    Args:
        captions: caption by image id.
        directory: the dataset, made by `make_toy_scenes`.

    Returns:
        Of the captions that state a relation (0 where none does), "relation_accuracy", the share
        that is right, and "axis_accuracy", the share that is right or the exact opposite, such as
        "left" for "right"; and "relations_told", the share of captions that state one.

    Raises:
        DataError: `directory` is no toy dataset, or `captions` are empty.
    """
    pairs = [(told_relation(*pair), pair[1].relation) for pair in _with_scenes(captions, directory)]
    told = [(relation, truth) for relation, truth in pairs if relation is not None]
    right = sum(relation == truth for relation, truth in told)
    axis = sum(relation in (truth, INVERSE[truth]) for relation, truth in told)
    return {
        "relation_accuracy": right / max(len(told), 1),
        "axis_accuracy": axis / max(len(told), 1),
        "relations_told": len(told) / len(captions),
    }


def names_nearest(caption: str, scene: Scene) -> bool:
    """Return whether the words after "next to" fit the nearest group better than all others."""
    words = caption.partition(NEAR)[2].split()
    fits = [_fit(words, group) for group in scene.groups[1:] if group is not scene.nearest]
    return _fit(words, scene.nearest) > max(fits, default=0)


def nearest_scores(
    captions: Mapping[int | str, str], directory: str | os.PathLike
) -> dict[str, float]:
    """Return how often captions name the group nearest to the first one; see `relation_scores`.

    "nearest_accuracy" is the share that does; "nearest_second" the same share if all captions
    named the second most salient group.
    """
    pairs = _with_scenes(captions, directory)
    right = sum(names_nearest(text, scene) for text, scene in pairs)
    second = sum(scene.nearest is scene.groups[1] for _, scene in pairs)
    return {"nearest_accuracy": right / len(pairs), "nearest_second": second / len(pairs)}


def _with_scenes(
    captions: Mapping[int | str, str], directory: str | os.PathLike
) -> list[tuple[str, Scene]]:
    manifest = read_manifest(directory)
    if manifest is None or not captions:
        fault = "no toy scenes (manifest.json)" if captions else "no captions to judge"
        raise DataError(f"{directory}: {fault}; expected captions of a folder of toy scenes")
    seed, near = manifest["seed"], manifest.get("near", False)
    return [(text, sample_scene(seed, int(key) - 1, near)) for key, text in captions.items()]


def _named(words: list[str], forms: Mapping[str, Collection[str]]) -> set[str]:
    """Return the keys of `forms` that have a form among `words`."""
    return {name for name, alternatives in forms.items() if {*alternatives} & {*words}}


def _fit(words: list[str], group: Group) -> int:
    """Count which of a group's shape and colour are among `words`."""
    return (group.shape in _named(words, _NOUN_FORMS)) + (group.colour in _named(words, COLOURS))
