"""Sweeps: order, continuing, failures, the table and the picture."""

import contextlib
import dataclasses
import os
import shutil
import signal
import time
import types

import pytest
from PIL import Image
from tiny_runs import constant_config, make_data

from sparsecap_jax.errors import ConfigError, DataError, SparsecapError
from sparsecap_jax.evaluation.plots import error_bar_curves
from sparsecap_jax.experiments import sweep_runner
from sparsecap_jax.experiments.sweep_runner import run_sweep
from sparsecap_jax.experiments.sweep_tables import read_rows
from sparsecap_jax.experiments.sweeps import SWEEPS, Sweep, SweepRun, load_sweep
from sparsecap_jax.files import read_csv, read_json, write_json, write_table
from sparsecap_jax.locks import locked
from sparsecap_jax.stopping import Stopped, on_signals


def broken(config):
    config.optimizer.update({"name": "sgd", "learning_rate": 1e30, "clip": "none"})
    return config


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of three runs, of which one fails; its folder, and what was drawn."""
    folder = tmp_path_factory.mktemp("sweep")
    data = make_data(folder / "toy")
    config = {"steps": 2, "eval_every": 2}
    drawn = []

    def runs(seeds):
        assert seeds == 1
        dense = SweepRun("dense", {"method": "dense"}, constant_config(data, **config))
        fails = SweepRun("fails", {"method": "x"}, broken(constant_config(data, **config)))
        pruned = constant_config(data, "mag_blind", **config)
        return [dense, fails, SweepRun("mag", {"method": "mag_blind"}, pruned, init_from="dense")]

    sweep = Sweep(runs, lambda workdir, rows: drawn.append(rows))
    with pytest.raises(SparsecapError, match=r"^1 run failed: fails: step 2: the loss is"):
        run_sweep(sweep, folder / "out", seeds=1, report=lambda line: None)
    return sweep, folder / "out", drawn


def test_runs_are_taken_in_order_and_tabled(swept):
    _, folder, drawn = swept
    rows = drawn[0]
    assert [row["method"] for row in rows] == ["dense", "mag_blind"]
    assert rows[0]["sparsity"] == 0.0
    assert rows[1]["sparsity"] == pytest.approx(0.5, abs=1e-4)
    start = read_json(folder / "mag" / "config.json")["train"]["init_from"]
    assert start == str(folder / "dense")
    table = read_csv(folder / "results.csv")
    assert [row["method"] for row in table] == ["dense", "mag_blind"]
    assert (
        float(table[1]["CIDEr"])
        == read_json(folder / "mag" / "test_beam_2" / "scores.json")["CIDEr"]
    )
    assert (folder / "dense" / "model.scap").exists()
    assert not (folder / "dense" / "checkpoints").exists()


def test_finished_runs_are_not_taken_again(swept, monkeypatch):
    sweep, folder, drawn = swept
    taken = []

    def refuse(config, directory, *args, **kwargs):
        taken.append(directory.name)
        raise ConfigError("no more training")

    monkeypatch.setattr(sweep_runner, "train", refuse)
    with pytest.raises(SparsecapError, match="no more training"):
        run_sweep(sweep, folder, seeds=1, report=lambda line: None)
    assert taken == ["fails"]
    before = len(drawn)
    for limits in ({"minutes": 0.0}, {"only": "dense|mag"}):
        assert run_sweep(sweep, folder, seeds=1, report=lambda line: None, **limits) == drawn[0]
    assert len(drawn) == before + 2


def test_a_signal_ends_a_sweep_and_is_no_failed_run(swept, monkeypatch):
    sweep, folder, _ = swept
    table = (folder / "results.csv").read_bytes()
    monkeypatch.setattr(sweep_runner, "train", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Stopped) as stopped, on_signals():
        run_sweep(sweep, folder, seeds=1, report=lambda line: None)
    assert stopped.value.code == 130
    assert (folder / "results.csv").read_bytes() == table


def test_a_run_that_another_sweep_takes_is_left_to_it(swept):
    sweep, folder, _ = swept
    lines = []
    with locked(folder / "fails/result.json", folder=False):
        rows = run_sweep(sweep, folder, seeds=1, report=lines.append)
    assert [row["method"] for row in rows] == ["dense", "mag_blind"]
    held = f"{folder}/fails/result.json: process {os.getpid()} on "
    assert lines[0].startswith(f"[2/3] fails: left to another process: {held}")
    assert lines[1].startswith("2 of 3 runs finished")


def test_runs_that_start_from_one_of_another_sweep_are_left_to_it(swept, tmp_path):
    sweep, lines = swept[0], []
    with locked(tmp_path / "dense/result.json", folder=False):
        rows = run_sweep(sweep, tmp_path, seeds=1, only="dense|mag", report=lines.append)
    assert rows == [] and not (tmp_path / "mag").exists()
    assert lines[1:] == [
        "[3/3] mag: left to another process: dense, which it starts from, is trained elsewhere",
        "0 of 3 runs finished",
    ]


def test_a_run_that_another_sweep_finished_meanwhile_is_not_taken_again(swept, monkeypatch):
    sweep, folder, drawn = swept
    finished, asked = sweep_runner._Work.is_finished, []

    def not_at_first(work, run):
        asked.append(run.name)
        return len(asked) > 1 and finished(work, run)

    monkeypatch.setattr(sweep_runner._Work, "is_finished", not_at_first)
    monkeypatch.setattr(sweep_runner, "train", lambda *_, **__: pytest.fail("trained again"))
    assert run_sweep(sweep, folder, seeds=1, only="dense", report=lambda _: None) == drawn[0]
    assert asked == ["dense", "dense"]


def test_a_run_of_a_process_that_died_is_taken_up_by_one_that_waits(swept, tmp_path, monkeypatch):
    """The lock of "dense" is held, then released without a result, as that of a dead process."""
    sweep, folder, _ = swept
    taken, lines = [], []

    def finish(work, run):
        with locked(work.workdir / run.name / "result.json", folder=False):
            taken.append(run.name)
            shutil.copytree(folder / run.name, work.workdir / run.name, dirs_exist_ok=True)
            if run.init_from:  # it says where it started
                config = read_json(folder / run.name / "config.json")
                config["train"]["init_from"] = str(work.workdir / run.init_from)
                write_json(work.workdir / run.name / "config.json", config)

    monkeypatch.setattr(sweep_runner._Work, "_train", finish)
    with contextlib.ExitStack() as other:
        other.enter_context(locked(tmp_path / "dense/result.json", folder=False))

        def die(seconds):
            assert seconds == 7.0 and taken == []
            other.close()

        clock = types.SimpleNamespace(sleep=die, monotonic=time.monotonic)
        monkeypatch.setattr(sweep_runner, "time", clock)
        options = {"seeds": 1, "only": "dense|mag", "report": lines.append}
        rows = run_sweep(sweep, tmp_path, wait=7.0, **options)
    assert taken == ["dense", "mag"]
    assert [row["method"] for row in rows] == ["dense", "mag_blind"]
    assert [line.split(":")[0] for line in lines] == [
        *("[1/3] dense", "[3/3] mag", "[1/3] dense", "[3/3] mag", "2 of 3 runs finished")
    ]


def test_a_run_of_another_config_is_not_taken_for_finished(swept):
    sweep, folder, _ = swept

    def changed(seeds):
        runs = sweep.runs(seeds)
        runs[0].config.train.steps = 3
        return runs

    with pytest.raises(ConfigError, match=r"train\.steps was 2, is 3"):
        run_sweep(dataclasses.replace(sweep, runs=changed), folder, seeds=1)


def no_training(monkeypatch):
    monkeypatch.setattr(sweep_runner, "train", lambda *_, **__: pytest.fail("trained again"))


def test_rows_of_another_machine_are_finished_runs(swept, tmp_path, monkeypatch):
    sweep, folder, drawn = swept
    rows = read_csv(folder / "results.csv")
    table = tmp_path / "committed.csv"
    write_table(table, [*rows, {**rows[0], "method": "another", "CIDEr": "7e-1"}])
    no_training(monkeypatch)
    out = tmp_path / "out"
    found = run_sweep(sweep, out, seeds=1, only="dense|mag", known=table, report=lambda _: None)
    assert found == drawn[-1]
    assert [(row["method"], row["CIDEr"]) for row in found] == [
        (row["method"], float(row["CIDEr"])) for row in rows
    ]
    assert [path.name for path in out.iterdir()] == ["results.csv"]
    written = read_csv(out / "results.csv")  # of no run: kept, not drawn
    assert written == [*rows, {**rows[0], "method": "another", "CIDEr": "0.7"}]


def test_rows_of_a_table_without_its_runs_are_drawn_and_kept(swept, tmp_path, monkeypatch):
    sweep, folder, drawn = swept
    table, before = (folder / "results.csv").read_bytes(), len(drawn)
    (tmp_path / "results.csv").write_bytes(table)
    no_training(monkeypatch)
    lines = []
    found = run_sweep(sweep, tmp_path, seeds=1, minutes=0.0, report=lines.append)
    assert lines == [
        "0 minutes are over; run again to continue",
        f"2 of 3 runs finished: {tmp_path}/results.csv",
    ]
    assert len(drawn) == before + 1 and drawn[-1] == found
    assert [row["method"] for row in found] == ["dense", "mag_blind"]
    assert (tmp_path / "results.csv").read_bytes() == table


def test_a_run_trains_what_it_needs_and_the_known_row_stays(swept, tmp_path):
    sweep, folder, _ = swept
    table = tmp_path / "committed.csv"
    write_table(table, [{**read_csv(folder / "results.csv")[0], "CIDEr": "0.5"}])
    rows = run_sweep(
        sweep, tmp_path / "out", seeds=1, only="mag", known=table, report=lambda _: None
    )
    assert (tmp_path / "out/dense/result.json").exists()
    assert [row["method"] for row in rows] == ["dense", "mag_blind"]
    assert rows[0]["CIDEr"] == 0.5


def test_a_run_whose_start_failed_is_not_tried(swept, tmp_path):
    sweep = swept[0]

    def runs(seeds):
        _, fails, pruned = sweep.runs(seeds)
        return [fails, dataclasses.replace(pruned, init_from="", twin="fails")]

    failing = dataclasses.replace(sweep, runs=runs)
    message = r"^2 runs failed: fails: step 2: .*; mag: fails, which it needs, failed$"
    with pytest.raises(SparsecapError, match=message):
        run_sweep(failing, tmp_path, seeds=1, report=lambda _: None)
    assert not (tmp_path / "mag").exists()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("seed,CIDEr\n0,1.5\n0,1.5\n", r"row 2: a again; expected one row a run"),
        ("CIDEr\n1.5\n", r"row 1: no seed; expected a table of this sweep"),
        ("seed,CIDEr\n0,1.5,3\n", r"row 1: more cells than columns"),
        ("seed,CIDEr\n0,1e999\n", r"row 1: CIDEr is '1e999'; expected a number"),
        ("seed,CIDEr\n0,[1]\n", r"row 1: CIDEr is '\[1\]'; expected a number"),
    ],
)
def test_a_damaged_table_is_one_error(tmp_path, text, fault):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=rf"t\.csv: {fault}"):
        read_rows(tmp_path / "t.csv", {"a": {"seed": 0}})


def test_cells_become_numbers(tmp_path):
    (tmp_path / "t.csv").write_text("seed,CIDEr,x,y,z\n3,1,-2.5e-3,0.1 0.2,\n")
    rows, others = read_rows(tmp_path / "t.csv", {"a": {"seed": 0}, "b": {"seed": 3}})
    assert rows == {"b": {"seed": 3, "CIDEr": 1, "x": -0.0025, "y": "0.1 0.2", "z": None}}
    assert others == []


@pytest.mark.parametrize("name", sorted(SWEEPS))
def test_every_sweep_loads_and_orders_its_runs(name):
    runs = load_sweep(name).runs(2)
    names = [run.name for run in runs]
    assert len(set(names)) == len(names)
    for number, run in enumerate(runs):
        assert {run.init_from, run.twin} - {""} <= {*names[:number]}


def test_an_unknown_sweep_is_named():
    with pytest.raises(ConfigError, match=r"--sweep is 'toys'; expected one of .*toy_pruners"):
        load_sweep("toys")


def test_a_picture_of_few_results(tmp_path):
    rows = [
        {"model": "m", "method": name, "target": target, "CIDEr": 1.0 - target}
        for name, target in (("dense", 0.0), ("a", 0.8), ("a", 0.8), ("a", 0.9), ("b", 0.9))
    ]
    columns = {"x": "target", "y": "CIDEr", "series": "method", "panel": "model"}
    error_bar_curves(tmp_path / "p.png", rows, **columns, baseline="dense")
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 400
