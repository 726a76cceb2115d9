"""Runs by name: a captioner of the package stands wherever a run directory does."""

import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from sparsecap_jax.commands.reference_export import export_reference
from sparsecap_jax.commands.report import report_run
from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.files import read_csv
from sparsecap_jax.runs.published import resolve_run
from sparsecap_jax.runs.weights import load_weights


def test_names_stand_for_runs_unless_there_is_such_a_folder(package):
    assert resolve_run("tiny") == package / "tiny"
    assert resolve_run("runs/tiny") == pathlib.Path("runs/tiny")
    assert resolve_run(pathlib.Path("other")) == pathlib.Path("other")
    with pytest.raises(CheckpointError, match=r"^other: no such file or .* captioner .*\(tiny"):
        resolve_run("other")
    pathlib.Path("tiny").mkdir()
    assert resolve_run("tiny") == pathlib.Path("tiny")


def test_a_report_by_name_does_without_logs_and_initial_weights(package):
    before = sorted(package.rglob("*"))
    weights = load_weights(package / "tiny/model.scap")
    matrices = [leaf for leaf in jax.tree.leaves(weights["params"]) if leaf.ndim == 2]
    kept = sum(int(np.count_nonzero(leaf)) for leaf in matrices)
    lines = []
    report_run("tiny", lines.append)
    assert lines[-1] == "wrote tiny_sparsity/tensors.csv and tiny_sparsity/report.png"
    rows = {row["tensor"]: row for row in read_csv(pathlib.Path("tiny_sparsity/tensors.csv"))}
    assert int(rows["(prunable)"]["nonzeros"]) == kept
    with Image.open("tiny_sparsity/report.png") as picture:
        assert picture.width > 1000
    assert sorted(package.rglob("*")) == before


def test_an_export_by_name(package, tmp_path):
    (tmp_path / ".exported.abcd1234").mkdir()  # of a killed command
    path = export_reference("tiny", tmp_path / "exported", report=lambda line: None)
    assert not [*tmp_path.glob(".exported*")]
    assert path == tmp_path / "exported/model_best.pth" and path.exists()
