"""Notebooks run from top to bottom, as a reader would run them."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

COLABS = pathlib.Path(__file__).parent.parent / "colabs"


@pytest.mark.filterwarnings("ignore")  # of the notebook machinery, not of the package
@pytest.mark.parametrize("name", ["quick_start"])
def test_notebook_runs(name, monkeypatch):
    # A reader has no eight fake devices, and trains by optimised code.
    for variable in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS"):
        monkeypatch.delenv(variable, raising=False)
    notebook = nbformat.read(COLABS / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    pictures = [out for cell in code for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 4
