"""Regions of toy scenes, as a detector would find them: boxes and attributes.

There is a region of every object, one around every group of several, one around the first two
groups, one of the whole picture, and then more of the same until there are enough: groups found
again, crops of objects, boxes around two groups, bare ground, clutter.
"""

import dataclasses

import numpy as np

from sparsecap_jax.data.toy_world import (
    ARRANGEMENTS,
    BACKGROUNDS,
    COLOURS,
    HEIGHT,
    INVERSE,
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

MIN_REGIONS, MAX_REGIONS = 10, 20
UNIT = 64  # an attribute at full strength

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

# Blocks that tell what boxes tell, too.
SPATIAL = ("x", "y", "width", "height", "relation")
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
MISJUDGED = 10  # percent of the scenes whose main relation is told at random; boxes are right
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

    def relate(self, told: str | None, percent: int) -> None:
        """Show how one group stands to another, where that is clear."""
        if told is not None:
            self.add("relation", told, percent)

    def clutter(self, draws: Draws) -> None:
        """Show something that means nothing."""
        self.add("clutter", draws.pick(_BLOCKS["clutter"]), draws.between(20, 100))


Region = tuple[Box, _Attributes]


@dataclasses.dataclass(frozen=True)
class _View:
    """A scene as the detector sees it.

    Attributes:
        scene: what there is.
        draws: source of all chance.
        told: how the first group seems to stand to the second.
    """

    scene: Scene
    draws: Draws
    told: str

    def relation(self, a: Group, b: Group) -> str | None:
        """How `a` seems to stand to `b`."""
        first, second = self.scene.groups[:2]
        if (a, b) == (first, second):
            return self.told
        if (a, b) == (second, first):
            return INVERSE[self.told]
        return relation(a, b)


def _share(scene: Scene, *groups: Group) -> int:
    """What part of the salience of all groups some of them have, in percent."""
    total = sum(group.salience for group in scene.groups)
    return 100 * sum(group.salience for group in groups) // total


def _thing(view: _View, group: Group, boxes: tuple[Box, ...], box: Box) -> Region:
    """A whole object, or a whole group where `boxes` are several."""
    attributes, percent = _Attributes(), view.draws.between(*OBJECT_STRENGTH)
    attributes.look(view.draws, group, percent)
    attributes.add("size", group.size, percent)
    attributes.add("count", len(boxes), percent)
    attributes.add("arrangement", group.arrangement if len(boxes) > 1 else "single", percent)
    attributes.ramp("share", SHARE_KNOTS, _share(view.scene, group) * len(boxes) // group.count)
    other = view.scene.groups[group is view.scene.groups[0]]  # the most salient of the others
    attributes.relate(view.relation(group, other), percent)
    attributes.add("background", view.scene.background, view.draws.between(15, 40))
    attributes.geometry(view.draws, box)
    return box, attributes


def _whole(view: _View) -> Region:
    """The whole picture: above all its background."""
    attributes, box = _Attributes(), (0, 0, WIDTH, HEIGHT)
    attributes.add("background", view.scene.background, view.draws.between(90, 120))
    for group in view.scene.groups:
        attributes.look(view.draws, group, 20)
    attributes.relate(view.told, 100)
    attributes.geometry(view.draws, box)
    return box, attributes


def _pick_salient(view: _View) -> Group:
    """A group, the more salient the more often, as detectors find it."""
    return view.draws.pick(view.scene.groups, [group.salience for group in view.scene.groups])


def _again(view: _View) -> Region:
    """A group found once more, in a box that does not fit quite as well."""
    group = _pick_salient(view)
    x1, y1, x2, y2 = group.box
    slack_x, slack_y = (x2 - x1) // 10, (y2 - y1) // 10
    box = (
        max(x1 + view.draws.between(-slack_x, slack_x), 0),
        max(y1 + view.draws.between(-slack_y, slack_y), 0),
        min(x2 + view.draws.between(-slack_x, slack_x), WIDTH),
        min(y2 + view.draws.between(-slack_y, slack_y), HEIGHT),
    )
    return _thing(view, group, group.boxes, box)


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


def _crop(view: _View) -> Region:
    """Part of one object: what it is shows less, what lies behind it more."""
    group, attributes = _pick_salient(view), _Attributes()
    box, percent = (
        _crop_box(view.draws, view.draws.pick(group.boxes)),
        view.draws.between(*CROP_STRENGTH),
    )
    attributes.look(view.draws, group, percent)
    attributes.add("size", view.draws.pick(_BLOCKS["size"]), percent)
    attributes.add("count", 1, percent)
    attributes.add("arrangement", "single", percent)
    attributes.ramp(
        "share", SHARE_KNOTS, _share(view.scene, group) * percent // (100 * group.count)
    )
    attributes.add("background", view.scene.background, view.draws.between(15, 70))
    attributes.geometry(view.draws, box)
    return box, attributes


def _pair(view: _View, first: Group, second: Group) -> Region:
    """A box around two groups: half of either, and how the first stands to the second."""
    attributes, share = _Attributes(), view.draws.between(25, 75)
    for group, percent in ((first, share), (second, 100 - share)):
        attributes.look(view.draws, group, percent)
        attributes.add("size", group.size, percent)
        attributes.add("count", group.count, percent)
    attributes.relate(view.relation(first, second), 100)
    x1, y1, x2, y2 = zip(first.box, second.box, strict=True)
    box = min(x1), min(y1), max(x2), max(y2)
    attributes.add("background", view.scene.background, view.draws.between(15, 60))
    attributes.ramp("share", SHARE_KNOTS, _share(view.scene, first, second))
    attributes.geometry(view.draws, box)
    return box, attributes


def _mixture(view: _View) -> Region:
    """A box around any two groups, the more salient counting as the first."""
    first = view.draws.below(len(view.scene.groups) - 1)
    second = view.draws.between(first + 1, len(view.scene.groups) - 1)
    return _pair(view, view.scene.groups[first], view.scene.groups[second])


def _ground(view: _View) -> Region:
    """A patch of the picture in which the background dominates."""
    attributes, box = _Attributes(), _random_box(view.draws)
    attributes.add("background", view.scene.background, view.draws.between(60, 110))
    attributes.geometry(view.draws, box)
    return box, attributes


def _clutter(view: _View) -> Region:
    """Nothing in particular: a detector's false alarm."""
    attributes, box = _Attributes(), _random_box(view.draws)
    for block in ("shape", "colour", "pattern", "size", "count"):
        attributes.add(block, view.draws.pick(_BLOCKS[block]), view.draws.between(0, 60))
    attributes.ramp("share", SHARE_KNOTS, view.draws.below(40))
    attributes.add("background", view.scene.background, view.draws.between(15, 60))
    attributes.geometry(view.draws, box)
    return box, attributes


def list_regions(scene: Scene, draws: Draws) -> list[Region]:
    """List what a detector would find, in random order.

    Args:
        scene: the scene.
        draws: source of all chance.

    Returns:
        MIN_REGIONS to MAX_REGIONS regions: (box in pixels, attributes) pairs.
    """
    told = draws.pick(RELATIONS) if draws.chance(MISJUDGED) else scene.relation
    view = _View(scene, draws, told)
    regions = [_whole(view), _pair(view, *scene.groups[:2])]
    for group in scene.groups:
        regions += [_thing(view, group, (box,), box) for box in group.boxes]
        if group.count > 1:
            regions.append(_thing(view, group, group.boxes, group.box))
    total = max(draws.between(MIN_REGIONS, MAX_REGIONS), len(regions) + 1)
    kinds, weights = (_again, _crop, _mixture, _ground, _clutter), (4, 3, 1, 2, 1)
    regions += [draws.pick(kinds, weights)(view) for _ in range(total - len(regions))]
    for _, attributes in regions:
        attributes.clutter(draws)
    for last in range(len(regions) - 1, 0, -1):  # Fisher-Yates
        other = draws.below(last + 1)
        regions[last], regions[other] = regions[other], regions[last]
    return regions
