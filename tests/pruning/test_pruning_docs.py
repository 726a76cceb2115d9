"""The examples of docs/pruning.md run, prune and learn."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "pruning.md"


def test_examples():
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) == 3
    names = {}
    exec(compile(blocks[0], "docs/pruning.md", "exec"), names)
    constant = float(jnp.var(names["y"]))
    kept = {key: np.count_nonzero(leaf["kernel"]) for key, leaf in names["params"].items()}
    assert kept == {"layers_0": 512 - int(0.8 * 512), "layers_2": 128 - int(0.8 * 128)}
    assert float(names["loss"](names["params"])) < 0.2 * constant

    exec(compile(blocks[1], "docs/pruning.md", "exec"), names)
    kept = sum(int(jnp.sum(leaf["kernel"] != 0)) for leaf in names["params"].values())
    assert names["pruner"].on_target(1 - kept / 640)
    assert float(names["loss"](names["params"])) < 0.3 * constant

    exec(compile(blocks[2], "docs/pruning.md", "exec"), names)
    kept = {key: np.count_nonzero(leaf["kernel"]) for key, leaf in names["params"].items()}
    assert kept == {"layers_0": 512 - int(0.8 * 512), "layers_2": 128 - int(0.8 * 128)}
    assert float(names["loss"](names["params"])) < 0.3 * constant


def test_pruning_takes_under_ten_lines():
    """Lines of the first example that mention pruning at all."""
    block = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[1]
    words = r"prun|mask|finalize|state\b(?<!opt_state)"
    assert len([line for line in block.splitlines() if re.search(words, line)]) < 10
