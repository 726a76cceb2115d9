"""Self-critical training within the loop: the switch, the logs, the curves, the warning."""

import csv

import pytest
from tiny_runs import make_data, tiny_config

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.evaluation.plots import training_curves
from sparsecap_jax.runs.loop import train
from sparsecap_jax.scst.document_frequency import count_documents

LOGGED = {"reward", "baseline", "advantage_std", "length", "entropy", "repeated_4grams"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("scenes") / "data")


def scst_config(data, **fields):
    """Four steps an epoch; rewards from the second epoch on."""
    config = tiny_config(data, pruner="none", steps=6)
    config.scst.update(start_epoch=1, num_samples=2, length_buckets=1, **fields)
    return config


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_switches_within_a_run_warns_logs_and_draws(data, tmp_path, caplog):
    count_documents([["a zebra in a zoo"]], dataset="zoo").save(tmp_path / "zoo.npz")
    lines = []
    config = scst_config(data, document_frequency=str(tmp_path / "zoo.npz"))
    train(config, tmp_path / "run", lines.append)
    table = rows(tmp_path / "run/train.csv")
    assert [row["step"] for row in table] == ["2", "4", "6"]
    assert [bool(row["reward"]) for row in table] == [False, False, True]
    assert all(table[-1][name] for name in LOGGED)
    assert float(table[-1]["log_prob_gap"]) < 1e-4
    assert any("step 6/6" in line and "reward" in line for line in lines)
    assert sum("FOREIGN DOCUMENT FREQUENCIES" in line for line in lines) == 1
    assert "FOREIGN DOCUMENT FREQUENCIES" in caplog.text
    training_curves(tmp_path / "curves.png", {"run": tmp_path / "run"})
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_rewarding_an_untrained_model_is_refused(data, tmp_path):
    config = scst_config(data)
    config.scst.start_epoch = 0
    with pytest.raises(ConfigError, match=r"config\.scst\.start_epoch is 0.*train\.init_from"):
        train(config, tmp_path / "run", lambda line: None)
