"""The package's imports run downwards: no cycle between folders or files, rooms in their order."""

import ast
import configparser
import graphlib
import pathlib
import re
import subprocess
import sys

import pytest

REPO = pathlib.Path(__file__).parents[1]
PACKAGE = REPO / "sparsecap_jax"
# Rooms from the ground up; a room imports from rows below its own alone.
ROWS = (
    ("version", "errors", "stopping", "machine"),
    ("types", "settings", "files", "text"),
    ("arrays", "array_modules", "locks", "model_fields", "trees"),
    ("formulas", "model_files"),
    ("pruning", "torch_files", "tokenizers", "models", "data"),
    ("decoding", "photos", "scst"),
    ("sparse",),
    ("captioning", "evaluation", "training", "interop"),
    ("runs",),
    ("captioner", "exporting"),
    ("service",),
    ("commands",),
    ("experiments", "extend"),
)
ROW = {room: number for number, row in enumerate(ROWS) for room in row}
PRUNING = {"types", "errors", "settings"}


def module_files():
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(REPO).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports(path, files):
    """Modules of the package that a file imports, within functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name in files}
        elif isinstance(node, ast.ImportFrom) and node.module in files:
            whole = (f"{node.module}.{alias.name}" for alias in node.names)
            names |= {name if name in files else node.module for name in whole}
    return names


@pytest.fixture(scope="module")
def graph():
    files = module_files()
    return {name: imports(path, files) - {name} for name, path in files.items()}


def room(module):
    return module.split(".")[1] if "." in module else ""


def test_every_room_has_a_row():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__"} == set(ROW)


def test_rooms_import_downwards(graph):
    upward = [
        f"{module} imports {target}"
        for module, targets in graph.items()
        for target in targets
        if room(module)
        and room(target) not in ("", room(module))
        and ROW[room(target)] >= ROW[room(module)]
    ]
    assert not upward


def test_files_form_no_cycle(graph):
    """The package's front door aside, which names everything and imports nothing."""
    del graph["sparsecap_jax"]
    graphlib.TopologicalSorter(graph).prepare()


def test_pruning_needs_the_ground_floor_alone(graph):
    rooms = {
        room(target) for module in graph if room(module) == "pruning" for target in graph[module]
    }
    assert rooms - {"pruning"} <= PRUNING


def test_the_check_sees_imports_within_functions(graph):
    assert "sparsecap_jax.runs.loop" in graph["sparsecap_jax.experiments.demo"]


@pytest.mark.parametrize("module", ["decoding.options", "decoding"])
def test_options_of_a_search_need_no_jax(module):
    code = (
        f"import sys, sparsecap_jax.{module}; from sparsecap_jax.decoding import DecodeOptions; "
        "DecodeOptions(); print([m for m in ('jax', 'flax', 'numpy') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert loaded == "[]\n"


def test_optional_packages_are_asked_for_with_their_extra():
    """Packages that setup.cfg does not always install go through `optional_package`."""
    setup = configparser.ConfigParser()
    setup.read(REPO / "setup.cfg")
    installed = re.findall(r"^[\w-]+", setup["options"]["install_requires"], re.MULTILINE)
    installed = {name.replace("-", "_").lower() for name in installed}
    # Named differently, or brought along by Orbax.
    installed |= {"pil", "absl", "orbax", "tensorstore", "sparsecap_jax"}
    imported = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.partition(".")[0] for name in names}
    missing = {name for name in imported if name.lower() not in installed}
    missing -= sys.stdlib_module_names
    serving = {"prometheus_client", "starlette", "uvicorn"}
    others = {"h5py", "onnx", "onnxruntime", "sklearn", "torch", "torchvision"}
    assert missing == others | serving  # and the weights, which are no import
    extras = setup["options.extras_require"]
    for path in (REPO / "README.md", *(REPO / "docs").rglob("*.md"), *PACKAGE.rglob("*.py")):
        for names in re.findall(r"sparsecap_jax\[([a-z0-9,]+)\]", path.read_text("utf-8")):
            assert {*names.split(",")} <= {*extras}, path
