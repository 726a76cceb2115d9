"""The objects of toy scenes as sprites, drawn with Pillow.

Shapes are tables of parts in unit coordinates, drawn three times too large and reduced, which
smooths their edges.
"""

import functools
import math
from collections.abc import Sequence

from PIL import Image, ImageChops, ImageDraw

SCALE = 3  # sprites are drawn this many times too large
DARK = 0.6  # parts no brighter than this (eyes, openings) carry no pattern

RGB = {
    "red": (216, 44, 48),
    "orange": (243, 139, 24),
    "yellow": (250, 216, 48),
    "green": (40, 158, 66),
    "blue": (38, 92, 218),
    "purple": (134, 66, 178),
    "pink": (250, 150, 196),
    "brown": (126, 78, 42),
    "black": (38, 38, 44),
    "white": (247, 247, 247),
    "gray": (150, 153, 160),
}


def _turn(count: int, radii: tuple, start: float) -> list[tuple[float, float]]:
    """`count` points around the centre of the unit square, at radii taken in turn."""
    angles = [start + 2 * math.pi * k / count for k in range(count)]
    return [
        (0.5 + radii[k % len(radii)] * math.cos(a), 0.5 + radii[k % len(radii)] * math.sin(a))
        for k, a in enumerate(angles)
    ]


def _fill_square(points: list) -> list[tuple[float, float]]:
    """Stretch points so that they touch all four sides of the unit square."""
    xs, ys = zip(*points, strict=True)
    spans = (max(xs) - min(xs), max(ys) - min(ys))
    return [((x - min(xs)) / spans[0], (y - min(ys)) / spans[1]) for x, y in points]


_HEART = _fill_square(
    [
        (
            16 * math.sin(t) ** 3,
            -13 * math.cos(t) + 5 * math.cos(2 * t) + 2 * math.cos(3 * t) + math.cos(4 * t),
        )
        for t in (2 * math.pi * k / 60 for k in range(60))
    ]
)
_PETALS = [(x - 0.19, y - 0.19, x + 0.19, y + 0.19) for x, y in _turn(6, (0.31,), 0.0)]
_PETALS = [(max(a, 0), max(b, 0), min(c, 1), min(d, 1)) for a, b, c, d in _PETALS]

# shape -> parts (kind, coordinates, brightness); brightness None cuts a hole, a "glow" is an
# ellipse without outline.
PARTS = {
    "cube": [
        ("polygon", [(0, 0.25), (0.25, 0), (1, 0), (0.75, 0.25)], 1.25),
        ("polygon", [(0.75, 0.25), (1, 0), (1, 0.75), (0.75, 1)], 0.65),
        ("rectangle", (0, 0.25, 0.75, 1), 1.0),
    ],
    "ball": [("ellipse", (0, 0, 1, 1), 0.78), ("glow", (0.03, 0.03, 0.86, 0.86), 1.0)],
    "cone": [
        ("ellipse", (0, 0.76, 1, 1), 0.8),
        ("polygon", [(0.5, 0), (1, 0.88), (0.75, 0.97), (0.5, 1), (0.25, 0.97), (0, 0.88)], 1.0),
    ],
    "star": [("polygon", _fill_square(_turn(10, (0.5, 0.21), -math.pi / 2)), 1.0)],
    "heart": [("polygon", _HEART, 1.0)],
    "ring": [("ellipse", (0, 0, 1, 1), 1.0), ("ellipse", (0.27, 0.27, 0.73, 0.73), None)],
    "moon": [("ellipse", (0, 0, 1.3, 1), 1.0), ("ellipse", (0.46, 0.05, 1.54, 0.95), None)],
    "flower": [
        *(("ellipse", petal, 1.0) for petal in _PETALS),
        ("ellipse", (0.32, 0.32, 0.68, 0.68), 0.55),
    ],
    "mug": [
        ("ellipse", (0.5, 0.25, 1, 0.82), 0.85),
        ("ellipse", (0.62, 0.38, 0.88, 0.69), None),
        ("ellipse", (0, 0.8, 0.74, 1), 1.0),
        ("rectangle", (0, 0.1, 0.74, 0.9), 1.0),
        ("ellipse", (0, 0, 0.74, 0.2), 0.5),
    ],
    "fish": [
        ("polygon", [(0.62, 0.5), (1, 0.05), (0.92, 0.5), (1, 0.95)], 0.8),
        ("ellipse", (0, 0, 0.78, 1), 1.0),
        ("ellipse", (0.13, 0.3, 0.25, 0.46), 0.1),
    ],
}


def _shade(colour: tuple, brightness: float) -> tuple[int, ...]:
    """A colour made brighter (towards white) or darker."""
    if brightness > 1:
        return tuple(round(c + (255 - c) * (brightness - 1)) for c in colour)
    return tuple(round(c * brightness) for c in colour)


def _pattern_mask(pattern: str, width: int, height: int) -> Image.Image:
    """Where the second colour of a pattern goes: an L picture, 0 to 255."""
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    step = max(5 * SCALE, min(width, height) // 5)
    if pattern == "striped":
        for x in range(-height, width, 2 * step):
            draw.line((x, height, x + height, 0), fill=255, width=round(step * 0.62))
    elif pattern == "spotted":
        r = round(step * 0.36)
        for row, y in enumerate(range(step // 2, height + step, step)):
            for x in range(step // 2 - (row % 2) * step // 2, width + step, step):
                draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    elif pattern == "checkered":
        for row, y in enumerate(range(0, height, step)):
            for x in range((row % 2) * step, width, 2 * step):
                draw.rectangle((x, y, x + step - 1, y + step - 1), fill=255)
    elif pattern == "shiny":
        draw.ellipse((width * 0.14, height * 0.12, width * 0.52, height * 0.46), fill=150)
        draw.ellipse((width * 0.2, height * 0.17, width * 0.4, height * 0.34), fill=255)
        draw.line((width * 0.55, height, width * 0.95, 0), fill=130, width=step // 2)
    return mask


def _second_colour(pattern: str, base: tuple) -> tuple[int, ...]:
    """The colour of stripes, spots and so on: clearly lighter or darker, of the same hue."""
    if pattern == "shiny":
        return (255, 255, 255)
    return _shade(base, 1.65) if sum(base) < 560 else _shade(base, 0.62)


def _corners(kind: str, where: Sequence, width: int, height: int) -> list[tuple[int, int]]:
    """Unit coordinates of a part -> pixels of a `width` x `height` sprite."""
    corners = where if kind == "polygon" else [where[:2], where[2:]]
    return [(round(x * (width - 1)), round(y * (height - 1))) for x, y in corners]


@functools.lru_cache(maxsize=512)
def sprite(shape: str, colour: str, pattern: str, width: int, height: int) -> Image.Image:
    """One object on a transparent ground.

    Args:
        shape: a key of PARTS.
        colour: a key of RGB.
        pattern: one of `toy_world.PATTERNS`.
        width: in pixels.
        height: in pixels.

    Returns:
        An RGBA picture, `width` x `height` pixels, that the object fills.
    """
    w, h = width * SCALE, height * SCALE
    base = RGB[colour]
    line = _shade(base, 0.45) if sum(base) > 150 else (104, 104, 116)
    second, where_second = _second_colour(pattern, base), _pattern_mask(pattern, w, h)
    paint, mask = Image.new("RGB", (w, h), base), Image.new("L", (w, h))
    on_paint, on_mask = ImageDraw.Draw(paint), ImageDraw.Draw(mask)
    for kind, where, brightness in PARTS[shape]:
        points, method = _corners(kind, where, w, h), kind.replace("glow", "ellipse")
        getattr(on_mask, method)(points, fill=0 if brightness is None else 255)
        if brightness is not None:
            getattr(on_paint, method)(points, fill=_shade(base, brightness))
            if pattern != "plain" and brightness > DARK:
                part = Image.new("L", (w, h))
                getattr(ImageDraw.Draw(part), method)(points, fill=255)
                paint.paste(second, mask=ImageChops.multiply(part, where_second))
        if kind != "glow":
            getattr(on_paint, method)(points, outline=line, width=SCALE)
    paint.putalpha(mask)
    return paint.reduce(SCALE)
