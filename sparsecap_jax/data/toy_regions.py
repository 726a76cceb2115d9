"""Regions of toy scenes, as a detector would find them: boxes, attributes and features.

There is a region of every object, one around every group of several, one around the first two
groups, one of the whole picture, and then more of the same until there are enough: groups found
again, crops of objects, boxes around two groups, bare ground, clutter.

Features are noisy attributes behind a fixed random projection. All numbers are integers until the
end, and small enough for float32 to hold every partial sum of the projection exactly, so the
features are the same to the bit whatever order they are added in.
"""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float

from sparsecap_jax.data import toy_world
from sparsecap_jax.data.toy_world import HEIGHT, WIDTH, Box, Draws, Group, Scene, around, relation

MIN_REGIONS, MAX_REGIONS = 10, 20
UNIT = 64  # an attribute at full strength

FEATURE_SIZE = 2048
GRID = 512  # features are multiples of 1/GRID, below 4: exact in float16
OFFSET = 96  # leaves about 60% of the features at 0
# All values that a feature can have: float16 `[2048]`.
_VALUES = (np.arange(2048, dtype=np.float32) / np.float32(GRID)).astype(np.float16)

BORDER = 24  # places nearer to the border than this look alike
PLACE_ERROR = 12  # pixels by which a place is misjudged at most; boxes are exact
_EXTENTS = (0, 16, 32, 64, 96, 144, 192)
_BLOCKS: dict[str, tuple[Any, ...]] = {
    "shape": toy_world.SHAPES,
    "colour": toy_world.COLOURS,
    "pattern": toy_world.PATTERNS,
    "size": tuple(toy_world.SIZES),
    "count": tuple(range(1, max(toy_world.MAX_COUNT.values()) + 1)),
    "arrangement": toy_world.ARRANGEMENTS,
    "background": tuple(toy_world.BACKGROUNDS),
    "x": (BORDER, WIDTH - BORDER),
    "y": (BORDER, HEIGHT - BORDER),
    "width": _EXTENTS,
    "height": _EXTENTS,
    "relation": toy_world.RELATIONS,
    "share": (0, 20, 40, 60, 100),  # of the salience of all groups, in percent
    "clutter": tuple(range(16)),  # light, texture, ... : means nothing
}
_NAMES = [(block, value) for block, values in _BLOCKS.items() for value in values]
CHANNELS = {name: channel for channel, name in enumerate(_NAMES)}  # (block, value) -> index

# Blocks whose content boxes show, too.
SPATIAL = ("x", "y", "width", "height", "relation")
# How clearly each block shows, in percent; more than others where captions need it most.
GAIN = {
    **{"shape": 150, "count": 120, "share": 150, "relation": 150},
    **{"x": 200, "y": 200, "width": 60, "height": 60},
}
# How strongly a region shows its content, in percent: (least, most).
OBJECT_STRENGTH = (85, 115)
CROP_STRENGTH = (30, 80)
MISJUDGED = 10  # percent of the scenes whose main relation is drawn at random; boxes are right
CONFUSION = 1  # percent of the shapes, colours and patterns that are seen as another


class _Attributes:
    """Attribute strengths of one region, integers in units of 1/UNIT."""

    def __init__(self, draws: Draws):
        self.values = np.zeros(len(CHANNELS), np.int32)
        self._draws = draws

    def add(self, block: str, value: str | int, percent: int) -> None:
        """Show one value of a block at `percent` of full strength."""
        self.values[CHANNELS[block, value]] += UNIT * percent * GAIN.get(block, 100) // 10_000

    def ramp(self, block: str, position: int) -> None:
        """Show a length or share as weights of the two values of a block that it lies between."""
        knots = _BLOCKS[block]
        position = min(max(position, knots[0]), knots[-1])
        upper = next(k for k in range(1, len(knots)) if position <= knots[k])
        share = 100 * (position - knots[upper - 1]) // (knots[upper] - knots[upper - 1])
        self.add(block, knots[upper], share)
        self.add(block, knots[upper - 1], 100 - share)

    def finish(self, scene: Scene, box: Box, low: int, high: int) -> "Region":
        """Show the background with a strength in [low, high], and about where the box lies."""
        self.add("background", scene.background, self._draws.between(low, high))
        return self.place(box)

    def place(self, box: Box) -> "Region":
        """Show about where a box lies and how large it is; return the region."""
        x1, y1, x2, y2 = box
        for block, low, high in (("x", x1, x2), ("y", y1, y2)):
            self.ramp(block, (low + high) // 2 + self._draws.between(-PLACE_ERROR, PLACE_ERROR))
        self.ramp("width", x2 - x1)
        self.ramp("height", y2 - y1)
        return box, self

    def look(self, group: Group, percent: int, **values: str | int) -> None:
        """Show shape, colour and pattern of a group, each sometimes mistaken, and other values."""
        for block in ("shape", "colour", "pattern"):
            value = getattr(group, block)
            if self._draws.chance(CONFUSION):
                value = self._draws.pick(_BLOCKS[block])
            self.add(block, value, percent)
        for block, value in values.items():
            self.add(block, value, percent)


Region = tuple[Box, _Attributes]


class _Detector:
    """A detector's view of one scene."""

    def __init__(self, scene: Scene, draws: Draws):
        self.scene, self.draws = scene, draws
        # The apparent relation of the first group to the second.
        misjudged = draws.chance(MISJUDGED)
        self.apparent = draws.pick(toy_world.RELATIONS) if misjudged else scene.relation
        inverse, (a, b) = toy_world.INVERSE[self.apparent], scene.groups[:2]
        self.relations = {(a, b): self.apparent, (b, a): inverse}

    def relate(self, attributes: _Attributes, a: Group, b: Group, percent: int) -> None:
        """Show the apparent relation of `a` to `b`, where it is clear."""
        apparent = self.relations.get((a, b)) or relation(a, b)
        if apparent is not None:
            attributes.add("relation", apparent, percent)

    def share(self, *groups: Group) -> int:
        """Return the part of the salience of all groups that some of them have, in percent."""
        total = sum(group.salience for group in self.scene.groups)
        return 100 * sum(group.salience for group in groups) // total

    def thing(self, group: Group, boxes: tuple[Box, ...], box: Box) -> Region:
        """Find a whole object, or a whole group where `boxes` are several."""
        attributes, percent = _Attributes(self.draws), self.draws.between(*OBJECT_STRENGTH)
        arrangement = group.arrangement if len(boxes) > 1 else "single"
        attributes.look(group, percent, size=group.size, count=len(boxes), arrangement=arrangement)
        attributes.ramp("share", self.share(group) * len(boxes) // group.count)
        other = self.scene.groups[group is self.scene.groups[0]]  # the most salient of the others
        self.relate(attributes, group, other, percent)
        return attributes.finish(self.scene, box, 15, 40)

    def whole(self) -> Region:
        """Find the whole picture: above all its background."""
        attributes, box = _Attributes(self.draws), (0, 0, WIDTH, HEIGHT)
        attributes.add("background", self.scene.background, self.draws.between(90, 120))
        for group in self.scene.groups:
            attributes.look(group, 20)
        attributes.add("relation", self.apparent, 100)
        return attributes.place(box)

    def pick_salient(self) -> Group:
        """Pick a group, the more salient the more often, as detectors find it."""
        return self.draws.pick(self.scene.groups, [group.salience for group in self.scene.groups])

    def again(self) -> Region:
        """Find a group once more, in a box that does not fit quite as well."""
        group = self.pick_salient()
        x1, y1, x2, y2 = group.box
        dx, dy = (x2 - x1) // 10, (y2 - y1) // 10
        left, top = (max(v + self.draws.between(-d, d), 0) for v, d in ((x1, dx), (y1, dy)))
        right = min(x2 + self.draws.between(-dx, dx), WIDTH)
        bottom = min(y2 + self.draws.between(-dy, dy), HEIGHT)
        return self.thing(group, group.boxes, (left, top, right, bottom))

    def crop(self) -> Region:
        """Find part of one object, 40% to 75% of its sides: it shows less, the background more."""
        draws, group, attributes = self.draws, self.pick_salient(), _Attributes(self.draws)
        x1, y1, x2, y2 = draws.pick(group.boxes)
        width = (x2 - x1) * draws.between(40, 75) // 100
        height = (y2 - y1) * draws.between(40, 75) // 100
        x, y = draws.between(x1, x2 - width), draws.between(y1, y2 - height)
        percent = draws.between(*CROP_STRENGTH)
        attributes.look(group, percent, count=1, arrangement="single")
        attributes.add("size", draws.pick(_BLOCKS["size"]), percent)
        attributes.ramp("share", self.share(group) * percent // (100 * group.count))
        return attributes.finish(self.scene, (x, y, x + width, y + height), 15, 70)

    def pair(self, first: Group, second: Group) -> Region:
        """Find a box around two groups: half of either, and the relation of the first."""
        attributes, share = _Attributes(self.draws), self.draws.between(25, 75)
        for group, percent in ((first, share), (second, 100 - share)):
            attributes.look(group, percent, size=group.size, count=group.count)
        self.relate(attributes, first, second, 100)
        attributes.ramp("share", self.share(first, second))
        return attributes.finish(self.scene, around(first.box, second.box), 15, 60)

    def mixture(self) -> Region:
        """Find a box around any two groups, the more salient counting as the first."""
        groups = self.scene.groups
        first = self.draws.below(len(groups) - 1)
        return self.pair(groups[first], groups[self.draws.between(first + 1, len(groups) - 1)])

    def random_box(self) -> Box:
        """Draw a box anywhere."""
        width, height = self.draws.between(16, 96), self.draws.between(16, 80)
        x, y = self.draws.below(WIDTH - width), self.draws.below(HEIGHT - height)
        return x, y, x + width, y + height

    def ground(self) -> Region:
        """Find a patch of the picture in which the background dominates."""
        return _Attributes(self.draws).finish(self.scene, self.random_box(), 60, 110)

    def clutter(self) -> Region:
        """Find nothing in particular: a false alarm."""
        attributes, box = _Attributes(self.draws), self.random_box()
        for block in ("shape", "colour", "pattern", "size", "count"):
            attributes.add(block, self.draws.pick(_BLOCKS[block]), self.draws.between(0, 60))
        attributes.ramp("share", self.draws.below(40))
        return attributes.finish(self.scene, box, 15, 60)


def list_regions(scene: Scene, draws: Draws) -> list[Region]:
    """List MIN_REGIONS to MAX_REGIONS regions, (box in pixels, attributes), in random order."""
    detector = _Detector(scene, draws)
    regions = [detector.whole(), detector.pair(*scene.groups[:2])]
    for group in scene.groups:
        regions += [detector.thing(group, (box,), box) for box in group.boxes]
        if group.count > 1:
            regions.append(detector.thing(group, group.boxes, group.box))
    total = max(draws.between(MIN_REGIONS, MAX_REGIONS), len(regions) + 1)
    kinds = detector.again, detector.crop, detector.mixture, detector.ground, detector.clutter
    regions += [draws.pick(kinds, (4, 3, 1, 2, 1))() for _ in range(total - len(regions))]
    for _, attributes in regions:
        attributes.add("clutter", draws.pick(_BLOCKS["clutter"]), draws.between(20, 100))
    for last in range(len(regions) - 1, 0, -1):  # Fisher-Yates
        other = draws.below(last + 1)
        regions[last], regions[other] = regions[other], regions[last]
    return regions


@functools.lru_cache(maxsize=1)
def _projection() -> np.ndarray:
    """Return the projection of all scenes: float32 `[channels, FEATURE_SIZE]`, -3 to 3 by 1."""
    noise = Draws(2048, 0, purpose=3).triangular(len(CHANNELS), FEATURE_SIZE)
    return ((noise + 36) // 73).astype(np.float32)


def scene_features(
    scene: Scene, draws: Draws, boxes_only: bool = False
) -> tuple[Float[np.ndarray, "R 2048"], Float[np.ndarray, "R 4"]]:
    """Compute the features and boxes that a detector would find in a scene.

    Features are `relu(attributes @ projection + noise)` on a grid of 1/GRID. With `boxes_only` they
    leave out places, sizes and relations, which boxes alone show then.

    Returns:
        Features float16 `[R, 2048]`, 0 or more, and boxes float32 `[R, 4]`, corners x1, y1, x2, y2
        divided by picture width and height; R from 10 to 20.
    """
    regions = list_regions(scene, draws)
    boxes = np.array([box for box, _ in regions], np.float32)
    boxes /= np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)
    attributes = np.stack([attributes.values for _, attributes in regions])
    if boxes_only:
        attributes[:, [channel for (block, _), channel in CHANNELS.items() if block in SPATIAL]] = 0
    attributes += draws.triangular(*attributes.shape) // 8  # standard deviation 0.2 UNIT
    # Whole numbers: |attributes| < 256, |projection| <= 3, fewer than 128 channels: below 2 ** 17.
    # einsum: a BLAS call for so little work loses more to its threads than it gains.
    signal = np.einsum("rc,cd->rd", attributes.astype(np.float32), _projection())
    raw = signal.astype(np.int32) + draws.triangular(*signal.shape) - OFFSET
    return _VALUES.take(raw.clip(0, 2047)), boxes
