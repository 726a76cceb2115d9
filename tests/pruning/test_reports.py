"""Tables of masks, counted by hand."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import (
    SparsityHistory,
    dead_units,
    layer_table,
    overlap,
    summarize,
)

KERNEL = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]], np.float32)
CONV = np.zeros((2, 1, 3, 2), np.float32)  # height, width, inputs, outputs
CONV[0, 0, 0, 1] = CONV[1, 0, 2, 1] = 1
MASKS = {"conv": {"kernel": CONV}, "dense": {"kernel": KERNEL}}
PARAMS = {
    "conv": {"kernel": np.ones(CONV.shape, np.float32), "bias": np.zeros(2, np.float32)},
    "dense": {"kernel": np.ones(KERNEL.shape, np.float32)},
}


def test_dead_units():
    conv, dense, total = dead_units(MASKS)
    # Of the convolution input 1 and output 0 are dead: 2 * 1 * (3 * 2 - 2 * 1) = 8 weights.
    assert conv == {
        "tensor": "conv/kernel",
        "rows": 3,
        "dead_rows": 1,
        "columns": 2,
        "dead_columns": 1,
        "size": 12,
        "saved": 8,
    }
    assert (dense["dead_rows"], dense["dead_columns"], dense["saved"]) == (1, 2, 12 - 2 * 2)
    assert total["tensor"] == "(all)" and total["saved"] == 16 and total["dead_columns"] == 3
    counts = ("rows", "dead_rows", "columns", "dead_columns", "size", "saved")
    assert dead_units({}) == [{"tensor": "(all)"} | dict.fromkeys(counts, 0)]
    with pytest.raises(ConfigError, match="not binary"):
        dead_units({"kernel": np.full((2, 2), 0.5, np.float32)})


def test_layer_table():
    lines = layer_table(PARAMS, MASKS).splitlines()
    assert lines[2:] == [
        "| conv/bias | 2 | 2 | 2 | 0.0000 |  |  |",
        "| conv/kernel | 2x1x3x2 | 12 | 2 | 0.8333 | 1 | 1 |",
        "| dense/kernel | 3x4 | 12 | 3 | 0.7500 | 1 | 2 |",
        "| (prunable) |  | 24 | 5 | 0.7917 | 2 | 3 |",
        "| (all) |  | 26 | 7 | 0.7308 |  |  |",
    ]
    assert layer_table(PARAMS, {}).splitlines()[-2:] == [
        "| (prunable) |  | 0 | 0 | 1.0000 | 0 | 0 |",
        "| (all) |  | 26 | 26 | 0.0000 |  |  |",
    ]


def test_what_a_summary_counts():
    """An array under two masks twice, one without masks once; no counters, no keys."""
    shared, vector = jnp.ones((2, 3)), jnp.ones(5)
    params = {
        **{name: {"kernel": shared, "bias": vector} for name in "ab"},
        "count": jnp.zeros((), jnp.uint32),
        "key": jax.random.key(0),
    }
    masks = {"a": {"kernel": np.eye(2, 3)}, "b": {"kernel": np.zeros((2, 3))}}
    rows = {row["tensor"]: (row["size"], row["nonzeros"]) for row in summarize(params, masks)}
    assert rows == {
        "a/bias": (5, 5),
        "a/kernel": (6, 2),
        "b/kernel": (6, 0),
        "(prunable)": (12, 2),
        "(all)": (17, 7),
    }


def test_overlap():
    other = {"conv": {"kernel": CONV}, "dense": {"kernel": np.flip(KERNEL, 1).copy()}}
    conv, dense, total = overlap(MASKS, other)
    assert conv["shared"] == conv["overlap"] == 1.0
    # Rows 1001 and 1001, 0001 and 1000: 2 of both, 4 of either.
    assert [dense[key] for key in ("first", "second", "both", "either")] == [3, 3, 2, 4]
    assert dense["shared"] == pytest.approx(2 / 3) and dense["overlap"] == 0.5
    # Independent masks of density 1/4: 1/16 of both, 7/16 of either.
    assert dense["by_chance"] == pytest.approx(1 / 7)
    assert total["both"] == 4 and total["either"] == 6
    for wrong, message in (({}, "no parameter"), ({"dense": {"kernel": KERNEL}}, "no parameter")):
        with pytest.raises(ConfigError, match=message):
            overlap(MASKS, wrong)


def test_history(tmp_path):
    history = SparsityHistory()
    with pytest.raises(ConfigError, match="nothing to draw"):
        history.draw(tmp_path / "none.png")
    history.add(0, {"a": jnp.ones((2, 2)), "b": [jnp.ones((2, 3))]})
    history.add(jnp.int32(5), {"a": jnp.zeros((2, 2)), "b": [jnp.ones((2, 3)).at[0].set(0)]})
    table = [(row["step"], row["tensor"], row["nonzeros"], row["sparsity"]) for row in history.rows]
    assert table == [
        (0, "a", 4, 0.0), (0, "b/0", 6, 0.0), (0, "(all)", 10, 0.0),
        (5, "a", 0, 1.0), (5, "b/0", 3, 0.5), (5, "(all)", 3, 0.7),
    ]  # fmt: skip
    with (tmp_path / "history.csv").open("w") as file:
        csv.DictWriter(file, history.rows[0]).writerows(history.rows)
    history.draw(tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
