"""Entries of the manifest of an exported folder: graphs, tokenizer, search, versions.

docs/export.md describes them. `runner.py`, which is copied into folders of ONNX, reads them with
nothing but Python; web pages have those of tokenizer and search.
"""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

from sparsecap_jax.decoding.options import DecodeOptions
from sparsecap_jax.decoding.stepper import penalty_factors
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.exporting.specs import Graph, Spec
from sparsecap_jax.text import AM_COMPOSITIONS
from sparsecap_jax.tokenizers import Tokenizer
from sparsecap_jax.tokenizers.radix import RadixTokenizer
from sparsecap_jax.version import __version__

FORMAT_VERSION = 1

MANIFEST = "manifest.json"
RUNNER = pathlib.Path(__file__).with_name("runner.py")


def file_entry(path: pathlib.Path) -> dict[str, Any]:
    """Return name, size and SHA-256 of a file."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return {"file": path.name, "bytes": len(content), "sha256": digest}


def graph_entry(path: pathlib.Path, graph: Graph) -> dict[str, Any]:
    """Return the entry of the file of a graph, with its inputs and outputs."""
    return {
        **file_entry(path),
        "inputs": specs_entry(graph.inputs),
        "outputs": specs_entry(graph.outputs),
        "params": sorted(graph.params),
    }


def specs_entry(specs: Mapping[str, Spec]) -> dict[str, Any]:
    """Return shapes and dtypes of inputs or outputs by name."""
    return {name: {"shape": list(s.shape), "dtype": s.dtype} for name, s in specs.items()}


def search_entry(options: DecodeOptions) -> dict[str, Any]:
    """Return a search as the runner and a web page take it, in ids.

    Raises:
        ConfigError: it is neither greedy nor a beam search, or has groups or functions of its own.
    """
    if options.method not in ("greedy", "beam") or options.num_groups > 1 or options.constraints:
        raise ConfigError(
            f"search {options.method!r}: an exported captioner searches greedily or with beams; "
            "expected search 'greedy' or 'beam'"
        )
    same = ["method", "beam_size", "max_length", "temperature", "no_repeat", "no_repeat_ngram"]
    same += ["min_length", "bos_id", "eos_id", "pad_id"]
    suppressed = {*options.suppress, *([options.unk_id] if options.suppress_unk else [])}
    return {
        **{name: getattr(options, name) for name in same},
        "factors": penalty_factors(options.length_penalty, options.max_length).tolist(),
        "suppress": sorted(suppressed),
        "bad_endings": sorted(options.bad_endings),
    }


def tokenizer_entry(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return all that turns ids into text, as `runner.Captioner.text` and a web page do."""
    entry: dict[str, Any] = {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size}
    entry |= {name: getattr(tokenizer, name) for name in ("pad_id", "bos_id", "eos_id")}
    if isinstance(tokenizer, RadixTokenizer):
        entry |= {"base": tokenizer.radix_base, "digits": tokenizer.tokens_per_word}
    return {**entry, "compositions": AM_COMPOSITIONS, "pieces": tokenizer.surfaces()}


def manifest(kind: str, **entries: Any) -> dict[str, Any]:
    """Return the manifest of a folder of `kind`, "onnx" or "stablehlo"."""
    return {
        "format": f"sparsecap-{kind}",
        "format_version": FORMAT_VERSION,
        "made_by": f"sparsecap_jax {__version__}",
        **entries,
    }
