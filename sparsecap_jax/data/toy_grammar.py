"""Captions of toy scenes: facts follow from the scene, their wording is drawn at random.

Every caption speaks of the two most salient groups, most of them also of the relation of the first
to the second and of the background. Only words, order and sentence frame vary. A plain caption
draws nothing: the usual words in the usual order.
"""

from collections.abc import Sequence
from typing import Any

from sparsecap_jax.data import toy_world
from sparsecap_jax.data.toy_world import INVERSE, Draws, Group, Scene

MIN_WORDS, MAX_WORDS = 7, 16  # 16 words, BOS and EOS make max_seq_length 18

# Alternatives with weights.
NOUNS = {shape: {shape: 1} for shape in toy_world.SHAPES} | {
    "cube": {"cube": 8, "block": 3, "box": 1},
    "ball": {"ball": 8, "sphere": 3},
    "ring": {"ring": 8, "hoop": 3},
    "moon": {"moon": 3, "crescent": 8},
    "flower": {"flower": 8, "blossom": 2},
    "mug": {"mug": 8, "cup": 4},
}
PLURALS = {"box": "boxes", "fish": "fish"}
COLOURS = {colour: {colour: 1} for colour in toy_world.COLOURS} | {
    "red": {"red": 9, "crimson": 1},
    "yellow": {"yellow": 9, "golden": 1},
    "purple": {"purple": 8, "violet": 2},
    "pink": {"pink": 9, "rosy": 1},
    "gray": {"gray": 8, "silver": 2},
}
PATTERNS = {
    "striped": {"striped": 9, "stripy": 1},
    "spotted": {"spotted": 8, "dotted": 3},
    "checkered": {"checkered": 8, "checked": 2},
    "shiny": {"shiny": 8, "glossy": 2, "gleaming": 1},
}
SIZES = {
    "small": {"small": 8, "little": 3, "tiny": 1},
    "big": {"big": 5, "large": 8, "huge": 1},
}
NUMBERS = {1: "a", 2: "two", 3: "three", 4: "four", 5: "five"}
ARRANGEMENTS = {
    "row": {"row": 8, "line": 3},
    "stack": {"stack": 8, "column": 3, "tower": 1},
    "cluster": {"group": 8, "cluster": 3, "bunch": 1},
}
RELATIONS = {
    "left": {"to the left of": 9, "left of": 3, "on the left side of": 1},
    "right": {"to the right of": 9, "right of": 3, "on the right side of": 1},
    "above": {"above": 8, "over": 2, "higher than": 1},
    "below": {"below": 8, "under": 3, "beneath": 2, "underneath": 1},
    "front": {"in front of": 8, "partly covering": 1},
    "behind": {"behind": 8, "partly hidden by": 1},
}
NEAR = "next to"
PLACES = {
    "grass": {"on the grass": 8, "on a lawn": 3, "in a grassy field": 2, "in a meadow": 1},
    "table": {"on a wooden table": 8, "on the table": 3, "on a desk": 2},
    "sand": {"on the sand": 8, "on a sandy beach": 3, "at the beach": 2},
    "snow": {"in the snow": 8, "on snowy ground": 3, "on fresh snow": 1},
    "water": {"on the water": 8, "in a lake": 3, "in the waves": 1},
    "sky": {"in the sky": 8, "in a cloudy sky": 3, "among the clouds": 2},
    "night": {"in the night sky": 8, "at night": 3, "in the dark": 2},
    "wall": {"against a brick wall": 8, "on a wall": 3, "on some bricks": 1},
    "carpet": {"on a carpet": 8, "on a woven rug": 3, "on the mat": 1},
    "road": {"on the road": 8, "on a paved street": 3, "on asphalt": 1},
    "tiles": {"on a tiled floor": 8, "on the tiles": 3, "in a kitchen": 1},
}
POSTURES = {
    "sky": {"floating": 2, "flying": 1, "hovering": 1},
    "night": {"floating": 2, "drifting": 1, "hovering": 1},
    "wall": {"hanging": 2, "fixed": 1, "mounted": 1},
    "water": {"floating": 3, "drifting": 1, "bobbing": 1},
}
ON_GROUND = {"sitting": 4, "standing": 2, "resting": 1, "lying": 1, "placed": 1}
FRAMES = {
    "{a} {relation} {b} {place}": 10,
    "there {are} {a} {relation} {b} {place}": 3,
    "{a} {are} {relation} {b} {place}": 2,
    "{a} {posture} {relation} {b} {place}": 2,
    "{place} {a} {are} {relation} {b}": 1,
    "{b} {inverse} {a} {place}": 1,
    "{picture} of {a} {relation} {b}": 1,
    "{viewer} see {a} {relation} {b} {place}": 1,
    "{a} and {b} {place}": 2,
}
PICTURES = {"a picture": 3, "a photo": 2, "an image": 2, "a drawing": 1, "a view": 1}
VIEWERS = {"we": 2, "you can": 2, "i": 1}


class _Usual(Draws):
    """Draws nothing: whatever is likeliest comes out."""

    def chance(self, percent: int) -> bool:
        return percent > 50

    def pick(self, options: Sequence, weights: Sequence[int] | None = None) -> Any:
        return options[weights.index(max(weights)) if weights else 0]


_USUAL = _Usual(0, 0)


def _choose(draws: Draws, alternatives: dict[str, int]) -> str:
    return draws.pick(list(alternatives), list(alternatives.values()))


def _noun_phrase(draws: Draws, group: Group, full: bool = False) -> str:
    """Draw number, pattern, colour and noun of a group; size and arrangement too if `full`."""
    noun, words = _choose(draws, NOUNS[group.shape]), []
    number = NUMBERS[group.count]
    if group.count == 1 and draws.chance(8):
        number = "one"
    elif group.count == 2 and draws.chance(15):
        number = "a pair of"
    elif group.count > 2 and full and draws.chance(35):
        number = f"a {_choose(draws, ARRANGEMENTS[group.arrangement])} of {number}"
    if full and group.size in SIZES and draws.chance(85):
        words.append(_choose(draws, SIZES[group.size]))
    if group.pattern in PATTERNS and draws.chance(92):
        words.append(_choose(draws, PATTERNS[group.pattern]))
    words.append(_choose(draws, COLOURS[group.colour]))
    words.append(PLURALS.get(noun, noun + "s") if group.count > 1 else noun)
    return " ".join(["an" if number == "a" and words[0][0] in "aeiou" else number, *words])


def caption_scene(scene: Scene, draws: Draws) -> list[str]:
    """Draw one caption of a scene: MIN_WORDS to MAX_WORDS lower-case words without punctuation."""
    first, second = scene.groups[:2]
    while True:
        sentence = _choose(draws, FRAMES).format(
            a=_noun_phrase(draws, first, full=True),
            b=_noun_phrase(draws, second),
            are="are" if first.count > 1 else "is",
            relation=_choose(draws, RELATIONS[scene.relation]),
            inverse=_choose(draws, RELATIONS[INVERSE[scene.relation]]),
            place=_choose(draws, PLACES[scene.background]),
            posture=_choose(draws, POSTURES.get(scene.background, ON_GROUND)),
            picture=_choose(draws, PICTURES),
            viewer=_choose(draws, VIEWERS),
        )
        words = sentence.split()
        if MIN_WORDS <= len(words) <= MAX_WORDS:
            return words


def plain_caption(scene: Scene) -> list[str]:
    """Return the one plain caption of a scene: no sizes, no arrangements, the usual words."""
    return _plain(scene, _choose(_USUAL, RELATIONS[scene.relation]), scene.groups[1])


def near_caption(scene: Scene) -> list[str]:
    """Return a plain caption of the most salient group and of the one nearest to it."""
    return _plain(scene, NEAR, scene.nearest)


def _plain(scene: Scene, relation: str, other: Group) -> list[str]:
    first, second = (_noun_phrase(_USUAL, group) for group in (scene.groups[0], other))
    return f"{first} {relation} {second} {_choose(_USUAL, PLACES[scene.background])}".split()
