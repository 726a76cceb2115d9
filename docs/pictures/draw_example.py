"""Draw the first picture of the README: a photo with its caption, and the size of the captioner.

    python docs/pictures/draw_example.py [PHOTO [CHECKPOINT]]

The photo is one of the examples of the package. Caption and size are those of the captioner that
comes along; the picture keeps the caption as its description, so that tests can compare it.
"""

import pathlib
import sys
import textwrap

import jax
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

import sparsecap_jax as sc
from sparsecap_jax.photos.images import EXAMPLES, open_photo
from sparsecap_jax.runs.finished import finished_weights
from sparsecap_jax.runs.published import resolve_run

OUTPUT = pathlib.Path(__file__).with_name("example.png")
PLAIN, FAINT, BAR, EMPTY = "#1a1a1a", "#6b6b6b", "#3367a8", "#dfe5ee"


def main(photo="photographer.jpg", checkpoint="flickr8k"):
    """Caption the photo and write the picture."""
    captioner = sc.Captioner.load(checkpoint)
    caption = next(captioner.caption_photos(EXAMPLES / photo)).text
    masks = jax.tree.leaves(captioner.run.masks)
    size, kept = sum(mask.size for mask in masks), sum(int(mask.sum()) for mask in masks)
    bytes_ = finished_weights(resolve_run(checkpoint)).stat().st_size
    picture = open_photo(EXAMPLES / photo)
    figure = draw(picture, caption, f"{bytes_ / 1e6:.1f} MB", kept / size, size)
    figure.savefig(OUTPUT, dpi=120)
    about = PngImagePlugin.PngInfo()
    about.add_text("Description", caption)
    drawn = Image.open(OUTPUT).convert("RGB").quantize(128, dither=Image.Dither.FLOYDSTEINBERG)
    drawn.save(OUTPUT, optimize=True, pnginfo=about)
    print(f"{OUTPUT}: {caption} ({OUTPUT.stat().st_size:,} bytes)")


def draw(picture, caption, megabytes, kept, size):
    """Return the figure: the photo to the left, what there is to say to the right."""
    height = 3.2
    side = height * picture.width / picture.height
    figure = Figure(figsize=(side + 4.2, height), facecolor="white")
    photo = figure.add_axes((0, 0, side / (side + 4.2), 1))
    photo.imshow(picture, aspect="auto")
    photo.axis("off")
    text = figure.add_axes((side / (side + 4.2), 0, 4.2 / (side + 4.2), 1))
    text.set(xlim=(0, 4.2), ylim=(0, height))
    text.axis("off")
    lines = textwrap.fill(caption, 26)
    text.text(0.35, 2.75, lines, fontsize=17, va="top", color=PLAIN, linespacing=1.35)
    text.barh(0.86, 3.5, 0.16, left=0.35, color=EMPTY)
    text.barh(0.86, 3.5 * kept, 0.16, left=0.35, color=BAR)
    weights = f"{kept:.0%} of {size / 1e6:.1f} million weights are left"
    text.text(0.35, 1.12, weights, fontsize=11, color=FAINT)
    text.text(0.35, 0.4, megabytes, fontsize=17, color=BAR, weight="bold")
    text.text(1.42, 0.41, "on disk; runs on a CPU", fontsize=11, color=FAINT)
    return figure


if __name__ == "__main__":
    main(*sys.argv[1:])
