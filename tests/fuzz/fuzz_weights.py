"""Readers of weights and model files."""

import dataclasses
import functools
import pathlib
import tempfile

import captioner_runs
import numpy as np
from flax.traverse_util import flatten_dict
from fuzz_reader import READERS, Reader, reader

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.errors import CheckpointError, ConfigError, DataError
from sparsecap_jax.model_files import FORMS, ModelFile, write_model
from sparsecap_jax.runs.directory import load_run, save_model
from sparsecap_jax.runs.weights import load_weights, save_safetensors, save_weights


def _leaves():
    """Return params and masks of which every form has something to store."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(12, 9)).astype(np.float32)
    mask = (rng.random((12, 9)) > 0.7).astype(np.float32)
    params = {"layer": {"kernel": kernel * mask, "bias": np.ones(9, np.float32)}}
    return params, {"layer": {"kernel": mask}}


def weights_file(folder, **options):
    save_weights(folder / "weights.npz", *_leaves(), **options)


def _load_weights(folder):
    return load_weights(folder / "weights.npz")


for kind, options in (("plain", {}), ("compact", {"compact": True})):
    make = functools.partial(weights_file, **options)
    READERS[f"weights:{kind}"] = Reader(make, _load_weights, (CheckpointError,))


def _model_file(folder, form):
    params, masks = _leaves()
    write_model(
        folder / "model.scap",
        *(
            {"/".join(path): leaf for path, leaf in flatten_dict(t).items()}
            for t in (params, masks)
        ),
        form=form,
        notes={"config": {"a": 1}},
        files={"tokenizer/word.model": b"abc" * 50},
    )


def _read_model_file(folder):
    with ModelFile(folder / "model.scap") as file:
        file.files()
    return load_weights(folder / "model.scap")


for form in FORMS:
    make = functools.partial(_model_file, form=form)
    READERS[f"model_file:{form}"] = Reader(make, _read_model_file, (CheckpointError,))


def _safetensors(folder):
    params, masks = _leaves()
    params["layer"]["kernel"][:3] = 0  # some of them kept
    save_safetensors(folder / "weights.safetensors", params, masks)


@reader("safetensors", errors=(CheckpointError,), make=_safetensors)
def _read_safetensors(folder):
    return load_weights(folder / "weights.safetensors")


def run_file(folder):
    with tempfile.TemporaryDirectory() as temporary:
        run = load_run(captioner_runs.make_run(pathlib.Path(temporary, "run")))
    extractor = {"extractor": "lite0", "size": 64, "half": False}
    run = dataclasses.replace(run, extractor=extractor, search={"beam_size": 3})
    save_model(folder / "model.scap", run, "int8")


@reader(
    "run:model_file",
    errors=(CheckpointError, ConfigError, DataError),
    slower=20,
    make=run_file,
)
def _read_run_file(folder):
    return Captioner.load(folder / "model.scap")
