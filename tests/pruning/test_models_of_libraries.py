"""docs/pruning/models.md: an example for each kind of parameters, in under 15 lines."""

import importlib.util
import pathlib
import re

import jax
import numpy as np
import pytest

from sparsecap_jax.pruning import apply_masks, by_path, finalize, sparsity

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "pruning" / "models.md"
NEEDS = {"Equinox": "equinox", "Haiku": "haiku"}
# Kept weights of each tensor, by hand: size - int(0.75 * size).
PAIR = {(8, 16): 32, (16, 8): 32, (16, 2): 8, (2, 16): 8, (8, 2): 4}
PATHS = {
    "Linen": ["layers_0/kernel", "layers_2/kernel"],
    "NNX: the state of a module": ["layers/0/kernel", "layers/2/kernel"],
    "NNX: a module and its optimizer": ["layers/0/kernel", "layers/2/kernel"],
    "Equinox": ["layers/0/weight", "layers/1/weight"],
    "Haiku": ["mlp/~/linear_0/w", "mlp/~/linear_1/w"],
    "Dicts, lists, tuples, None": ["layers/0/w"],
    "Dataclasses": ["0/kernel"],
    "FrozenDicts": ["out/kernel"],
}


def sections():
    text = DOCS.read_text(encoding="utf-8")
    first, *rest = re.split(r"^## ", text, flags=re.MULTILINE)
    blocks = {
        part.partition("\n")[0]: re.findall(r"```python\n(.*?)```", part, re.S) for part in rest
    }
    return re.search(r"```python\n(.*?)```", first, re.S)[1], {k: v for k, v in blocks.items() if v}


BEGINNING, BLOCKS = sections()


def test_every_kind_has_an_example_of_under_15_lines():
    assert BLOCKS.keys() == PATHS.keys()
    for name, blocks in BLOCKS.items():
        (block,) = blocks
        assert len([line for line in block.splitlines() if line.strip()]) < 15, name


@pytest.mark.parametrize("name", sorted(PATHS))
def test_example(name):
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed (setup.cfg, extra `test`)")
    names = {"__name__": "example"}
    exec(compile(BEGINNING + BLOCKS[name][0], str(DOCS), "exec"), names)
    trained = [(names["params"], names["masks"])]
    if "wrapped" in names:
        trained.append((names["wrapped"], names["wrapped_masks"]))
    for params, masks in trained:
        leaves, flat = by_path(params), by_path(masks)
        assert ["/".join(path) for path in flat] == PATHS[name]
        for path, mask in flat.items():
            assert int(np.sum(mask)) == PAIR[mask.shape]
            assert np.array_equal(np.asarray(leaves[path]) != 0, np.asarray(mask) != 0)
        assert sparsity(masks, params).nonzeros == sum(PAIR[mask.shape] for mask in flat.values())
        for function in (finalize, apply_masks):
            again = function(params, masks)
            assert jax.tree.structure(again) == jax.tree.structure(params)
            for path, leaf in by_path(again).items():
                np.testing.assert_array_equal(leaf, leaves[path])
    if "wrapped" in names:
        kinds = {type(tree) for tree in (names["params"], names["masks"], names["wrapped_masks"])}
        assert len(kinds) == 1
