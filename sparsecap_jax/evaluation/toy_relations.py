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


def relation_is_right(caption: str, scene: Scene) -> bool | None:
    """Whether `caption` tells the relation of the first two groups of `scene`; None: tells none.

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
    truth = scene.relation if in_order >= swapped else INVERSE[scene.relation]
    return _PHRASES[found.group()] == truth


def relation_scores(
    captions: Mapping[int | str, str], directory: str | os.PathLike
) -> dict[str, float]:
    """How often captions of a toy dataset tell the right relation.

    Args:
        captions: caption by image id.
        directory: the dataset, made by `make_toy_scenes`.

    Returns:
        "relation_accuracy", the share of right ones among captions that tell a relation (0 where
        none does), and "relations_told", the share of captions that do.

    Raises:
        DataError: `directory` is no toy dataset, or `captions` are empty.
    """
    manifest = read_manifest(directory)
    if manifest is None or not captions:
        fault = "no toy scenes (manifest.json)" if captions else "no captions to judge"
        raise DataError(f"{directory}: {fault}; expected captions of a folder of toy scenes")
    verdicts = [
        relation_is_right(text, sample_scene(manifest["seed"], int(image_id) - 1))
        for image_id, text in captions.items()
    ]
    told = [verdict for verdict in verdicts if verdict is not None]
    return {
        "relation_accuracy": sum(told) / max(len(told), 1),
        "relations_told": len(told) / len(verdicts),
    }


def _fit(words: list[str], group: Group) -> int:
    """How many of shape and colour of `group` are among `words`."""
    nouns = {form for noun in NOUNS[group.shape] for form in (noun, PLURALS.get(noun, noun + "s"))}
    return bool(nouns & {*words}) + bool({*COLOURS[group.colour]} & {*words})
