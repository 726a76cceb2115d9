"""Are captions true? They are parsed by a reader of its own and held against the scenes."""

import collections
import itertools
import math
import re

import pytest

from sparsecap_jax.data.toy_grammar import caption_scene, near_caption, plain_caption
from sparsecap_jax.data.toy_world import Draws, sample_scene

SCENES = 250

# The reader's own dictionary: every word of the grammar, written down again by hand.
SHAPES = {
    **dict.fromkeys(["cube", "cubes", "block", "blocks", "box", "boxes"], "cube"),
    **dict.fromkeys(["ball", "balls", "sphere", "spheres"], "ball"),
    **dict.fromkeys(["cone", "cones"], "cone"),
    **dict.fromkeys(["star", "stars"], "star"),
    **dict.fromkeys(["heart", "hearts"], "heart"),
    **dict.fromkeys(["ring", "rings", "hoop", "hoops"], "ring"),
    **dict.fromkeys(["moon", "moons", "crescent", "crescents"], "moon"),
    **dict.fromkeys(["flower", "flowers", "blossom", "blossoms"], "flower"),
    **dict.fromkeys(["mug", "mugs", "cup", "cups"], "mug"),
    "fish": "fish",
}
COLOURS = {
    **{"red": "red", "crimson": "red", "orange": "orange", "yellow": "yellow"},
    **{"golden": "yellow", "green": "green", "blue": "blue", "purple": "purple"},
    **{"violet": "purple", "pink": "pink", "rosy": "pink", "brown": "brown", "black": "black"},
    **{"white": "white", "gray": "gray", "silver": "gray"},
}
PATTERNS = {
    **{"striped": "striped", "stripy": "striped", "spotted": "spotted", "dotted": "spotted"},
    **{"checkered": "checkered", "checked": "checkered"},
    **dict.fromkeys(["shiny", "glossy", "gleaming"], "shiny"),
}
SIZES = {
    **dict.fromkeys(["small", "little", "tiny"], "small"),
    **dict.fromkeys(["big", "large", "huge"], "big"),
}
NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
ARRANGEMENTS = {
    **{"row": "row", "line": "row", "stack": "stack", "column": "stack", "tower": "stack"},
    **{"group": "cluster", "cluster": "cluster", "bunch": "cluster"},
}
RELATIONS = {
    **dict.fromkeys(["to the left of", "left of", "on the left side of"], "left"),
    **dict.fromkeys(["to the right of", "right of", "on the right side of"], "right"),
    **dict.fromkeys(["above", "over", "higher than"], "above"),
    **dict.fromkeys(["below", "under", "beneath", "underneath"], "below"),
    **dict.fromkeys(["in front of", "partly covering"], "front"),
    **dict.fromkeys(["behind", "partly hidden by"], "behind"),
}
PLACES = {
    **dict.fromkeys(["on the grass", "on a lawn", "in a grassy field", "in a meadow"], "grass"),
    **dict.fromkeys(["on a wooden table", "on the table", "on a desk"], "table"),
    **dict.fromkeys(["on the sand", "on a sandy beach", "at the beach"], "sand"),
    **dict.fromkeys(["in the snow", "on snowy ground", "on fresh snow"], "snow"),
    **dict.fromkeys(["on the water", "in a lake", "in the waves"], "water"),
    **dict.fromkeys(["in the sky", "in a cloudy sky", "among the clouds"], "sky"),
    **dict.fromkeys(["in the night sky", "at night", "in the dark"], "night"),
    **dict.fromkeys(["against a brick wall", "on a wall", "on some bricks"], "wall"),
    **dict.fromkeys(["on a carpet", "on a woven rug", "on the mat"], "carpet"),
    **dict.fromkeys(["on the road", "on a paved street", "on asphalt"], "road"),
    **dict.fromkeys(["on a tiled floor", "on the tiles", "in a kitchen"], "tiles"),
}


def any_of(words):
    return "|".join(sorted(words, key=len, reverse=True))


THINGS = re.compile(
    rf"(?:a (?P<arrangement>{any_of(ARRANGEMENTS)}) of |(?P<pair>a pair of )?)"
    rf"(?P<number>\b(?:{any_of(NUMBERS)}) )?(?:(?P<size>{any_of(SIZES)}) )?"
    rf"(?:(?P<pattern>{any_of(PATTERNS)}) )?(?P<colour>{any_of(COLOURS)}) "
    rf"(?P<shape>{any_of(SHAPES)})\b"
)
PLACE = re.compile(rf"\b({any_of(PLACES)})\b")
RELATION = re.compile(rf"\b({any_of(RELATIONS)})\b")
POSTURE = "sitting|standing|resting|lying|placed|floating|flying|hovering|drifting|hanging|fixed"
FRAME = re.compile(
    r"(a (picture|photo|drawing|view) of |an image of |(we|i|you can) see |there (is|are) )?"
    rf"(PLACE )?THINGS (((is|are|{POSTURE}|mounted|bobbing) )?RELATION|and) THINGS( PLACE)?"
)


def read(words):
    """A caption -> (place or None, relation or None, the two things said); fails on any other."""
    text = " ".join(words)
    place = PLACE.search(text)
    text = PLACE.sub("PLACE", text)
    things = [match.groupdict() for match in THINGS.finditer(text)]
    text = THINGS.sub("THINGS", text)
    relation = RELATION.search(text)
    assert FRAME.fullmatch(RELATION.sub("RELATION", text)), " ".join(words)
    relation = relation and RELATIONS[relation[1]]
    return place and PLACES[place[1]], relation, things


def is_true_of(thing, group):
    """Whether what was said of one group holds; what was left unsaid is not held against it."""
    count = 2 if thing["pair"] else NUMBERS[thing["number"].strip()]
    return (
        count == len(group.boxes)
        and SHAPES[thing["shape"]] == group.shape
        and COLOURS[thing["colour"]] == group.colour
        and (thing["pattern"] is None or PATTERNS[thing["pattern"]] == group.pattern)
        and (thing["size"] is None or SIZES[thing["size"]] == size_by_eye(group.boxes[0]))
        and (thing["arrangement"] is None or ARRANGEMENTS[thing["arrangement"]] == layout(group))
    )


def size_by_eye(box):
    longest = max(box[2] - box[0], box[3] - box[1])
    return "small" if longest <= 25 else "big" if longest >= 50 else "medium"


def layout(group):
    lefts, tops = {box[0] for box in group.boxes}, {box[1] for box in group.boxes}
    return "row" if len(tops) == 1 else "stack" if len(lefts) == 1 else "cluster"


def holds(relation, a, b):
    """Whether a relation is visible from the boxes alone, by a plainer rule than the sampler's."""
    touching = any(
        min(p[2], q[2]) > max(p[0], q[0]) and min(p[3], q[3]) > max(p[1], q[1])
        for p in a.boxes
        for q in b.boxes
    )
    lowest_a, lowest_b = max(p[3] for p in a.boxes), max(q[3] for q in b.boxes)
    return {
        "left": max(p[2] for p in a.boxes) <= min(q[0] for q in b.boxes),
        "right": min(p[0] for p in a.boxes) >= max(q[2] for q in b.boxes),
        "above": lowest_a <= min(q[1] for q in b.boxes),
        "below": min(p[1] for p in a.boxes) >= lowest_b,
        "front": touching and lowest_a > lowest_b,
        "behind": touching and lowest_a < lowest_b,
    }[relation]


def by_hand_salience(group):
    """Area of all objects, half as much again for a group in the middle of the picture."""
    area = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in group.boxes)
    middle_x = (min(b[0] for b in group.boxes) + max(b[2] for b in group.boxes)) / 2
    middle_y = (min(b[1] for b in group.boxes) + max(b[3] for b in group.boxes)) / 2
    return area * (1.5 if 48 <= middle_x <= 144 and 36 <= middle_y <= 108 else 1.0)


@pytest.fixture(scope="module")
def scenes():
    found = []
    for number in range(SCENES):
        scene, draws = sample_scene(7, number), Draws(7, number, purpose=1)
        found.append((scene, [caption_scene(scene, draws) for _ in range(5)]))
    return found


def test_captions_are_true(scenes):
    for scene, captions in scenes:
        first, second = sorted(scene.groups, key=by_hand_salience, reverse=True)[:2]
        for words in captions:
            place, relation, things = read(words)
            assert place in (None, scene.background)
            assert len(things) == 2
            forward = is_true_of(things[0], first) and is_true_of(things[1], second)
            backward = is_true_of(things[0], second) and is_true_of(things[1], first)
            assert forward or backward, " ".join(words)
            if relation is not None:
                assert holds(relation, *((first, second) if forward else (second, first)))


def test_captions_keep_to_their_form(scenes):
    captions = [words for _, five in scenes for words in five]
    assert all(7 <= len(words) <= 16 for words in captions)
    assert all(re.fullmatch("[a-z]+", word) for words in captions for word in words)
    for words in captions:
        for article, noun in itertools.pairwise(words):
            assert article != "an" or noun[0] in "aeiou"
            assert article != "a" or noun[0] not in "aeiou"


def test_vocabulary_and_variety(scenes):
    captions = [" ".join(words) for _, five in scenes for words in five]
    vocabulary = {word for caption in captions for word in caption.split()}
    assert 150 <= len(vocabulary) <= 300
    assert len(set(captions)) > 0.95 * len(captions)
    # The five captions of a scene agree on the colours, which differ between scenes.
    colours = [
        {tuple(sorted(COLOURS[w] for w in words if w in COLOURS)) for words in five}
        for _, five in scenes
    ]
    assert all(len(said) == 1 for said in colours)
    assert len({next(iter(said)) for said in colours}) > 50


def test_plain_captions_say_the_facts_in_one_way(scenes):
    for scene, _ in scenes:
        words = plain_caption(scene)
        place, relation, things = read(words)
        assert (place, relation) == (scene.background, scene.relation)
        for thing, group in zip(things, scene.groups, strict=False):
            assert is_true_of(thing, group)
            assert (thing["pattern"] is None) == (group.pattern not in PATTERNS.values())
            assert thing["size"] is thing["arrangement"] is thing["pair"] is None
        assert 7 <= len(words) <= 16
    # One noun for a shape, one phrase for a place: 10 x 2 nouns, 11 colours, few others.
    vocabulary = {word for scene, _ in scenes for word in plain_caption(scene)}
    assert not vocabulary & {"block", "sphere", "moons", "violet", "dotted", "desk", "over"}


def test_near_captions_name_what_stands_nearest():
    ranks = collections.Counter()
    for number in range(60):
        scene = sample_scene(1, number, near=True)
        assert len(scene.groups) in (3, 4)
        assert all(group.count == 1 for group in scene.groups)
        centres = [
            ((x1 + x2) / 2, (y1 + y2) / 2) for (x1, y1, x2, y2) in (g.box for g in scene.groups)
        ]
        distances = [math.dist(centres[0], centre) for centre in centres[1:]]
        nearest, runner_up = sorted(distances)[:2]
        assert runner_up >= 1.5 * nearest
        rank = 1 + distances.index(nearest)
        ranks[rank] += 1
        words = near_caption(scene)
        assert 7 <= len(words) <= 16
        before, after = " ".join(words).split(" next to ")
        for said, group in ((before, scene.groups[0]), (after, scene.groups[rank])):
            facts = [SHAPES.get(word) or COLOURS.get(word) for word in said.split()]
            assert [fact for fact in facts if fact] == [group.colour, group.shape]
    # The second is nearest in 1/2 x 1/2 + 1/2 x 1/3 = 25 of 60 scenes, give or take 4.
    assert 15 <= ranks[1] <= 35
    assert min(ranks[2], ranks[3]) >= 3


def test_scenes_are_clear_and_varied(scenes):
    seen = collections.Counter()
    for scene, _ in scenes:
        groups = scene.groups
        assert 3 <= sum(len(group.boxes) for group in groups) <= 8
        ranks = [by_hand_salience(group) for group in groups]
        assert ranks == sorted(ranks, reverse=True)
        assert all(low <= high * 2 / 3 for high, low in itertools.pairwise(ranks[:3]))
        for x1, y1, x2, y2 in (box for group in groups for box in group.boxes):
            assert 0 <= x1 < x2 <= 192
            assert 0 <= y1 < y2 <= 144
        seen.update([scene.relation, scene.background, groups[0].shape, groups[0].colour])
    kinds = 6 + 11 + 10 + 11  # relations, backgrounds, shapes, colours
    assert len(seen) == kinds
    assert min(seen.values()) >= 5
