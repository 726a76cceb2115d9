"""A captioner as a folder of static files: photos are captioned in the browser (docs/web.md)."""

import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from sparsecap_jax.data.records import find_pictures
from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.exporting.extractor import extractor_bytes
from sparsecap_jax.exporting.web_captioner import WebCaptioner, pack_captioner
from sparsecap_jax.exporting.web_runtime import SCRIPT, WASM, runtime_files
from sparsecap_jax.files import new_folder, unused
from sparsecap_jax.locks import locked
from sparsecap_jax.photos.images import EXAMPLES
from sparsecap_jax.runs.finished import FinishedRun, has_sparse_runtime, load_finished
from sparsecap_jax.runs.published import resolve_run

PAGE = pathlib.Path(__file__).with_name("page")
"""Folder of the files that all pages share."""

CAPTIONER, EXTRACTOR, RUNTIME = "captioner.bin", "extractor.bin", "runtime.bin"
RUNTIME_SCRIPT, _WORKER = "runtime.js", "sw.js"


def write_site(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    *,
    onnxruntime_web: str | os.PathLike = "",
    report: Callable[[str], None] = print,
) -> None:
    """Write a page that captions photos in the browser, for any host of static files.

    Args:
        checkpoint: run directory with finished weights, model file, or name of a captioner of the
            package; trained on features of EfficientNet-Lite.
        output: folder to write, new or empty.
        onnxruntime_web: see `web_runtime.runtime_files`.
        report: takes one line at a time.

    Raises:
        CheckpointError: there is no such captioner, it is damaged, or `output` is in use.
        ConfigError: a model, search or extractor that a page does not have, or a missing package.
        DataError: onnxruntime-web cannot be had.
    """
    output = unused(output)
    files = site_files(checkpoint, onnxruntime_web, report)
    with locked(output, folder=False), new_folder(output) as folder:
        for name, content in files.items():
            target = folder / name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
    sizes = {name: len(content) for name, content in files.items()}
    whole, captioner = (size / 1e6 for size in (sum(sizes.values()), sizes[CAPTIONER]))
    report(f"wrote {output}: {len(files)} files, {whole:.1f} MB, the captioner {captioner:.2f} MB")


def site_files(
    checkpoint: str | os.PathLike,
    onnxruntime_web: str | os.PathLike = "",
    report: Callable[[str], None] = print,
) -> dict[str, bytes]:
    """Return the files of a page by relative path; see `write_site`."""
    path = resolve_run(checkpoint)
    if not has_sparse_runtime(path):
        raise CheckpointError(
            f"{path}: expected finished weights of a model of the sparse runtime, a run directory "
            "or a model file"
        )
    run = load_finished(path)
    captioner = pack_captioner(run)
    extractor, notes = extractor_bytes(run.extractor, "float16")
    runtime = runtime_files(onnxruntime_web, report)
    files = {
        CAPTIONER: captioner.content,
        EXTRACTOR: extractor,
        RUNTIME: zlib.compress(runtime[WASM], 9),
        RUNTIME_SCRIPT: runtime[SCRIPT],
    }
    files |= {name: content for name, content in page_files().items() if name != _WORKER}
    files["site.json"] = _json(_about(path, run, captioner, notes, files))
    return {**files, _WORKER: _service_worker(files)}


def page_files() -> dict[str, bytes]:
    """Return the files that all pages share, example photos among them."""
    files = {path.name: path.read_bytes() for path in sorted(PAGE.iterdir()) if path.is_file()}
    return files | {f"examples/{path.name}": path.read_bytes() for path in find_pictures(EXAMPLES)}


def _about(
    path: pathlib.Path,
    run: FinishedRun,
    captioner: WebCaptioner,
    extractor: Mapping[str, Any],
    files: Mapping[str, bytes],
) -> dict[str, Any]:
    """Return what the page says about itself."""
    return {
        "name": path.stem,
        "model": run.config.model.name,
        "extractor": extractor["settings"]["extractor"],
        "size": extractor["settings"]["size"],
        "boxes": extractor["boxes"],
        "tensors": captioner.tensors,
        "examples": [name for name in files if name.startswith("examples/")],
        "bytes": {name: len(content) for name, content in files.items()},
    }


def _service_worker(files: Mapping[str, bytes]) -> bytes:
    """Return the service worker, which keeps all files for use offline, anew where any changed."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    names = ["./", *sorted(name for name in files if name != "index.html")]
    head = f'const VERSION = "{digest.hexdigest()[:16]}";\nconst FILES = {json.dumps(names)};\n'
    return head.encode() + (PAGE / _WORKER).read_bytes()


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
