"""Whether captions of toy scenes say rightly how the first two groups stand to each other.

CIDEr hardly notices a "left" for a "right"; this measure sees nothing else. The truth is that of
the scene, which is drawn again from its seed and number.
"""

import os
import re
from collections.abc import Mapping

from sparsecap_jax.data.toy_grammar import COLOURS, NOUNS, PLURALS, RELATIONS
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
    manifest = read_manifest(directory)
    if manifest is None or not captions:
        fault = "no toy scenes (manifest.json)" if captions else "no captions to judge"
        raise DataError(f"{directory}: {fault}; expected captions of a folder of toy scenes")
    right, axis, told = 0, 0, 0
    for image_id, text in captions.items():
        scene = sample_scene(manifest["seed"], int(image_id) - 1)
        relation = told_relation(text, scene)
        told += relation is not None
        right += relation == scene.relation
        axis += relation in (scene.relation, INVERSE[scene.relation])
    return {
        "relation_accuracy": right / max(told, 1),
        "axis_accuracy": axis / max(told, 1),
        "relations_told": told / len(captions),
    }


def _fit(words: list[str], group: Group) -> int:
    """How many of shape and colour of `group` are among `words`."""
    nouns = {form for noun in NOUNS[group.shape] for form in (noun, PLURALS.get(noun, noun + "s"))}
    return bool(nouns & {*words}) + bool({*COLOURS[group.colour]} & {*words})
