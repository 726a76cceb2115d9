"""Whether captions of toy scenes say rightly how groups stand to each other.

CIDEr hardly notices a "left" for a "right"; these measures see nothing else. The truth is that of
the scene, which is drawn again from its seed and number.
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
    """How `caption` says that the first group of `scene` stands to the second; None: not at all.

    Captions may name either group first. Which one a caption means is judged by shapes and colours;
    where they do not tell, it is taken to speak of the more salient group, as most captions do.
    """
    found = _PHRASE.search(caption)
    if not found:
        return None
    before, after = caption[: found.start()].split(), caption[found.end() :].split()
    first, second = scene.groups[:2]
    in_order = _fit(before, first) + _fit(after, second)
    swapped = _fit(before, second) + _fit(after, first)
    told = _PHRASES[found.group()]
    return told if in_order >= swapped else INVERSE[told]


def relation_scores(
    captions: Mapping[int | str, str], directory: str | os.PathLike
) -> dict[str, float]:
    """How often captions of a toy dataset tell the right relation.

    Args:
        captions: caption by image id.
        directory: the dataset, made by `make_toy_scenes`.

    Returns:
        Of the captions that tell a relation (0 where none does), "relation_accuracy", the share
        that is right, and "axis_accuracy", the share that is right or the exact opposite, such as
        "left" for "right"; and "relations_told", the share of captions that tell one.

    Raises:
        DataError: `directory` is no toy dataset, or `captions` are empty.
    """
    right, axis, told = 0, 0, 0
    for text, scene in _with_scenes(captions, directory):
        relation = told_relation(text, scene)
        told += relation is not None
        right += relation == scene.relation
        axis += relation in (scene.relation, INVERSE[scene.relation])
    return {
        "relation_accuracy": right / max(told, 1),
        "axis_accuracy": axis / max(told, 1),
        "relations_told": told / len(captions),
    }


def names_nearest(caption: str, scene: Scene) -> bool:
    """Whether what follows "next to" fits the group nearest to the first better than all others."""
    words = caption.partition(NEAR)[2].split()
    fits = [_fit(words, group) for group in scene.groups[1:] if group is not scene.nearest]
    return _fit(words, scene.nearest) > max(fits, default=0)


def nearest_scores(
    captions: Mapping[int | str, str], directory: str | os.PathLike
) -> dict[str, float]:
    """How often captions of a toy dataset name what stands nearest to the first group.

    Args:
        captions: caption by image id.
        directory: the dataset, made by `make_toy_scenes(..., near=True)`.

    Returns:
        "nearest_accuracy", the share that does; "nearest_second", the share that would if all named
        the second most salient group.

    Raises:
        DataError: `directory` is no toy dataset, or `captions` are empty.
    """
    pairs = _with_scenes(captions, directory)
    right = sum(names_nearest(text, scene) for text, scene in pairs)
    second = sum(scene.nearest is scene.groups[1] for _, scene in pairs)
    return {"nearest_accuracy": right / len(pairs), "nearest_second": second / len(pairs)}


def _with_scenes(
    captions: Mapping[int | str, str], directory: str | os.PathLike
) -> list[tuple[str, Scene]]:
    """Captions and their scenes."""
    manifest = read_manifest(directory)
    if manifest is None or not captions:
        fault = "no toy scenes (manifest.json)" if captions else "no captions to judge"
        raise DataError(f"{directory}: {fault}; expected captions of a folder of toy scenes")
    seed, near = manifest["seed"], manifest.get("near", False)
    return [(text, sample_scene(seed, int(key) - 1, near)) for key, text in captions.items()]


def _fit(words: list[str], group: Group) -> int:
    """How many of shape and colour of `group` are among `words`."""
    nouns = {form for noun in NOUNS[group.shape] for form in (noun, PLURALS.get(noun, noun + "s"))}
    return bool(nouns & {*words}) + bool({*COLOURS[group.colour]} & {*words})
