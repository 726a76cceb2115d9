"""Pictures of toy scenes: textured backgrounds with patterned objects, drawn with Pillow.

Pictures show exactly what the scene says. Pixel values may differ slightly between Pillow
versions, so no figure is computed from them.
"""

import functools

from PIL import Image, ImageDraw

from sparsecap_jax.data.toy_shapes import sprite
from sparsecap_jax.data.toy_world import HEIGHT, WIDTH, Draws, Group, Scene


def _scatter(draw: ImageDraw.ImageDraw, draws: Draws, count: int, mark) -> None:
    """Call `mark(x, y)` at `count` random places of the texture."""
    for _ in range(count):
        mark(draws.below(WIDTH + 64), draws.below(HEIGHT + 64))


def _grass(d: ImageDraw.ImageDraw, r: Draws) -> None:
    for colour in ((92, 150, 66), (128, 186, 92)):
        _scatter(d, r, 260, lambda x, y, c=colour: d.line((x, y, x + r.between(-2, 2), y - 5), c))


def _table(d: ImageDraw.ImageDraw, r: Draws) -> None:
    for y in range(0, HEIGHT + 64, 26):
        d.line((0, y, WIDTH + 64, y), (150, 108, 66), 2)
    _scatter(d, r, 90, lambda x, y: d.line((x, y, x + r.between(12, 40), y), (198, 156, 108)))


def _sand(d: ImageDraw.ImageDraw, r: Draws) -> None:
    _scatter(d, r, 420, lambda x, y: d.point((x, y), (196, 170, 116)))
    _scatter(d, r, 26, lambda x, y: d.arc((x, y, x + 26, y + 9), 200, 340, (212, 187, 134)))


def _snow(d: ImageDraw.ImageDraw, r: Draws) -> None:
    _scatter(d, r, 22, lambda x, y: d.ellipse((x, y, x + 44, y + 12), (222, 232, 244)))
    _scatter(d, r, 160, lambda x, y: d.point((x, y), (190, 208, 230)))


def _water(d: ImageDraw.ImageDraw, r: Draws) -> None:
    for colour in ((132, 184, 226), (58, 118, 178)):
        _scatter(d, r, 70, lambda x, y, c=colour: d.arc((x, y, x + 20, y + 8), 190, 350, c, 2))


def _sky(d: ImageDraw.ImageDraw, r: Draws) -> None:
    def cloud(x: int, y: int) -> None:
        for dx, dy, size in ((0, 6, 16), (10, 0, 22), (24, 5, 18)):
            d.ellipse((x + dx, y + dy, x + dx + size * 2, y + dy + size), (236, 244, 252))

    _scatter(d, r, 8, cloud)


def _night(d: ImageDraw.ImageDraw, r: Draws) -> None:
    _scatter(d, r, 110, lambda x, y: d.point((x, y), (210, 214, 240)))
    _scatter(d, r, 16, lambda x, y: d.ellipse((x, y, x + 1, y + 1), (255, 250, 214)))


def _wall(d: ImageDraw.ImageDraw, r: Draws) -> None:
    for row, y in enumerate(range(0, HEIGHT + 64, 14)):
        d.line((0, y, WIDTH + 64, y), (222, 204, 190), 2)
        for x in range((row % 2) * 16, WIDTH + 64, 32):
            d.line((x, y, x, y + 14), (222, 204, 190), 2)


def _carpet(d: ImageDraw.ImageDraw, r: Draws) -> None:
    for y in range(0, HEIGHT + 64, 24):
        zigzag = [(x, y + (x // 8 % 2) * 8) for x in range(0, WIDTH + 72, 8)]
        d.line(zigzag, (196, 170, 214), 2)
        d.line([(x, z + 8) for x, z in zigzag], (142, 108, 168), 1)


def _road(d: ImageDraw.ImageDraw, r: Draws) -> None:
    _scatter(d, r, 420, lambda x, y: d.point((x, y), (96, 98, 102)))
    for y in range(40, HEIGHT + 64, 72):
        for x in range(0, WIDTH + 64, 36):
            d.rectangle((x, y, x + 18, y + 4), (226, 226, 214))


def _tiles(d: ImageDraw.ImageDraw, r: Draws) -> None:
    for row, y in enumerate(range(0, HEIGHT + 64, 28)):
        for x in range((row % 2) * 28, WIDTH + 64, 56):
            d.rectangle((x, y, x + 27, y + 27), (196, 208, 214))


TEXTURES = {
    "grass": ((110, 170, 80), _grass),
    "table": ((184, 140, 92), _table),
    "sand": ((228, 206, 154), _sand),
    "snow": ((238, 243, 249), _snow),
    "water": ((88, 150, 202), _water),
    "sky": ((158, 206, 242), _sky),
    "night": ((26, 30, 66), _night),
    "wall": ((186, 104, 84), _wall),
    "carpet": ((170, 138, 192), _carpet),
    "road": ((124, 126, 130), _road),
    "tiles": ((232, 236, 236), _tiles),
}


@functools.lru_cache(maxsize=len(TEXTURES))
def _texture(background: str) -> Image.Image:
    """A texture larger than the picture by 64 pixels each way, to be cropped anywhere."""
    colour, paint = TEXTURES[background]
    texture = Image.new("RGB", (WIDTH + 64, HEIGHT + 64), colour)
    paint(ImageDraw.Draw(texture), Draws(0, list(TEXTURES).index(background), purpose=4))
    return texture


def _draw_group(picture: Image.Image, group: Group, shadow: bool) -> None:
    for x1, y1, x2, y2 in group.boxes:
        width, height = x2 - x1, y2 - y1
        if shadow:
            foot = Image.new("L", (width, max(height // 5, 4)))
            ImageDraw.Draw(foot).ellipse((0, 0, width - 1, foot.height - 1), 70)
            picture.paste((0, 0, 0), (x1 + 2, y2 - foot.height // 2), foot)
        drawn = sprite(group.shape, group.colour, group.pattern, width, height)
        picture.paste(drawn, (x1, y1), drawn)


def draw_scene(scene: Scene, number: int = 0) -> Image.Image:
    """Draw a scene, far groups first.

    Args:
        scene: what to draw.
        number: chooses the part of the background texture that shows.

    Returns:
        An RGB picture, WIDTH x HEIGHT pixels.
    """
    x, y = number * 37 % 64, number * 23 % 64
    picture = _texture(scene.background).crop((x, y, x + WIDTH, y + HEIGHT))
    for group in sorted(scene.groups, key=lambda group: group.box[3]):  # see toy_world.is_nearer
        _draw_group(picture, group, shadow=scene.background not in ("sky", "night", "wall"))
    return picture
