"""Toy scenes as plain facts: groups of objects, their places, and what a speaker notices.

Everything is integer arithmetic on pixels, driven by raw Philox words, so that a scene depends on
its seed and number alone: neither on the machine nor on the NumPy version.
"""

import bisect
import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

WIDTH, HEIGHT = 192, 144  # pixels
MARGIN = 3  # pixels kept free along the border and between groups
GAP = 2  # pixels between the objects of a group
MIN_OBJECTS, MAX_OBJECTS = 3, 8

SHAPES = ("cube", "ball", "cone", "star", "heart", "ring", "moon", "flower", "mug", "fish")
COLOURS = (
    *("red", "orange", "yellow", "green", "blue", "purple"),
    *("pink", "brown", "black", "white", "gray"),
)
PATTERNS = ("plain", "striped", "spotted", "checkered", "shiny")
PATTERN_WEIGHTS = (9, 4, 4, 3, 4)
SIZES = {"small": (20, 25), "medium": (31, 37), "big": (50, 60)}  # side in pixels, inclusive
MAX_COUNT = {"small": 5, "medium": 3, "big": 2}
COUNT_WEIGHTS = (8, 5, 4, 3, 2)  # of 1, 2, ... objects in a group
RELATIONS = ("left", "right", "above", "below", "front", "behind")
INVERSE = dict(zip(RELATIONS, ("right", "left", "below", "above", "behind", "front"), strict=True))
ARRANGEMENTS = ("single", "row", "stack", "cluster")
# Each background, with the colours that would be hard to see on it.
BACKGROUNDS = {
    "grass": ("green",),
    "table": ("brown", "orange"),
    "sand": ("yellow",),
    "snow": ("white",),
    "water": ("blue",),
    "sky": ("white",),
    "night": ("black",),
    "wall": ("red", "brown"),
    "carpet": ("purple",),
    "road": ("gray", "black"),
    "tiles": ("white",),
}
SLIM = {"cone": (4, 5), "fish": (4, 3)}  # width : height of shapes that do not fill a square

Box = tuple[int, int, int, int]


class Draws:
    """A stream of random integers that is the same everywhere.

    NumPy promises stability for the raw words of a bit generator but not for the distributions of
    `Generator`, so only raw words are used here.

    Args:
        seed: 64 bits; which family of scenes.
        number: 32 bits; which scene of it.
        purpose: 32 bits; keeps apart what is drawn for one scene: 0 the scene itself, 1 its
            captions, 2 its features.
    """

    def __init__(self, seed: int, number: int, purpose: int = 0):
        bits = np.random.Philox(key=np.array([seed, purpose << 32 | number], np.uint64))
        self._words = (word for _ in itertools.count() for word in bits.random_raw(64).tolist())
        self._bits = bits

    def below(self, limit: int) -> int:
        """Draw a whole number in `[0, limit)`."""
        return ((next(self._words) >> 32) * limit) >> 32

    def between(self, low: int, high: int) -> int:
        """Draw a whole number in `[low, high]`."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """Return True `percent` times out of 100."""
        return self.below(100) < percent

    def pick(self, options: Sequence, weights: Sequence[int] | None = None) -> Any:
        """Draw one of `options`, with probabilities proportional to `weights`."""
        if weights is None:
            return options[self.below(len(options))]
        sums = list(itertools.accumulate(weights))
        return options[bisect.bisect_right(sums, self.below(sums[-1]))]

    def triangular(self, *shape: int) -> np.ndarray:
        """Draw int32 noise in [-255, 255]: sums of two bytes less their mean (sd 104.5)."""
        size = math.prod(shape)
        words = self._bits.random_raw(-(-size // 4)).astype("<u8")
        halves = words.view(np.uint8)[: 2 * size].astype(np.int32)
        return (halves[:size] + halves[size:] - 255).reshape(shape)


@dataclasses.dataclass(frozen=True)
class Group:
    """One or more like objects that stand together.

    Attributes:
        shape: one of SHAPES.
        colour: one of COLOURS.
        size: one of SIZES.
        pattern: one of PATTERNS.
        arrangement: one of ARRANGEMENTS; "single" for one object.
        boxes: x1, y1, x2, y2 of each object in pixels.
    """

    shape: str
    colour: str
    size: str
    pattern: str
    arrangement: str
    boxes: tuple[Box, ...]

    @property
    def count(self) -> int:
        """Number of objects."""
        return len(self.boxes)

    @functools.cached_property
    def box(self) -> Box:
        """The smallest box around all objects of the group."""
        return around(*self.boxes)

    @functools.cached_property
    def salience(self) -> int:
        """Area of the objects' boxes, half as much again when the group is in mid-picture.

        In mid-picture: its centre lies within the middle half of the width and of the height.
        """
        area = sum(map(_area, self.boxes))
        x1, y1, x2, y2 = self.box
        central = abs(x1 + x2 - WIDTH) * 2 <= WIDTH and abs(y1 + y2 - HEIGHT) * 2 <= HEIGHT
        return area * (3 if central else 2)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A background and 2 to 4 groups of objects, the most salient first.

    Attributes:
        background: one of BACKGROUNDS.
        groups: sorted by falling salience; the first two are what captions speak of.
    """

    background: str
    groups: tuple[Group, ...]

    @property
    def relation(self) -> str:
        """Relation of the first group to the second; never None in a sampled scene."""
        return cast(str, relation(self.groups[0], self.groups[1]))

    @property
    def nearest(self) -> Group:
        """Group whose centre lies nearest to that of the first; of equals the more salient."""
        first, *others = self.groups
        return min(others, key=lambda group: squared_distance(first, group))

    @property
    def is_nearest_clear(self) -> bool:
        """Return whether of 3 groups or more the others are 1.5 times as far as the nearest."""
        first, *others = self.groups
        nearest, *rest = sorted(squared_distance(first, group) for group in others)
        return bool(rest) and 4 * rest[0] >= 9 * nearest


def around(*boxes: Box) -> Box:
    """Return the smallest box around others."""
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def _overlap(a: Box, b: Box) -> int:
    """Return the area in pixels that two boxes share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def squared_distance(a: Group, b: Group) -> int:
    """Return the squared distance of two groups' centres, in quarters of a square pixel."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.box, b.box
    return (ax1 + ax2 - bx1 - bx2) ** 2 + (ay1 + ay2 - by1 - by2) ** 2


def relation(a: Group, b: Group) -> str | None:
    """Return the relation of `a` to `b`, or None where a speaker would hesitate.

    Returns:
        "front" or "behind" where two objects overlap by at least 15% of the smaller one, objects
        behind are at least 60% visible and the lower edges differ by 6 pixels or more; "left",
        "right", "above" or "below" where the boxes are apart along that axis and their centres
        differ along it by at least 1.3 times as much as along the other; None otherwise.
    """
    if any(_overlap(p, q) for p in a.boxes for q in b.boxes):
        near, far = (a, b) if a.box[3] > b.box[3] else (b, a)  # the lower one is nearer
        covers = [[_overlap(p, q) for q in near.boxes] for p in far.boxes]
        smaller = min(_area(a.boxes[0]), _area(b.boxes[0]))
        clear = near.box[3] - far.box[3] >= 6 and 100 * max(map(max, covers)) >= 15 * smaller
        seen = 100 * max(map(sum, covers)) <= 40 * _area(far.boxes[0])
        return ("front" if near is a else "behind") if clear and seen else None
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.box, b.box
    dx, dy = ax1 + ax2 - bx1 - bx2, ay1 + ay2 - by1 - by2
    if 10 * abs(dx) >= 13 * abs(dy) and (ax2 <= bx1 or bx2 <= ax1):
        return "left" if dx < 0 else "right"
    if 10 * abs(dy) >= 13 * abs(dx) and (ay2 <= by1 or by2 <= ay1):
        return "above" if dy < 0 else "below"
    return None


def _offsets(draws: Draws, count: int, width: int, height: int) -> tuple[str, list]:
    """Draw an arrangement of `count` objects; return it and offsets of upper left corners."""
    options = ["single"] if count == 1 else ["row"]
    if count > 1 and count * (height + MARGIN) + 2 * MARGIN <= HEIGHT:
        options.append("stack")
    if count >= 3:
        options.append("cluster")
    arrangement = draws.pick(options)
    columns = {"stack": 1, "cluster": (count + 1) // 2}.get(arrangement, count)
    steps = (divmod(k, columns) for k in range(count))
    return arrangement, [(x * (width + GAP), y * (height + GAP)) for y, x in steps]


def _propose_group(draws: Draws, background: str, size: str, count: int) -> Group:
    """Draw a group at a random place, without regard to other groups."""
    shape = draws.pick(SHAPES)
    colour = draws.pick([c for c in COLOURS if c not in BACKGROUNDS[background]])
    pattern = draws.pick(PATTERNS, PATTERN_WEIGHTS)
    side = draws.between(*SIZES[size])
    slim_x, slim_y = SLIM.get(shape, (1, 1))
    width, height = side * slim_x // max(slim_x, slim_y), side * slim_y // max(slim_x, slim_y)
    arrangement, offsets = _offsets(draws, count, width, height)
    x = draws.between(MARGIN, WIDTH - MARGIN - width - max(x for x, _ in offsets))
    y = draws.between(MARGIN, HEIGHT - MARGIN - height - max(y for _, y in offsets))
    boxes = tuple((x + dx, y + dy, x + dx + width, y + dy + height) for dx, dy in offsets)
    return Group(shape, colour, size, pattern, arrangement, boxes)


def _propose_kinds(draws: Draws, num_groups: int) -> list[tuple[str, int]]:
    """Draw size and number of objects of each group, MIN_OBJECTS to MAX_OBJECTS in all."""
    while True:
        sizes = [draws.pick(list(SIZES)) for _ in range(num_groups)]
        limits = [MAX_COUNT[size] for size in sizes]
        counts = [1 + draws.pick(range(limit), COUNT_WEIGHTS[:limit]) for limit in limits]
        if MIN_OBJECTS <= sum(counts) <= MAX_OBJECTS:
            return list(zip(sizes, counts, strict=True))


def _apart(a: Group, b: Group) -> bool:
    """Return whether a strip of MARGIN pixels lies between the boxes of two groups."""
    x1, y1, x2, y2 = a.box
    return not _overlap((x1 - MARGIN, y1 - MARGIN, x2 + MARGIN, y2 + MARGIN), b.box)


def _acceptable(groups: Sequence[Group], depth: bool) -> bool:
    """Return whether a sorted list of groups makes a scene that one can describe without doubt.

    The first two stand in a clear relation, one of depth if `depth`; the others keep clear of
    everything. Salience falls by a third or more from the first to the second and from the second
    to the third; no two groups share both shape and colour.
    """
    salience = [group.salience for group in groups[:3]]
    if any(3 * low > 2 * high for high, low in itertools.pairwise(salience)):
        return False
    if len({(group.shape, group.colour) for group in groups}) < len(groups):
        return False
    main = relation(*groups[:2])
    if main is None or (main in ("front", "behind")) != depth:
        return False
    pairs = list(itertools.combinations(groups, 2))  # the first two come first
    return all(_apart(a, b) for a, b in pairs[depth:])


def sample_scene(seed: int, number: int, near: bool = False) -> Scene:
    """Draw scene `number` of the family `seed`.

    Proposals are drawn until one is `_acceptable`, so every sampled scene has a clear first and
    second group and a clear relation between them.

    With `near` there are 3 or 4 single objects, apart; one of them, each of the others with equal
    chances, is clearly the nearest to the first.
    """
    draws = Draws(seed, number)
    background = draws.pick(list(BACKGROUNDS))
    if near:
        num_groups = draws.between(3, 4)
        nearest, depth = draws.between(1, num_groups - 1), False
    else:
        num_groups = draws.pick((2, 3, 4), (4, 5, 1))
        depth = draws.chance(20)  # overlaps are rare among random places: a fifth must have one
    while True:
        if near:
            kinds = [(draws.pick(list(SIZES)), 1) for _ in range(num_groups)]
        else:
            kinds = _propose_kinds(draws, num_groups)
        groups = [_propose_group(draws, background, *kind) for kind in kinds]
        groups.sort(key=lambda group: group.salience, reverse=True)
        scene = Scene(background, tuple(groups))
        if near and not (scene.is_nearest_clear and scene.nearest is scene.groups[nearest]):
            continue
        if _acceptable(scene.groups, depth):
            return scene
