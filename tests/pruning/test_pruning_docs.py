"""The examples of docs/pruning.md run, prune and learn."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from sparsecap_jax.pruning import PRUNERS

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "pruning.md"


def test_examples(capsys):
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) == 9
    names = {}

    def run(block):
        exec(compile(block, "docs/pruning.md", "exec"), names)
        return {key: np.count_nonzero(leaf["kernel"]) for key, leaf in names["params"].items()}

    def loss():
        return float(names["loss_fn"](names["params"], names["batch"], names["rng"]))

    exact = {"layers_0": 512 - int(0.8 * 512), "layers_2": 128 - int(0.8 * 128)}
    assert run(blocks[0]) == exact
    constant = float(jnp.var(names["batch"][1]))
    assert loss() < 0.2 * constant

    run(blocks[1])
    assert int(sum(mask.sum() for mask in jax.tree.leaves(names["masks"]))) == 640  # one step
    assert {"loss", "grad_norm"} < names["metrics"].keys()
    assert int(names["state"].step) == 1

    kept = sum(run(blocks[2]).values())
    assert abs(kept - 128) <= 0.05 * 128
    assert names["pruner"].reached(names["masks"])
    assert loss() < 0.3 * constant

    assert run(blocks[3]) == exact
    assert loss() < 0.3 * constant

    assert run(blocks[4]) == {"layers_0": 256, "layers_2": 64}

    try:
        kept = run(blocks[5])
    finally:
        PRUNERS._entries.pop("by_row", None)
    # Blocks of 4 x 2 weights: 64 and 16 blocks, of which int(0.8 * n) are pruned.
    assert int(names["masks"]["layers_0"]["kernel"].sum()) == 8 * (64 - 51)
    assert int(names["masks"]["layers_2"]["kernel"].sum()) == 8 * (16 - 12)
    assert kept["layers_0"] <= 8 * (64 - 51)

    assert run(blocks[6]) == kept
    places = names["state"].opt_state.places["params"]
    assert places["layers_0"]["kernel"].shape == (8 * (64 - 51),)

    assert run(blocks[7]) == {"layers_0": 512 - int(0.95 * 512), "layers_2": 128 - int(0.95 * 128)}
    assert "| layers_0/kernel | 8x64 | 512 | 26 | 0.9492 | " in capsys.readouterr().out
    run(blocks[8])
    left, before = names["small"].units[0]
    first, second = (names["masks"][layer]["kernel"] for layer in ("layers_0", "layers_2"))
    assert left == int(jnp.sum(jnp.any(first != 0, 0) & jnp.any(second != 0, 1))) < before == 64
    outputs = names["model"].apply({"params": names["params"]}, names["x"])
    smaller = names["smaller"].apply({"params": names["small"].params}, names["x"])
    np.testing.assert_allclose(smaller, outputs, atol=1e-5)


def test_pruning_takes_under_ten_lines():
    """Lines of the first example that mention pruning at all."""
    block = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[1]
    words = r"prun|mask|finalize|state\b(?<!opt_state)"
    assert len([line for line in block.splitlines() if re.search(words, line)]) < 10
