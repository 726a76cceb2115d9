"""Every snippet of docs/pruning runs, prunes and learns; models.md has a test of its own."""

import copy
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecap_jax.pruning import PRUNERS

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "pruning"
EXACT = {"layers_0": 512 - int(0.8 * 512), "layers_2": 128 - int(0.8 * 128)}


def blocks(page):
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


class Page:
    """A page's snippets, which continue those of the quick start; `names` are its variables."""

    def __init__(self, page, names):
        self.page, self.names, self.waiting = page, dict(names), blocks(page)

    def run(self):
        """Run the next snippet; return the nonzeros of each kernel of `params`."""
        exec(compile(self.waiting.pop(0), f"{self.page}.md", "exec"), self.names)
        return kept(self.names["params"])

    def loss(self):
        return float(
            self.names["loss_fn"](self.names["params"], self.names["batch"], self.names["rng"])
        )


def kept(params):
    return {key: int(np.count_nonzero(leaf["kernel"])) for key, leaf in params.items()}


@functools.cache
def started():
    page = Page("README", {})
    page.run()
    return page


@pytest.fixture
def page(request):
    """The page of the test, `test_PAGE`, after the quick start; no snippet may be left over."""
    name = request.node.name.removeprefix("test_")
    made = Page(name, copy.copy(started().names))
    yield made
    assert not made.waiting


def constant(page):
    """Loss of the best constant."""
    return float(jnp.var(page.names["batch"][1]))


def test_the_quick_start():
    page = Page("README", {})
    assert page.run() == EXACT
    assert page.loss() < 0.2 * constant(page)
    page.run()
    masks = jax.tree.leaves(page.names["nnx_masks"])
    assert sorted(int(mask.sum()) for mask in masks) == sorted(EXACT.values())
    assert not page.waiting


def test_pruning_takes_under_ten_lines():
    """Lines of the first example that mention pruning at all."""
    words = r"prun|mask|finalize|state\b(?<!opt_state)"
    assert len([line for line in blocks("README")[0].splitlines() if re.search(words, line)]) < 10


def test_pages_have_tests_or_no_snippets():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    pages = {path.stem for path in DOCS.glob("*.md") if blocks(path.stem)}
    assert pages - tested == {"README", "models"}


def test_magnitude(page):
    assert page.run() == EXACT  # those of the quick start
    masks = page.names["state"].prune.masks
    assert {key: int(leaf["kernel"].sum()) for key, leaf in masks.items()} == EXACT
    assert page.run() == {"layers_0": 512 - int(0.9 * 512), "layers_2": 128 - int(0.9 * 128)}
    assert page.loss() < 0.3 * constant(page)
    page.run()
    masks = page.names["state"].prune.masks
    assert int(sum(mask.sum() for mask in jax.tree.leaves(masks))) == 640 - int(0.8 * 640)


def test_sparse_training(page):
    found = page.run()
    # Erdos-Renyi-Kernel by hand: raw densities 72 / 512 and 66 / 128; 129 weights are left.
    scale = 129 / (72 + 66)
    expected = {"layers_0": 512 - int((1 - scale * 72 / 512) * 512)}
    expected["layers_2"] = 128 - int((1 - scale * 66 / 128) * 128)
    assert found == expected
    assert page.loss() < 0.3 * constant(page)


def test_supermask(page):
    assert abs(sum(page.run().values()) - 128) <= 0.05 * 128
    assert page.names["pruner"].reached(page.names["masks"])
    assert page.loss() < 0.3 * constant(page)


def test_layerwise(page):
    assert page.run() == {"layers_0": 256, "layers_2": 64}


def test_structures(page, capsys):
    assert page.run() == {"layers_0": 256, "layers_2": 64}
    assert {*re.findall(r"[\d.]+", capsys.readouterr().out)} <= {"2", "2."}
    page.run()
    left, before = page.names["small"].units[0]
    first, second = (page.names["masks"][layer]["kernel"] for layer in ("layers_0", "layers_2"))
    assert left == int(jnp.sum(jnp.any(first != 0, 0) & jnp.any(second != 0, 1))) < before == 64
    outputs = page.names["model"].apply({"params": page.names["params"]}, page.names["x"])
    small = {"params": page.names["small"].params}
    smaller = page.names["smaller"].apply(small, page.names["x"])
    np.testing.assert_allclose(smaller, outputs, atol=1e-5)


def test_loops(page):
    page.run()
    masks = page.names["masks"]
    assert int(sum(mask.sum() for mask in jax.tree.leaves(masks))) == 640  # one step
    assert {"loss", "grad_norm"} < page.names["metrics"].keys()
    assert int(page.names["state"].step) == 1
    assert page.run() == EXACT
    assert page.loss() < 0.3 * constant(page)
    try:
        found = page.run()
    finally:
        PRUNERS._entries.pop("by_row", None)
    # Blocks of 4 x 2 weights: 64 and 16 blocks, of which int(0.8 * n) are pruned.
    assert int(page.names["masks"]["layers_0"]["kernel"].sum()) == 8 * (64 - 51)
    assert int(page.names["masks"]["layers_2"]["kernel"].sum()) == 8 * (16 - 12)
    assert found["layers_0"] <= 8 * (64 - 51)
    assert page.run() == found
    places = page.names["state"].opt_state.places["params"]
    assert places["layers_0"]["kernel"].shape == (8 * (64 - 51),)


def test_reports(page, capsys):
    assert page.run() == {"layers_0": 512 - int(0.95 * 512), "layers_2": 128 - int(0.95 * 128)}
    assert "| layers_0/kernel | 8x64 | 512 | 26 | 0.9492 | " in capsys.readouterr().out


def test_migration(page):
    # 640 weights, of which 384 go; then a quarter of the 64 outputs of the first layer.
    page.run()
    first = np.asarray(page.names["masks"]["layers_0"]["kernel"])
    assert sorted(first.all(axis=0)) == [False] * 16 + [True] * 48
    assert (first.any(axis=0) == first.all(axis=0)).all()
    start = page.names["model"].init(jax.random.key(2), page.names["x"])["params"]
    sizes = np.concatenate([np.abs(np.ravel(start[n]["kernel"])) for n in ("layers_0", "layers_2")])
    lowest = np.sort(sizes)[384]
    second = np.abs(np.asarray(start["layers_2"]["kernel"])) >= lowest
    np.testing.assert_array_equal(
        np.asarray(page.names["params"]["layers_2"]["kernel"]) != 0, second
    )
