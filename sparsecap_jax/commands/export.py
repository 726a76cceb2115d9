"""Finished captioners as folders that run without this package (`sparsecap export`)."""

import importlib.metadata
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sparsecap_jax.captioning.image_options import decode_options
from sparsecap_jax.captioning.search import BY_IMAGE, SearchOptions, search_options
from sparsecap_jax.decoding.options import DecodeOptions
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.exporting import manifest as entries
from sparsecap_jax.exporting.graphs import make_graphs
from sparsecap_jax.exporting.packages import load_jax2onnx
from sparsecap_jax.exporting.specs import Graph
from sparsecap_jax.exporting.web import write_site
from sparsecap_jax.files import new_folder, unused, write_atomically, write_json
from sparsecap_jax.locks import locked
from sparsecap_jax.model_files import FORMS
from sparsecap_jax.photos.efficientnet_lite import NETWORKS
from sparsecap_jax.runs.directory import LoadedRun, load_run
from sparsecap_jax.runs.published import resolve_run
from sparsecap_jax.settings import nearest
from sparsecap_jax.trees import checksum, flatten

FORMATS = ("onnx", "stablehlo", "web")
DEFAULT_EXTRACTOR = "float16"


def export(
    checkpoint: str | pathlib.Path,
    output: str | pathlib.Path,
    format: str = "onnx",
    *,
    weights: str = "float32",
    sparse: bool = False,
    extractor: str = DEFAULT_EXTRACTOR,
    onnxruntime_web: str = "",
    report: Callable[[str], None] = print,
    **search: Any,
) -> pathlib.Path:
    """Write a captioner as a folder of graphs that run without this package (docs/export.md).

    Args:
        checkpoint: run directory, model file, or name of a captioner of the package.
        output: folder to write; it may not exist, or must be empty.
        format: "onnx", with a runner that needs onnxruntime and NumPy, "stablehlo", or "web", a
            page for browsers (docs/web.md), with the run's own search.
        weights: form of the weights in ONNX: "float32" (lossless), "float16" or "int8".
        sparse: whether pruned weights are sparse initialisers of ONNX, where that is smaller.
        extractor: form of the weights of an EfficientNet-Lite extractor in ONNX; "" leaves it out.
        onnxruntime_web: of a page, see `exporting.web_runtime.runtime_files`.
        report: takes one line of progress at a time.
        **search: see `SearchOptions`; by default the run's own search, else five beams. Options
            without a `search` among them change the run's search, others replace it.

    Returns:
        The folder.

    Raises:
        CheckpointError: there is no run, its weights are missing or corrupt, or `output` is in use.
        ConfigError: options that are faulty or contradict each other, a search that cannot be
            exported, or a package that is needed is missing.
    """
    _check_options(format, weights, sparse, extractor, onnxruntime_web)
    output = unused(output)
    if format == "web":
        if search or extractor != DEFAULT_EXTRACTOR:
            raise ConfigError("a page has the run's own search, and its extractor in float16")
        write_site(checkpoint, output, onnxruntime_web=onnxruntime_web, report=report)
        return output
    run = load_run(resolve_run(checkpoint))
    with_extractor = run.extractor.get("extractor") in NETWORKS
    if extractor not in (DEFAULT_EXTRACTOR, "") and not with_extractor:
        raise ConfigError(f"extractor is {extractor!r}; the run has none that can be exported")
    words = search_options(search if "search" in search else {**run.search, **search})
    options = _decode_options(words, run)
    if format == "onnx":
        load_jax2onnx(report)
    params = {name: np.asarray(leaf) for name, leaf in flatten(run.params).items()}
    graphs = make_graphs(run.model, params, options)
    with locked(output, folder=False), new_folder(output) as folder:
        if format == "onnx":
            content = _write_onnx(folder, graphs, params, weights, sparse)
            if extractor and with_extractor:
                content["graphs"]["extractor"] = _write_extractor(folder, run.extractor, extractor)
            shutil.copy(entries.RUNNER, folder / "caption.py")
        else:
            content = _write_stablehlo(folder, graphs, params)
        entry = entries.manifest(format, **_of_run(run, words, options), **content)
        write_json(folder / entries.MANIFEST, entry)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    shown = ", ".join(f"{name} {size:,}" for name, size in files.items())
    report(f"{format}; wrote {output} ({sum(files.values()):,} bytes: {shown})")
    return output


def _check_options(
    format: str, weights: str, sparse: bool, extractor: str, onnxruntime_web: str
) -> None:
    """Raise a ConfigError where options are faulty, or a format would ignore them."""
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}; {nearest(format, FORMATS)}")
    if weights not in FORMS:
        raise ConfigError(f"weights is {weights!r}; {nearest(weights, FORMS)}")
    if extractor not in ("", *FORMS):
        raise ConfigError(f"extractor is {extractor!r}; {nearest(extractor, FORMS)}")
    if format != "onnx" and (weights != "float32" or sparse):
        raise ConfigError(f"weights and sparse are for ONNX; format is {format!r}")
    if format == "stablehlo" and extractor not in (DEFAULT_EXTRACTOR, ""):
        raise ConfigError("extractor is for ONNX; format is 'stablehlo'")
    if format != "web" and onnxruntime_web:
        raise ConfigError(f"onnxruntime_web is for web pages; format is {format!r}")


def _of_run(run: LoadedRun, words: SearchOptions, options: DecodeOptions) -> dict[str, Any]:
    """Return the entries of a manifest that do not depend on the format."""
    return {
        "model": run.config.model.to_dict(),
        "checksum": checksum(run.params),
        "tokenizer": entries.tokenizer_entry(run.tokenizer),
        "search": entries.search_entry(options),
        "search_options": vars(words),
        "extractor": dict(run.extractor),
    }


def _decode_options(words: SearchOptions, run: LoadedRun) -> DecodeOptions:
    by_image = [name for name in BY_IMAGE if getattr(words, name)]
    if by_image:
        raise ConfigError(f"search option {by_image[0]}: differs by image; it cannot be exported")
    if words.consensus:
        raise ConfigError("search option consensus: draws samples; it cannot be exported")
    options = decode_options(words, run.tokenizer, run.config.max_seq_length)
    entries.search_entry(options)  # says what cannot be exported before work begins
    return options


def _write_onnx(
    folder: pathlib.Path,
    graphs: list[Graph],
    params: Mapping[str, np.ndarray],
    form: str,
    sparse: bool,
) -> dict[str, Any]:
    from sparsecap_jax.exporting.onnx_graphs import onnx_bytes
    from sparsecap_jax.exporting.onnx_weights import OPSET

    written = {}
    for graph in graphs:
        path = folder / f"{graph.name}.onnx"
        with write_atomically(path, "wb") as file:
            file.write(onnx_bytes(graph, params, form, sparse=sparse))
        written[graph.name] = entries.graph_entry(path, graph)
    versions = {"opset": OPSET, "jax2onnx": importlib.metadata.version("jax2onnx")}
    return {"graphs": written, "weights": {"form": form, "sparse": sparse}, "versions": versions}


def _write_extractor(
    folder: pathlib.Path, settings: Mapping[str, Any], form: str
) -> dict[str, Any]:
    from sparsecap_jax.exporting.extractor import extractor_bytes

    content, notes = extractor_bytes(settings, form)
    path = folder / "extractor.onnx"
    with write_atomically(path, "wb") as file:
        file.write(content)
    return {**entries.file_entry(path), "form": form, **notes}


def _write_stablehlo(
    folder: pathlib.Path, graphs: list[Graph], params: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    from sparsecap_jax.exporting.stablehlo import CALLING_CONVENTION, PLATFORMS, serialized

    written = {}
    for graph in graphs:
        path = folder / f"{graph.name}.stablehlo"
        with write_atomically(path, "wb") as file:
            file.write(serialized(graph))
        written[graph.name] = entries.graph_entry(path, graph)
    path = folder / "weights.npz"
    with write_atomically(path, "wb") as file:
        arrays: dict[str, Any] = {**params}
        np.savez_compressed(file, **arrays)
    versions: dict[str, Any] = {
        "jax": importlib.metadata.version("jax"),
        "platforms": list(PLATFORMS),
    }
    versions["calling_convention_version"] = CALLING_CONVENTION
    return {"graphs": written, "weights": entries.file_entry(path), "versions": versions}
