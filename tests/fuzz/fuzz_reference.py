"""Readers of torch's files, of the reference's checkpoints, and of document frequencies."""

import collections
import functools
import pickle
import shutil

import captioner_runs
import numpy as np
from fuzz_reader import READERS, TESTS, Reader, reader

from sparsecap_jax.commands.convert import import_reference
from sparsecap_jax.commands.reference_export import export_reference
from sparsecap_jax.errors import CheckpointError, ConfigError, DataError
from sparsecap_jax.interop.df_pickle import load_df_pickle
from sparsecap_jax.scst.document_frequency import DocumentFrequency, count_documents
from sparsecap_jax.torch_files import SparseTensor, load_torch_file, save_torch_file


def _state_dict():
    tensors = {"w": np.ones((3, 2), np.float32), "n": np.arange(4)}
    return {**tensors, "s": SparseTensor.from_dense(np.eye(3, dtype=np.float32))}


def _torch(folder):
    save_torch_file(folder / "model.pth", _state_dict())


def _legacy(folder):
    shutil.copy(TESTS / "golden/torch/legacy.pth", folder / "model.pth")


def _load_torch(folder):
    return load_torch_file(folder / "model.pth")


READERS["torch:zip"] = Reader(_torch, _load_torch, (CheckpointError,))
READERS["torch:legacy"] = Reader(_legacy, _load_torch, (CheckpointError,))


def _reference(folder, model, packed):
    """Write a checkpoint of the reference as a folder, or as a zip."""
    captioner_runs.make_run(folder / "run", model)
    export_reference(folder / "run", folder / "reference", report=lambda line: None)
    shutil.rmtree(folder / "run")
    if packed:
        shutil.make_archive(str(folder / "reference"), "zip", folder / "reference")
        shutil.rmtree(folder / "reference")


for model in captioner_runs.SIZES:
    for suffix in ("", ".zip"):

        @reader(
            f"reference:{model}{suffix}",
            errors=(CheckpointError, ConfigError, DataError),
            make=functools.partial(_reference, model=model, packed=bool(suffix)),
        )
        def _read_reference(folder, suffix=suffix):
            output = folder / "imported"
            return import_reference(folder / f"reference{suffix}", output, lambda line: None)


def _df(folder):
    count_documents([["a dog", "a cat runs"], ["a dog runs"]], eos="<eos>").save(folder / "df.npz")


@reader("document_frequency", make=_df)
def _read_df(folder):
    found = DocumentFrequency.load(folder / "df.npz")
    return found.idf(np.array([[0, 1, 2, 3]]))


def _df_pickle(folder, protocol):
    counts = collections.defaultdict(float, {("a",): 2.0, ("a", "dog"): 1.0, ("<eos>",): 3.0})
    content = {"ref_len": 3, "document_frequency": counts}
    (folder / "words.p").write_bytes(pickle.dumps(content, protocol))


for protocol in (2, 4):

    @reader(f"df_pickle:{protocol}", make=functools.partial(_df_pickle, protocol=protocol))
    def _read_df_pickle(folder):
        return load_df_pickle(folder / "words.p")
