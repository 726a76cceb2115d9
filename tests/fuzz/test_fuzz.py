"""Damaged files through every reader of the package, and proof that the table has every reader."""

import ast
import json
import pathlib
import signal
import subprocess
import sys
import threading

import fuzz_runs
import psutil
import pytest
from fuzz_readers import READERS
from fuzz_runs import Runs, faults, made

import sparsecap_jax
from sparsecap_jax.data.datasets import DATASETS
from sparsecap_jax.data.stores import STORES
from sparsecap_jax.photos.extractors import EXTRACTORS
from sparsecap_jax.tokenizers import TOKENIZERS

PACKAGE = pathlib.Path(sparsecap_jax.__file__).parent
KINDS = {"store": STORES, "dataset": DATASETS, "tokenizer": TOKENIZERS, "extractor": EXTRACTORS}
OPENERS = {
    *(
        "open",
        "open_regular",
        "read_text",
        "read_bytes",
        "fromfile",
        "memmap",
        "loadtxt",
        "genfromtxt",
        "ZipFile",
    ),
    *("File", "connect", "read_json", "read_settings", "read_csv", "read_lines", "ArrayFile"),
    *("load_restricted", "load_torch_file", "LoadFromSerializedProto"),
    *("ArrayRecordReader", "builder_from_directory"),
}
MODULES = {"np", "numpy", "json", "pickle", "marshal", "torch", "gzip", "lzma", "bz2"}
# Functions that open files which nobody hands over, or are run by nothing but their own command.
OWN = {
    "commands/cli.py:errors_in_one_line": "the null device, to write",
    "commands/console.py": "the source of the package",
    "commands/docs.py": "the source of the package",
    "data/caption_files.py:official_captions": "an archive of an installed package",
    "data/karpathy.py:karpathy_ids": "lists that come with the package",
    "data/toy_scenes.py:_temporary": "a lock",
    "data/toy_scenes.py:measure": "scenes that the same process has drawn",
    "evaluation/_paraphrases.py": "a table of an installed package",
    "evaluation/java_scores.py": "of an installed package, or what its programs have written",
    "evaluation/pages/__init__.py:_read": "templates that come with the package",
    "evaluation/published.py": "a table that comes with the package",
    "evaluation/caption_picture.py": "pictures of scenes that the package has drawn",
    "evaluation/summary_picture.py:_draw_sample": "a picture that the same process has made",
    "exporting/manifest.py:file_entry": "files that the same process has written",
    "exporting/packages.py:_installed": "a list that comes with the package",
    "exporting/runner.py": "a program of its own, copied into the folders that it reads",
    "exporting/web.py": "files and photos that come with the package",
    "exporting/web_runtime.py:_unpacked": "a package with the published checksum",
    "experiments/demo.py": "captions that the same process has written",
    "experiments/toy_models.py": "captions that the same process has written",
}


def opening_functions():
    """Yield `FILE:QUALNAME` of every function of the package that opens a file for reading."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        for qualname, call in calls_in(ast.parse(path.read_text("utf-8")), ()):
            if opens(call):
                yield f"{name}:{qualname or '<module>'}"


def calls_in(node, scope):
    """Yield (qualified name of the function around it, call) of every call below a node."""
    for child in ast.iter_child_nodes(node):
        inner = scope
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = (*scope, child.name, "<locals>")
        elif isinstance(child, ast.ClassDef):
            inner = (*scope, child.name)
        elif isinstance(child, ast.Call):
            yield ".".join(scope).removesuffix(".<locals>"), child
        yield from calls_in(child, inner)


def opens(call):
    """Return whether a call opens a file for reading."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name == "restore":
        return ast.unparse(call.func).endswith("_manager.restore")
    if name == "load":
        return getattr(getattr(call.func, "value", None), "id", "") in MODULES
    modes = [a.value for a in call.args if isinstance(a, ast.Constant)]
    modes = [mode for mode in modes if isinstance(mode, str) and mode[:1] in ("w", "x", "a")]
    return name in OPENERS and not any("+" not in mode for mode in modes)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Functions of the package that reading the whole files of all readers runs."""
    codes = {}

    def note(frame, event, _):  # of every call, so no more than this
        if event == "call":
            codes[id(frame.f_code)] = frame.f_code

    folder = tmp_path_factory.mktemp("whole")
    before = sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        for number, reader in enumerate(READERS.values()):
            made(reader, folder / str(number))
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
    return {
        f"{pathlib.Path(code.co_filename).relative_to(PACKAGE).as_posix()}:{code.co_qualname}"
        for code in list(codes.values())  # threads that a reader has started note on
        if code.co_filename.startswith(str(PACKAGE))
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_of_a_registry_has_a_reader(kind):
    named = {tuple(name.split(":")[:2]) for name in READERS}
    assert {key for key in KINDS[kind] if (kind, key) not in named} == set()


def test_every_function_that_opens_a_file_is_run_by_a_reader(ran):
    left_out = {
        function
        for function in opening_functions()
        if function not in ran and not {function, function.partition(":")[0]} & OWN.keys()
    }
    assert left_out == set(), "add a reader of such a file to a module of fuzz_readers.py"


def test_the_walk_finds_every_way_to_open_a_file():
    source = """
class A:
    def f(self, path):
        def g():
            return [np.load(path) for _ in range(3)]
        with path.open("a+b") as file, open(path, "w"):
            zipfile.ZipFile(file, "w")
def h(path):
    path.open("wb"), checkpoint.load(path)
h5py.File(path, "r")
"""
    found = [name for name, call in calls_in(ast.parse(source), ()) if opens(call)]
    assert sorted(found) == ["", "A.f", "A.f.<locals>.g"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_no_process_and_continues(tmp_path, number):
    command = [sys.executable, fuzz_runs.__file__, "--reader=weights:plain", "--jobs=1", "--seed=7"]
    command += ["--count=100000", "--chunk=20", f"--state={tmp_path}/state"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("weights:plain: 20 of 100,000;")
        (worker,) = psutil.Process(process.pid).children()
        process.send_signal(number)
        process.wait()
        psutil.wait_procs([worker], timeout=30)
        assert not worker.is_running()
    done = json.loads((tmp_path / "state").read_text())["readers"]["weights:plain"]
    assert done["runs"] >= 20 and not done["failures"]
    repeated = Runs(["weights:plain"], done["runs"] + 1, 7, state=tmp_path / "state")
    assert repeated.results["weights:plain"].runs == done["runs"]
    if number == signal.SIGTERM:
        (result,) = repeated.run().values()
        assert result.runs == done["runs"] + 1
        assert result.accepted - done["accepted"] in (0, 1)
    anew = Runs(["weights:plain"], 3, 8, state=tmp_path / "state")
    assert anew.results["weights:plain"].runs == 0


def test_damaged_files(tmp_path):
    results = Runs(list(READERS), 24, failures=tmp_path).run()
    assert set(results) == set(READERS) and all(result.runs for result in results.values())
    assert faults(results) == []
