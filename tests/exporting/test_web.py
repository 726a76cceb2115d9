"""The folder of a page: its files, sizes and faults; no browser."""

import configparser
import hashlib
import http.client
import io
import json
import pathlib
import shutil
import tarfile

import pytest

from sparsecap_jax.errors import CheckpointError, ConfigError, DataError
from sparsecap_jax.exporting import web, web_runtime
from sparsecap_jax.exporting.web import PAGE, page_files, write_site

REPO = pathlib.Path(__file__).parents[2]


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """A folder with small files in the place of onnxruntime-web's, with checksums of their own."""
    folder = tmp_path / "runtime"
    (folder / "dist").mkdir(parents=True)
    files = {web_runtime.SCRIPT: b"export {};", web_runtime.WASM: bytes(range(256)) * 40}
    for name, content in files.items():
        (folder / "dist" / name).write_bytes(content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(web_runtime, "_CHECKSUMS", sums)
    return folder


@pytest.fixture
def site(tmp_path, runtime):
    pytest.importorskip("onnx")
    lines = []
    write_site("flickr8k-mini", tmp_path / "site", onnxruntime_web=runtime, report=lines.append)
    return tmp_path / "site", lines


def test_all_files_are_kept_for_use_offline(site):
    folder, lines = site
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    head, kept = (folder / "sw.js").read_text().splitlines()[:2]
    names = json.loads(kept.removeprefix("const FILES = ").removesuffix(";"))
    assert {*names, "index.html", "sw.js"} - {"./"} == files
    assert head.startswith('const VERSION = "')
    about = json.loads((folder / "site.json").read_text())
    assert about["bytes"] == {
        name: (folder / name).stat().st_size for name in files - {"sw.js", "site.json"}
    }
    assert [lines[0].split(":")[0], len(lines)] == [f"wrote {folder}", 1]
    assert about["bytes"]["captioner.bin"] <= 500_000
    # With the runtime's 3,725,807 bytes, as deflated and of its script.
    assert sum(path.stat().st_size for path in folder.rglob("*")) + 3_725_807 < 25_000_000


def test_another_file_makes_another_version():
    files = {"a": b"1", "index.html": b"2"}
    versions = {web._service_worker(files)}
    versions.add(web._service_worker(files | {"a": b"2"}))
    versions.add(web._service_worker({"b": b"1", "index.html": b"2"}))
    assert len({version[:40] for version in versions}) == 3


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="expected a new or empty folder"):
        write_site("flickr8k-mini", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_another_runtime_is_refused(runtime):
    assert web_runtime.runtime_files(runtime) == web_runtime.runtime_files(runtime / "dist")
    (runtime / "dist" / web_runtime.WASM).write_bytes(b"another")
    with pytest.raises(ConfigError, match=f"{web_runtime.WASM}: not that of onnxruntime-web 1"):
        web_runtime.runtime_files(runtime)
    with pytest.raises(DataError, match="no such file or folder; expected a file of onnx"):
        web_runtime.runtime_files(runtime / "nowhere")


class Cut(io.BytesIO):
    """An answer that ends before its length."""

    def read(self, size=-1):
        raise http.client.IncompleteRead(b"", 100)


def test_two_processes_may_fetch_the_package_at_once(tmp_path, runtime, monkeypatch):
    place = tmp_path / "cache/sparsecap_jax" / f"onnxruntime-web-{web_runtime.VERSION}"

    def fetch(report):
        shutil.copytree(runtime / "dist", place)  # by the other process, meanwhile
        return b""

    content = {path.name: path.read_bytes() for path in (runtime / "dist").iterdir()}
    monkeypatch.setattr(web_runtime, "_fetch", fetch)
    monkeypatch.setattr(web_runtime, "_unpacked", lambda package: content)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert web_runtime.runtime_files() == web_runtime.runtime_files(runtime)
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_the_package_is_fetched_once_and_must_be_the_published_one(tmp_path, runtime, monkeypatch):
    package = io.BytesIO()
    with tarfile.open(fileobj=package, mode="w:gz") as files:
        for name in web_runtime._CHECKSUMS:
            files.add(runtime / "dist" / name, f"package/dist/{name}")
    answers = [io.BytesIO(package.getvalue())]
    monkeypatch.setattr(web_runtime.urllib.request, "urlopen", lambda url, timeout: answers.pop())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"1\.30\.0\.tgz: not the package that npm published"):
        web_runtime.runtime_files(report=lambda _: None)
    import base64

    digest = base64.b64encode(hashlib.sha512(package.getvalue()).digest()).decode()
    monkeypatch.setattr(web_runtime, "_INTEGRITY", digest)
    answers.append(io.BytesIO(package.getvalue()))
    lines = []
    for _ in range(2):
        found = web_runtime.runtime_files(report=lines.append)
        assert found == web_runtime.runtime_files(runtime)
    assert len(lines) == 1 and "https://registry.npmjs.org/onnxruntime-web/" in lines[0]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    answers.append(Cut())
    with pytest.raises(DataError, match="cannot be fetched: IncompleteRead"):
        web_runtime.runtime_files(report=lambda _: None)
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://registry.example")
    with pytest.raises(ConfigError, match="expected a registry at https"):
        web_runtime.runtime_files()


def test_a_wheel_takes_the_files_of_the_page():
    config = configparser.ConfigParser()
    config.read(REPO / "setup.cfg")
    patterns = config["options.package_data"]["sparsecap_jax.exporting"].split(", ")
    packed = {path for pattern in patterns for path in PAGE.parent.glob(pattern)}
    assert {path for path in PAGE.iterdir() if path.is_file()} <= packed


def test_the_page_names_no_other_place():
    for name, content in page_files().items():
        if name.endswith((".js", ".html", ".css", ".webmanifest")):
            assert b"//" not in content.replace(b"// ", b"").replace(b"//\n", b""), name
    policy = (PAGE / "index.html").read_text().split('Content-Security-Policy" content="')[1]
    assert policy.startswith("default-src 'none'; script-src 'self' 'wasm-unsafe-eval';")
    assert "unsafe-inline" not in policy and "data:" not in policy
