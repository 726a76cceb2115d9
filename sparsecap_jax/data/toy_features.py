"""Region features of toy scenes: noisy attributes behind a fixed random projection.

Stands in for a detector: a region of every object, one around every group, one of the whole
picture, and distractors (crops, mixtures, bare ground, clutter) that look much alike.

All numbers are integers until the end, and small enough for float32 to hold every partial sum of
the projection exactly, so the features are the same to the bit whatever order they are added in.
"""

import functools

import numpy as np
from jaxtyping import Float

from sparsecap_jax.data.toy_world import (
    ARRANGEMENTS,
    BACKGROUNDS,
    COLOURS,
    HEIGHT,
    MAX_COUNT,
    PATTERNS,
    RELATIONS,
    SHAPES,
    SIZES,
    WIDTH,
    Box,
    Draws,
    Group,
    Scene,
    relation,
)

FEATURE_SIZE = 2048
MIN_REGIONS, MAX_REGIONS = 10, 20
UNIT = 64  # an attribute at full strength
GRID = 512  # features are multiples of 1/GRID, below 2048/GRID: exact in float16
OFFSET = 96  # leaves about 60% of the features at 0
PROJECTION_KEY = (2048, 0, 3)  # one projection for all scenes of all seeds

BORDER = 24  # places nearer to the border than this look alike
X_KNOTS, Y_KNOTS = (BORDER, WIDTH - BORDER), (BORDER, HEIGHT - BORDER)
PLACE_ERROR = 12  # pixels by which a place is misjudged at most; boxes are exact
EXTENT_KNOTS = (0, 16, 32, 64, 96, 144, 192)
SHARE_KNOTS = (0, 20, 40, 60, 100)
_BLOCKS = {
    "shape": SHAPES,
    "colour": COLOURS,
    "pattern": PATTERNS,
    "size": tuple(SIZES),
    "count": tuple(range(1, max(MAX_COUNT.values()) + 1)),
    "arrangement": ARRANGEMENTS,
    "background": tuple(BACKGROUNDS),
    "x": X_KNOTS,
    "y": Y_KNOTS,
    "width": EXTENT_KNOTS,
    "height": EXTENT_KNOTS,
    "relation": RELATIONS,
    "share": SHARE_KNOTS,  # of the salience of all groups, in percent
    "clutter": tuple(range(16)),  # light, texture, ... : means nothing
}
_NAMES = [(block, value) for block, values in _BLOCKS.items() for value in values]
CHANNELS = {name: channel for channel, name in enumerate(_NAMES)}  # (block, value) -> index

# How clearly each block shows, in percent; more than others where captions need it most.
GAIN = {
    "shape": 150,
    "count": 120,
    "x": 200,
    "y": 200,
    "width": 60,
    "height": 60,
    "share": 150,
    "relation": 150,
}
# How strongly a region shows what, in percent: (least, most).
OBJECT_STRENGTH = (85, 115)
CROP_STRENGTH = (30, 80)
MISJUDGED = 10  # percent of the relations in a box around two groups that are drawn at random
CONFUSION = 1  # percent of the shapes, colours and patterns that are seen as another


class _Attributes:
    """Attribute strengths of one region, integers in units of 1/UNIT."""

    def __init__(self):
        self.values = np.zeros(len(CHANNELS), np.int32)

    def add(self, block: str, value: str | int, percent: int) -> None:
        """Show one value of a block at `percent` of full strength."""
        self.values[CHANNELS[block, value]] += UNIT * percent * GAIN.get(block, 100) // 10_000

    def ramp(self, block: str, knots: tuple[int, ...], position: int) -> None:
        """Show a length or share as weights of the two knots that it lies between."""
        position = min(max(position, knots[0]), knots[-1])
        upper = next(k for k in range(1, len(knots)) if position <= knots[k])
        span = knots[upper] - knots[upper - 1]
        share = 100 * (position - knots[upper - 1]) // span
        self.add(block, knots[upper], share)
        self.add(block, knots[upper - 1], 100 - share)

    def geometry(self, draws: Draws, box: Box) -> None:
        """Show about where a box lies and how large it is."""
        x1, y1, x2, y2 = box
        self.ramp("x", X_KNOTS, (x1 + x2) // 2 + draws.between(-PLACE_ERROR, PLACE_ERROR))
        self.ramp("y", Y_KNOTS, (y1 + y2) // 2 + draws.between(-PLACE_ERROR, PLACE_ERROR))
        self.ramp("width", EXTENT_KNOTS, x2 - x1)
        self.ramp("height", EXTENT_KNOTS, y2 - y1)

    def look(self, draws: Draws, group: Group, percent: int) -> None:
        """Show shape, colour and pattern of a group, each now and then mistaken."""
        for block in ("shape", "colour", "pattern"):
            value = getattr(group, block)
            if draws.chance(CONFUSION):
                value = draws.pick(_BLOCKS[block])
            self.add(block, value, percent)

    def relate(self, draws, first, second, percent):
        seen = relation(first, second)
        if draws.chance(MISJUDGED):
            seen = draws.pick(RELATIONS)
        if seen is not None:
            self.add("relation", seen, percent)

    def clutter(self, draws: Draws) -> None:
        """Show something that means nothing."""
        self.add("clutter", draws.pick(_BLOCKS["clutter"]), draws.between(20, 100))


Region = tuple[Box, _Attributes]


def _share(scene: Scene, *groups: Group) -> int:
    """What part of the salience of all groups some of them have, in percent."""
    total = sum(group.salience for group in scene.groups)
    return 100 * sum(group.salience for group in groups) // total


def _thing(draws: Draws, scene: Scene, group: Group, boxes: tuple[Box, ...], box: Box) -> Region:
    """A whole object, or a whole group where `boxes` are several."""
    attributes, percent = _Attributes(), draws.between(*OBJECT_STRENGTH)
    attributes.look(draws, group, percent)
    attributes.add("size", group.size, percent)
    attributes.add("count", len(boxes), percent)
    attributes.add("arrangement", group.arrangement if len(boxes) > 1 else "single", percent)
    attributes.ramp("share", SHARE_KNOTS, _share(scene, group) * len(boxes) // group.count)
    attributes.relate(draws, group, scene.groups[1 if group is scene.groups[0] else 0], percent)
    attributes.add("background", scene.background, draws.between(15, 40))
    attributes.geometry(draws, box)
    return box, attributes


def _whole(draws: Draws, scene: Scene) -> Region:
    """The whole picture: above all its background."""
    attributes, box = _Attributes(), (0, 0, WIDTH, HEIGHT)
    attributes.add("background", scene.background, draws.between(90, 120))
    for group in scene.groups:
        attributes.look(draws, group, 20)
    attributes.relate(draws, *scene.groups[:2], 100)
    attributes.geometry(draws, box)
    return box, attributes


def _pick_salient(draws: Draws, scene: Scene) -> Group:
    """A group, the more salient the more often, as detectors find it."""
    return draws.pick(scene.groups, [group.salience for group in scene.groups])


def _again(draws: Draws, scene: Scene) -> Region:
    """A group found once more, in a box that does not fit quite as well."""
    group = _pick_salient(draws, scene)
    x1, y1, x2, y2 = group.box
    slack_x, slack_y = (x2 - x1) // 10, (y2 - y1) // 10
    box = (
        max(x1 + draws.between(-slack_x, slack_x), 0),
        max(y1 + draws.between(-slack_y, slack_y), 0),
        min(x2 + draws.between(-slack_x, slack_x), WIDTH),
        min(y2 + draws.between(-slack_y, slack_y), HEIGHT),
    )
    return _thing(draws, scene, group, group.boxes, box)


def _crop_box(draws: Draws, box: Box) -> Box:
    """40% to 75% of a box's width and height, somewhere within it."""
    x1, y1, x2, y2 = box
    width = (x2 - x1) * draws.between(40, 75) // 100
    height = (y2 - y1) * draws.between(40, 75) // 100
    x, y = draws.between(x1, x2 - width), draws.between(y1, y2 - height)
    return x, y, x + width, y + height


def _random_box(draws: Draws) -> Box:
    width, height = draws.between(16, 96), draws.between(16, 80)
    x, y = draws.below(WIDTH - width), draws.below(HEIGHT - height)
    return x, y, x + width, y + height


def _crop(draws: Draws, scene: Scene) -> Region:
    """Part of one object: what it is shows less, what lies behind it more."""
    group, attributes = _pick_salient(draws, scene), _Attributes()
    box, percent = _crop_box(draws, draws.pick(group.boxes)), draws.between(*CROP_STRENGTH)
    attributes.look(draws, group, percent)
    attributes.add("size", draws.pick(_BLOCKS["size"]), percent)
    attributes.add("count", 1, percent)
    attributes.add("arrangement", "single", percent)
    attributes.ramp("share", SHARE_KNOTS, _share(scene, group) * percent // (100 * group.count))
    attributes.add("background", scene.background, draws.between(15, 70))
    attributes.geometry(draws, box)
    return box, attributes


def _pair(draws: Draws, scene: Scene, first: Group, second: Group) -> Region:
    """A box around two groups: half of either, and with luck how the first stands to the second."""
    attributes, share = _Attributes(), draws.between(25, 75)
    for group, percent in ((first, share), (second, 100 - share)):
        attributes.look(draws, group, percent)
        attributes.add("size", group.size, percent)
        attributes.add("count", group.count, percent)
    attributes.relate(draws, first, second, 100)
    x1, y1, x2, y2 = zip(first.box, second.box, strict=True)
    box = min(x1), min(y1), max(x2), max(y2)
    attributes.add("background", scene.background, draws.between(15, 60))
    attributes.ramp("share", SHARE_KNOTS, _share(scene, first, second))
    attributes.geometry(draws, box)
    return box, attributes


def _mixture(draws: Draws, scene: Scene) -> Region:
    """A box around any two groups, the more salient counting as the first."""
    first = draws.below(len(scene.groups) - 1)
    second = draws.between(first + 1, len(scene.groups) - 1)
    return _pair(draws, scene, scene.groups[first], scene.groups[second])


def _ground(draws: Draws, scene: Scene) -> Region:
    """A patch of the picture in which the background dominates."""
    attributes, box = _Attributes(), _random_box(draws)
    attributes.add("background", scene.background, draws.between(60, 110))
    attributes.geometry(draws, box)
    return box, attributes


def _clutter(draws: Draws, scene: Scene) -> Region:
    """Nothing in particular: a detector's false alarm."""
    attributes, box = _Attributes(), _random_box(draws)
    for block in ("shape", "colour", "pattern", "size", "count"):
        attributes.add(block, draws.pick(_BLOCKS[block]), draws.between(0, 60))
    attributes.ramp("share", SHARE_KNOTS, draws.below(40))
    attributes.add("background", scene.background, draws.between(15, 60))
    attributes.geometry(draws, box)
    return box, attributes


def list_regions(scene: Scene, draws: Draws) -> list[Region]:
    """List what a detector would find, in random order: (box in pixels, attributes) pairs."""
    regions = [_whole(draws, scene), _pair(draws, scene, *scene.groups[:2])]
    for group in scene.groups:
        regions += [_thing(draws, scene, group, (box,), box) for box in group.boxes]
        if group.count > 1:
            regions.append(_thing(draws, scene, group, group.boxes, group.box))
    total = max(draws.between(MIN_REGIONS, MAX_REGIONS), len(regions) + 1)
    kinds, weights = (_again, _crop, _mixture, _ground, _clutter), (4, 3, 1, 2, 1)
    regions += [draws.pick(kinds, weights)(draws, scene) for _ in range(total - len(regions))]
    for _, attributes in regions:
        attributes.clutter(draws)
    for last in range(len(regions) - 1, 0, -1):  # Fisher-Yates
        other = draws.below(last + 1)
        regions[last], regions[other] = regions[other], regions[last]
    return regions


@functools.lru_cache(maxsize=1)
def _projection() -> np.ndarray:
    """The fixed projection: float32 `[channels, FEATURE_SIZE]` of whole numbers in [-3, 3]."""
    noise = Draws(*PROJECTION_KEY).triangular(len(CHANNELS), FEATURE_SIZE)
    return ((noise + 36) // 73).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _grid() -> np.ndarray:
    """All values that a feature can have: float16 `[2048]`, multiples of 1/GRID."""
    return (np.arange(2048, dtype=np.float32) / np.float32(GRID)).astype(np.float16)


def scene_features(
    scene: Scene, draws: Draws
) -> tuple[Float[np.ndarray, "R 2048"], Float[np.ndarray, "R 4"]]:
    """Compute what a detector would hand over for a scene.

    Features are `relu(attributes @ projection + noise)` on a grid of 1/GRID.

    Args:
        scene: the scene.
        draws: source of all noise and of the distractors.

    Returns:
        Features float16 `[R, 2048]`, 0 or more, and boxes float32 `[R, 4]`, corners x1, y1, x2, y2
        divided by picture width and height; R from MIN_REGIONS to MAX_REGIONS.
    """
    regions = list_regions(scene, draws)
    boxes = np.array([box for box, _ in regions], np.float32)
    boxes /= np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)
    attributes = np.stack([attributes.values for _, attributes in regions])
    attributes += draws.triangular(*attributes.shape) // 8  # standard deviation 0.2 UNIT
    # Whole numbers: |attributes| < 256, |projection| <= 3, fewer than 128 channels: below 2 ** 17.
    # einsum: a BLAS call for so little work loses more to its threads than it gains.
    signal = np.einsum("rc,cd->rd", attributes.astype(np.float32), _projection())
    raw = signal.astype(np.int32) + draws.triangular(*signal.shape) - OFFSET
    return _grid().take(raw.clip(0, 2047)), boxes
