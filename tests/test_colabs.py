"""Notebooks run from top to bottom, store what they show, and install the package if need be."""

import configparser
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import nbformat
import pytest

REPO = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((REPO / "colabs").glob("*.ipynb"))
PICTURES = {  # stored
    "masks_to_pytorch": 0,
    "own_features": 0,
    "prune_any_model": 2,
    "quick_start": 6,
    "scst": 1,
}
# Runs the code of notebooks one after the other in one process, which imports things once. Each has
# names and a folder of its own.
RUNNER = """
import json, os, pathlib, sys, time, traceback
results, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    source, folder = json.loads(line)
    os.chdir(folder)
    names, fault, start = {"__name__": "__main__"}, "", time.process_time()
    try:
        for cell in json.loads(pathlib.Path(source).read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
    except BaseException:
        fault = traceback.format_exc()
    import matplotlib.pyplot
    matplotlib.pyplot.close("all")
    print(json.dumps([fault, time.process_time() - start]), file=results, flush=True)
"""
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(path):
    notebook = nbformat.read(path, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def runner():
    # A reader has no eight fake devices, and trains by optimised code.
    ours = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER],
        env={**environment, "MPLBACKEND": "Agg", "PYTHONPATH": str(REPO)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        yield process
        process.stdin.close()


@by_name
def test_notebook_runs(path, runner, tmp_path):
    """What a notebook shows, it asserts."""
    assert any("\nassert " in cell.source for cell in code(path))
    runner.stdin.write(json.dumps([str(path), str(tmp_path)]) + "\n")
    runner.stdin.flush()
    fault, seconds = json.loads(runner.stdout.readline())
    assert not fault, fault
    assert seconds < 120  # of processor time


@by_name
def test_notebook_shows_outputs(path):
    cells = code(path)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell.outputs]
    kinds = {(output.output_type, output.get("name")) for output in outputs}
    assert kinds <= {("stream", "stdout"), ("display_data", None), ("execute_result", None)}
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == PICTURES[path.stem]
    shown = " ".join(output.get("text", "") for output in outputs)
    assert not re.findall(r"(?<![\w.])/(?:tmp|home|root|work|content)/", shown)  # of one machine
    assert path.stat().st_size < 600_000


def source_url():
    """Return the address of the repository, which setup.cfg has."""
    setup = configparser.ConfigParser()
    setup.read(REPO / "setup.cfg")
    return re.search(r"^Source = (\S+)$", setup["metadata"]["project_urls"], re.MULTILINE)[1]


@by_name
def test_notebook_opens_in_colab(path):
    url = source_url()
    colab = url.replace("https://github.com", "https://colab.research.google.com/github")
    link = f"{colab}/blob/main/colabs/{path.name}"
    text = path.read_text(encoding="utf-8")
    assert f"colab-badge.svg)]({link})" in nbformat.reads(text, 4).cells[0].source
    assert f"[{path.stem}]: {link}\n" in (REPO / "README.md").read_text(encoding="utf-8")
    # No other repository of this name is linked, and pages that are linked exist.
    assert {*re.findall(r"https://[^/]+/(?:github/)?([^/ ]+/sparsecap_jax)\b", text)} == {
        url.removeprefix("https://github.com/")
    }
    for page in re.findall(rf"{url}/blob/main/([\w/.]+)", text):
        assert (REPO / page).is_file(), page


@by_name
def test_first_cell_installs_the_package_where_it_is_not(path, monkeypatch):
    source = code(path)[0].source
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda words, check: calls.append((words, check)))
    exec(source, {})
    assert not calls  # it is here
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sparsecap_jax" else find(name)
    )
    exec(source, {})
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in ("jax", "jaxlib")]
    package = f"sparsecap_jax[photos] @ git+{source_url()}"
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    assert calls == [([*pip, package, *versions], True)]
