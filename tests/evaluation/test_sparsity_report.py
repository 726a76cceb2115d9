"""The sparsity report: counts by hand, warnings, densities, the picture."""

import logging

import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from sparsecap_jax.commands.report import report_run
from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.evaluation.sparsity_report import density, write_sparsity_report
from sparsecap_jax.files import read_csv
from sparsecap_jax.pruning import finalize, make_pruner
from sparsecap_jax.pruning.summary import by_module, summarize, warn_nearly_empty


@pytest.fixture
def pruned():
    rng = np.random.default_rng(0)
    params = {
        "a": {"kernel": rng.normal(size=(50, 40)).astype(np.float32), "bias": np.zeros(40)},
        "b": {"kernel": rng.normal(size=(40, 5)).astype(np.float32)},
    }
    masks = {
        "a": {"kernel": np.zeros((50, 40), np.float32)},
        "b": {"kernel": (rng.random((40, 5)) < 0.3).astype(np.float32)},
    }
    masks["a"]["kernel"][3, 4] = 1
    return params, masks


def test_rows_by_hand(pruned):
    params, masks = pruned
    kept = int(masks["b"]["kernel"].sum())
    rows = {row["tensor"]: row for row in summarize(params, masks)}
    assert list(rows) == ["a/bias", "a/kernel", "b/kernel", "(prunable)", "(all)"]
    assert rows["a/kernel"] == {
        **{"tensor": "a/kernel", "shape": "50x40", "prunable": True},
        **{"size": 2000, "nonzeros": 1, "sparsity": 0.9995},
    }
    assert (rows["a/bias"]["prunable"], rows["a/bias"]["sparsity"]) == (False, 0.0)
    assert (rows["(prunable)"]["size"], rows["(prunable)"]["nonzeros"]) == (2200, 1 + kept)
    assert (rows["(all)"]["size"], rows["(all)"]["nonzeros"]) == (2240, 41 + kept)
    assert rows["(all)"]["sparsity"] == pytest.approx(1 - (41 + kept) / 2240, rel=1e-12)


def test_sizes_by_module():
    params = {
        "a": {"b": {"kernel": np.ones((2, 3))}, "c": {"kernel": np.ones(4), "bias": np.ones(5)}},
        "d": np.ones(7),
    }
    masks = {"a": {"b": {"kernel": np.array([[1, 0, 0], [0, 0, 1]])}}}
    sizes = by_module(summarize(params, masks))
    assert sizes == {
        "(all)": {"parameters": 22, "nonzeros": 18, "sparsity": pytest.approx(4 / 22)},
        "a": {"parameters": 15, "nonzeros": 11, "sparsity": pytest.approx(4 / 15)},
        "a/b": {"parameters": 6, "nonzeros": 2, "sparsity": pytest.approx(2 / 3)},
        "a/c": {"parameters": 9, "nonzeros": 9, "sparsity": 0.0},
    }


def test_nearly_empty_tensors_are_warned_of(pruned, caplog):
    with caplog.at_level(logging.WARNING):
        assert warn_nearly_empty(summarize(*pruned)) == ["a/kernel"]
    assert "a/kernel is 99.950% sparse: 1 of 2000 weights are left" in caplog.text


def test_an_array_under_two_paths_counts_once():
    shared = np.ones((3, 4), np.float32)
    rows = summarize({"one": {"kernel": shared}, "two": {"kernel": shared}}, {})
    assert [row["tensor"] for row in rows] == ["one/kernel", "(prunable)", "(all)"]
    assert rows[-1]["size"] == 12


def test_tied_embeddings_have_one_mask_and_count_once():
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            embed = nn.Embed(10, 4)
            layer = nn.Dense(4, use_bias=False)
            return embed.attend(layer(layer(embed(tokens))))

    params = Tied().init(jax.random.key(0), np.zeros((2,), np.int32))["params"]
    pruner = make_pruner({"name": "mag_blind", "sparsity": 0.5}, total_steps=1)
    pruned, masks = pruner.instant_sparsify(params)
    rows = {row["tensor"]: row for row in summarize(pruned, masks)}
    assert rows["(prunable)"]["size"] == rows["(all)"]["size"] == 40 + 16
    assert rows["(prunable)"]["nonzeros"] == 28


def test_density_against_the_sum_of_kernels():
    sample = np.random.default_rng(0).normal(size=2000)
    places, found = density(sample, points=800)
    spread = min(sample.std(), np.subtract(*np.percentile(sample, [75, 25])) / 1.34)
    width = 0.9 * spread * 2000**-0.2
    direct = np.exp(-0.5 * ((places[:, None] - sample) / width) ** 2).sum(1)
    direct /= 2000 * width * np.sqrt(2 * np.pi)
    np.testing.assert_allclose(found, direct, atol=2e-3)
    assert np.sum(found) * (places[1] - places[0]) == pytest.approx(1.0, abs=5e-3)
    assert np.isfinite(density(np.zeros(5))[1]).all()


def test_a_report_leaves_a_table_events_and_a_picture(pruned, tmp_path):
    params, masks = pruned
    (tmp_path / "validation.csv").write_text("step,sparsity\n10,0.2\n20,0.9\n")
    done = jax.device_get(finalize(params, masks))
    rows = write_sparsity_report(tmp_path, done, masks, params, 20)
    table = read_csv(tmp_path / "sparsity" / "tensors.csv")
    assert [row["tensor"] for row in table] == [row["tensor"] for row in rows]
    assert int(table[1]["nonzeros"]) == 1
    assert list((tmp_path / "tensorboard").glob("events.*"))
    with Image.open(tmp_path / "sparsity" / "report.png") as picture:
        assert picture.width > 1000


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no finished run: model\.scap is missing"):
        report_run(tmp_path)
