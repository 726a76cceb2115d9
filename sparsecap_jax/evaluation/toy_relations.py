"""Accuracy of the spatial relations that captions of toy scenes state.

CIDEr hardly notices a "left" for a "right"; these measures look at nothing else. The truth comes
from the scene, which is drawn again from its seed and number.
"""

import os
import re
from collections.abc import Mapping

from sparsecap_jax.data.toy_grammar import COLOURS, NEAR, NOUNS, PLURALS, RELATIONS
from sparsecap_jax.data.toy_scenes import read_manifest
from sparsecap_jax.data.toy_world import INVERSE, Group, Scene, sample_scene
from sparsecap_jax.errors import DataError

_PHRASES = {phrase: name for name, phrases in RELATIONS.items() for phrase in phrases}
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
    before, after = caption[: phrase.start()].split(), caption[phrase.end() :].split()
    first, second = scene.groups[:2]
    in_order = _fit(before, first) + _fit(after, second)
    swapped = _fit(before, second) + _fit(after, first)
    relation = _PHRASES[phrase.group()]
    return relation if in_order >= swapped else INVERSE[relation]


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


def _fit(words: list[str], group: Group) -> int:
    """Count which of a group's shape and colour are among `words`."""
    nouns = {form for noun in NOUNS[group.shape] for form in (noun, PLURALS.get(noun, noun + "s"))}
    return bool(nouns & {*words}) + bool({*COLOURS[group.colour]} & {*words})
