"""Pictures of toy scenes: patterned objects on textured backgrounds, drawn with Pillow.

Objects are sprites: tables of parts in unit coordinates, drawn three times too large and reduced,
which smooths their edges. Pictures show exactly what the scene says. Pixel values may differ
slightly between Pillow versions, so no figure is computed from them.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

from PIL import Image, ImageChops, ImageDraw

from sparsecap_jax.data.toy_world import HEIGHT, WIDTH, Draws, Scene

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
    """Return `count` points around the centre of the unit square, at radii taken in turn."""
    points = []
    for k in range(count):
        angle, radius = start + 2 * math.pi * k / count, radii[k % len(radii)]
        points.append((0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)))
    return points


def _fill_square(points: list) -> list[tuple[float, float]]:
    """Stretch points so that they touch all four sides of the unit square."""
    xs, ys = zip(*points, strict=True)
    spans = (max(xs) - min(xs), max(ys) - min(ys))
    return [((x - min(xs)) / spans[0], (y - min(ys)) / spans[1]) for x, y in points]


_ANGLES = [2 * math.pi * k / 60 for k in range(60)]
_HEART_Y = [
    -13 * math.cos(t) + 5 * math.cos(2 * t) + 2 * math.cos(3 * t) + math.cos(4 * t) for t in _ANGLES
]
_HEART = _fill_square([(16 * math.sin(t) ** 3, y) for t, y in zip(_ANGLES, _HEART_Y, strict=True)])
_PETALS = [(x - 0.19, y - 0.19, x + 0.19, y + 0.19) for x, y in _turn(6, (0.31,), 0.0)]
_PETALS = [(max(a, 0), max(b, 0), min(c, 1), min(d, 1)) for a, b, c, d in _PETALS]

# shape -> parts (kind, coordinates, brightness); brightness None cuts a hole, a "glow" is an
# ellipse without outline.
PARTS: dict[str, list[tuple[str, Any, float | None]]] = {
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
    """Make a colour brighter (towards white) or darker."""
    if brightness > 1:
        return tuple(round(c + (255 - c) * (brightness - 1)) for c in colour)
    return tuple(round(c * brightness) for c in colour)


def _pattern_mask(pattern: str, width: int, height: int) -> Image.Image:
    """Return the mask of the second colour of a pattern: an L picture, 0 to 255."""
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


@functools.lru_cache(maxsize=512)
def sprite(shape: str, colour: str, pattern: str, width: int, height: int) -> Image.Image:
    """Draw one object on a transparent ground, RGBA, `width` x `height` pixels, which it fills."""
    w, h = width * SCALE, height * SCALE
    base = RGB[colour]
    line = _shade(base, 0.45) if sum(base) > 150 else (104, 104, 116)
    # Stripes, spots and so on are lighter or darker, of the same hue.
    second = _shade(base, 1.65 if sum(base) < 560 else 0.62)
    second = (255, 255, 255) if pattern == "shiny" else second
    where_second = _pattern_mask(pattern, w, h)
    paint, mask = Image.new("RGB", (w, h), base), Image.new("L", (w, h))
    on_paint, on_mask = ImageDraw.Draw(paint), ImageDraw.Draw(mask)
    for kind, where, brightness in PARTS[shape]:
        corners = where if kind == "polygon" else [where[:2], where[2:]]
        points = [(round(x * (w - 1)), round(y * (h - 1))) for x, y in corners]
        draw = getattr(ImageDraw.ImageDraw, "ellipse" if kind == "glow" else kind)
        draw(on_mask, points, fill=0 if brightness is None else 255)
        if brightness is not None:
            draw(on_paint, points, fill=_shade(base, brightness))
            if pattern != "plain" and brightness > DARK:
                part = Image.new("L", (w, h))
                draw(ImageDraw.Draw(part), points, fill=255)
                paint.paste(second, mask=ImageChops.multiply(part, where_second))
        if kind != "glow":
            draw(on_paint, points, outline=line, width=SCALE)
    paint.putalpha(mask)
    return paint.reduce(SCALE)


# Textures are larger than pictures, to be cropped anywhere.
_WIDE, _HIGH = WIDTH + 64, HEIGHT + 64
_GROUND = {
    "grass": (110, 170, 80),
    "table": (184, 140, 92),
    "sand": (228, 206, 154),
    "snow": (238, 243, 249),
    "water": (88, 150, 202),
    "sky": (158, 206, 242),
    "night": (26, 30, 66),
    "wall": (186, 104, 84),
    "carpet": (170, 138, 192),
    "road": (124, 126, 130),
    "tiles": (232, 236, 236),
}
# Background, kind of mark, places (so many random ones, or 0 and a grid: top, distance of rows and
# columns, shift of odd rows), style, and outlines relative to a place; a range in them is drawn.
_MARKS: list[tuple[Any, ...]] = [
    ("grass", "line", (260,), [(92, 150, 66)], (0, 0, (-2, 2), -5)),
    ("grass", "line", (260,), [(128, 186, 92)], (0, 0, (-2, 2), -5)),
    ("table", "line", (0, 0, 26, _WIDE, 0), [(150, 108, 66), 2], (0, 0, _WIDE, 0)),
    ("table", "line", (90,), [(198, 156, 108)], (0, 0, (12, 40), 0)),
    ("sand", "point", (420,), [(196, 170, 116)], (0, 0)),
    ("sand", "arc", (26,), [200, 340, (212, 187, 134)], (0, 0, 26, 9)),
    ("snow", "ellipse", (22,), [(222, 232, 244)], (0, 0, 44, 12)),
    ("snow", "point", (160,), [(190, 208, 230)], (0, 0)),
    ("water", "arc", (70,), [190, 350, (132, 184, 226), 2], (0, 0, 20, 8)),
    ("water", "arc", (70,), [190, 350, (58, 118, 178), 2], (0, 0, 20, 8)),
    ("sky", "ellipse", (8,), [(236, 244, 252)], (0, 6, 32, 22), (10, 0, 54, 22), (24, 5, 60, 23)),
    ("night", "point", (110,), [(210, 214, 240)], (0, 0)),
    ("night", "ellipse", (16,), [(255, 250, 214)], (0, 0, 1, 1)),
    ("wall", "line", (0, 0, 14, 32, 16), [(222, 204, 190), 2], (0, 0, 0, 14), (-16, 0, 32, 0)),
    ("carpet", "line", (0, 0, 24, 16, 0), [(196, 170, 214), 2], (0, 0, 8, 8, 16, 0)),
    ("carpet", "line", (0, 0, 24, 16, 0), [(142, 108, 168), 1], (0, 8, 8, 16, 16, 8)),
    ("road", "point", (420,), [(96, 98, 102)], (0, 0)),
    ("road", "rectangle", (0, 40, 72, 36, 0), [(226, 226, 214)], (0, 0, 18, 4)),
    ("tiles", "rectangle", (0, 0, 28, 56, 28), [(196, 208, 214)], (0, 0, 27, 27)),
]


def _places(draws: Draws, count: int, *grid: int) -> Iterator[tuple[int, int]]:
    for _ in range(count):
        yield draws.below(_WIDE), draws.below(_HIGH)
    if grid:
        top, rows, columns, shift = grid
        for row, y in enumerate(range(top, _HIGH, rows)):
            yield from ((x, y) for x in range(row % 2 * shift, _WIDE, columns))


@functools.lru_cache(maxsize=len(_GROUND))
def _texture(background: str) -> Image.Image:
    texture = Image.new("RGB", (_WIDE, _HIGH), _GROUND[background])
    draw, draws = ImageDraw.Draw(texture), Draws(0, list(_GROUND).index(background), purpose=4)
    for _, kind, where, style, *outlines in (row for row in _MARKS if row[0] == background):
        for place in _places(draws, *where):
            for outline in outlines:
                offsets = [k if isinstance(k, int) else draws.between(*k) for k in outline]
                points = [place[axis % 2] + offset for axis, offset in enumerate(offsets)]
                getattr(draw, kind)(points, *style)
    return texture


def draw_scene(scene: Scene, number: int = 0) -> Image.Image:
    """Draw a scene as RGB, WIDTH x HEIGHT; `number` chooses the part of the texture that shows."""
    x, y = number * 37 % 64, number * 23 % 64
    picture = _texture(scene.background).crop((x, y, x + WIDTH, y + HEIGHT))
    shadow = scene.background not in ("sky", "night", "wall")
    for group in sorted(scene.groups, key=lambda group: group.box[3]):  # the lower, the nearer
        for x1, y1, x2, y2 in group.boxes:
            width, height = x2 - x1, y2 - y1
            if shadow:
                foot = Image.new("L", (width, max(height // 5, 4)))
                ImageDraw.Draw(foot).ellipse((0, 0, width - 1, foot.height - 1), 70)
                picture.paste((0, 0, 0), (x1 + 2, y2 - foot.height // 2), foot)
            drawn = sprite(group.shape, group.colour, group.pattern, width, height)
            picture.paste(drawn, (x1, y1), drawn)
    return picture
