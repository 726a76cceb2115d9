"""The README: its snippet runs, its picture shows what ships, its figures are results."""

import pathlib
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from PIL import Image

import sparsecap_jax as sc
from sparsecap_jax.evaluation.published import published_results
from sparsecap_jax.photos.images import EXAMPLES

REPO = pathlib.Path(__file__).parents[1]
NUMBER = re.compile(r"\d[\d.,]*\d|\d")
LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")
README = (REPO / "README.md").read_text(encoding="utf-8")


def test_it_is_short():
    assert len(README.splitlines()) < 250


def test_the_pruning_snippet_runs():
    (snippet,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    x = jax.random.normal(jax.random.key(0), (32, 8))
    names = {
        "jax": jax,
        "rng": jax.random.key(1),
        "params": {"kernel": jax.random.normal(jax.random.key(2), (8, 4)), "bias": jnp.zeros(4)},
        "optimizer": optax.adam(1e-2),
        "loss_fn": lambda params, batch, rng: jnp.mean(batch @ params["kernel"] + params["bias"]),
        "batch": x,
    }
    exec(snippet, names)
    assert jnp.isfinite(names["metrics"]["loss"])
    assert jax.tree.map(jnp.shape, names["masks"]) == {"kernel": (8, 4)}
    assert {*jnp.unique(names["masks"]["kernel"]).tolist()} <= {0.0, 1.0}


def test_the_picture_shows_the_captioner_that_ships():
    """After a change of it: python docs/pictures/draw_example.py."""
    alt, path = re.search(r"^!\[([^]]*)\]\(([^)]*)\)", README, re.MULTILINE).groups()
    checkpoint = re.search(r"The captioner in the package, `([^`]*)`", README)[1]
    with Image.open(REPO / path) as picture:
        shown = picture.text["Description"]
    (caption,) = sc.Captioner.load(checkpoint).caption_photos(EXAMPLES / "photographer.jpg")
    assert shown == caption.text
    assert f'"{shown}"' in " ".join(alt.split())


@pytest.mark.parametrize("heading", ["**Captions**", "**Speed and size**"])
def test_figures_of_its_tables_are_in_the_results(heading):
    table = re.search(rf"{re.escape(heading)}.*?\n\n(\|.*?)\n\n", README, re.DOTALL)[1]
    known = {f"{row['CIDEr']:.1f}" for row in published_results()}
    for page in (REPO / "docs/results").glob("*.md"):
        known.update(NUMBER.findall(page.read_text(encoding="utf-8")))
    cells = [cell for row in table.splitlines()[2:] for cell in row.split("|")[2:6]]
    shown = [number for cell in cells for number in NUMBER.findall(LINK.sub(r"\1", cell))]
    assert len(shown) > 10 and {*shown} <= known, {*shown} - known
