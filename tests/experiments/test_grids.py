"""Grids of config fields: products, files, faults, a sweep of two runs."""

import itertools
import sys

import pytest
from tiny_runs import make_data

from sparsecap_jax.errors import ConfigError, SparsecapError
from sparsecap_jax.experiments.grids import grid_sweep, load_grid, product
from sparsecap_jax.experiments.several import run_several
from sparsecap_jax.experiments.sweep_runner import run_sweep
from sparsecap_jax.files import read_csv

TOY = "configs/toy.py:supermask"


def test_a_product_varies_the_last_field_fastest():
    settings = ["pruner.sparsity=0.8,0.95", "data.region_buckets=(16,36),(64,)", "train.steps=5"]
    assert product(settings) == [
        {"pruner.sparsity": s, "data.region_buckets": b, "train.steps": "5"}
        for s, b in itertools.product(("0.8", "0.95"), ("(16,36)", "(64,)"))
    ]
    assert product([]) == [{}]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (["pruner.sparsity"], "'pruner.sparsity' has no value"),
        (["a=1", "a=2"], "'a' is there twice"),
        (["a=" + "1," * 200, "b=" + "1," * 200], "more than 10000 combinations"),
    ],
)
def test_faults_of_a_product(settings, fault):
    with pytest.raises(ConfigError, match=fault):
        product(settings)


def test_runs_have_the_fields_of_their_entries():
    entries = product(["pruner.sparsity=0.8,0.95", "data.region_buckets=(16,36),(64,)"])
    runs = grid_sweep(entries, TOY).runs(2)
    assert [run.name for run in runs[:4]] == [
        "pruner.sparsity=0.8,data.region_buckets=_16,36_/seed_0",
        "pruner.sparsity=0.8,data.region_buckets=_64,_/seed_0",
        "pruner.sparsity=0.95,data.region_buckets=_16,36_/seed_0",
        "pruner.sparsity=0.95,data.region_buckets=_64,_/seed_0",
    ]
    assert [run.config.pruner.sparsity for run in runs] == [0.8, 0.8, 0.95, 0.95] * 2
    assert [run.config.data.region_buckets for run in runs[:2]] == [(16, 36), (64,)]
    assert [run.config.seed for run in runs] == [0] * 4 + [1] * 4
    assert runs[0].config.pruner.sparsity_weight == 25.0  # the recipe's
    labels = {"pruner.sparsity": "0.95", "data.region_buckets": "(64,)", "seed": 1}
    assert runs[7].labels == {"run": runs[7].name.split("/")[0], **labels}


def test_another_pruner_has_the_defaults_of_its_recipe():
    (run,) = grid_sweep(product(["pruner.name=mag_blind"]), TOY).runs(1)
    assert (run.config.pruner.name, run.config.pruner.sparsity) == ("mag_blind", 0.95)
    assert "sparsity_weight" not in run.config.pruner


def test_a_file_lists_entries_and_their_starts(tmp_path):
    (tmp_path / "grid.py").write_text(
        "def get_grid():\n"
        "    sparse = [{'init_from': 'dense', 'config': 'configs/toy.py:mag_blind',\n"
        "               'pruner.sparsity': s, 'data.region_buckets': (20,)} for s in (0.8, 0.9)]\n"
        "    return [{'name': 'dense', 'train.packed_optimizer': False}, *sparse]\n"
    )
    runs = grid_sweep(load_grid(tmp_path / "grid.py"), "configs/toy.py").runs(2)
    assert [run.name for run in runs[:2]] == [
        "dense/seed_0",
        "configs_toy.py_mag_blind,pruner.sparsity=0.8,data.region_buckets=_20,_/seed_0",
    ]
    assert [run.init_from for run in runs] == [
        *("", "dense/seed_0", "dense/seed_0"),
        *("", "dense/seed_1", "dense/seed_1"),
    ]
    assert [run.config.pruner.name for run in runs[:2]] == ["none", "mag_blind"]
    assert runs[1].config.data.region_buckets == (20,)
    assert runs[1].labels["train.packed_optimizer"] == ""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", r"grid\.py: AttributeError: .*get_grid"),
        ("def get_grid(): return {}", r"grid\.py: get_grid\(\) is no list of dicts"),
        ("def get_grid(): return [1]", r"grid\.py: get_grid\(\) is no list of dicts"),
        ("def get_grid(): return []", r"grid\.py: 0 entries; expected 1 to 10000"),
        ("import nonesuch", r"grid\.py: ModuleNotFoundError: No module named 'nonesuch'"),
    ],
)
def test_faults_of_a_file(tmp_path, text, fault):
    (tmp_path / "grid.py").write_text(text)
    with pytest.raises(ConfigError, match=fault):
        load_grid(tmp_path / "grid.py")


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ([{"seed": 1}], "a grid has no field 'seed'; expected --seeds=N"),
        ([{"name": "a"}, {"name": "a"}], "name 'a' is there twice"),
        ([{"name": "../a"}], "name '../a' is no folder"),
        ([{"name": "a", "init_from": "b"}], "init_from 'b' is no name above"),
        ([{"train.stepz": 1}], r"config\.train\.stepz: unknown"),
    ],
)
def test_faults_of_entries(entries, fault):
    with pytest.raises(ConfigError, match=fault):
        grid_sweep(entries, TOY).runs(1)


def test_an_entry_needs_a_config(tmp_path):
    with pytest.raises(ConfigError, match=r"a: no config; expected --config=FILE\.py"):
        grid_sweep([{"name": "a"}])
    with pytest.raises(ConfigError, match=r"none\.py: no such file or folder; expected a Python"):
        load_grid(tmp_path / "none.py")


def test_a_grid_is_trained_and_tabled(tmp_path):
    data = make_data(tmp_path / "toy")
    entries = product(["optimizer.learning_rate=1e-3,3e-3", "train.steps=1", "train.devices=1"])
    sweep = grid_sweep(entries, f"tests/tiny_runs.py:{data}")
    rows = run_sweep(sweep, tmp_path / "out", report=lambda _: None)
    table = read_csv(tmp_path / "out/results.csv")
    assert [row["optimizer.learning_rate"] for row in table] == ["1e-3", "3e-3"]
    assert [float(row["CIDEr"]) for row in table] == [row["CIDEr"] for row in rows]
    lines = (tmp_path / "out/table.md").read_text().splitlines()
    assert lines[0].startswith("| run | optimizer.learning_rate | train.steps | train.devices |")
    assert [line.split(" | ")[1] for line in lines[2:]] == ["1e-3", "3e-3"]


def test_several_processes_see_a_gpu_each(tmp_path, monkeypatch):
    code = "import os, pathlib, sys; gpu = os.environ['CUDA_VISIBLE_DEVICES']; "
    code += "pathlib.Path(sys.argv[1], gpu).touch(); sys.exit(gpu == sys.argv[2])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    run_several(2, [*command, ""])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,9")
    with pytest.raises(SparsecapError, match="1 of 2 processes failed; their messages are above"):
        run_several(2, [*command, "7"])
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "5", "7"}
    with pytest.raises(ConfigError, match="--processes is 4; expected at most 3"):
        run_several(4, command)
