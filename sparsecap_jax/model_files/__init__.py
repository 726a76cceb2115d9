"""One file for a model: small, checked, and read without executing anything (docs/formats.md)."""

from sparsecap_jax.model_files.checks import check_paths
from sparsecap_jax.model_files.container import MAGIC, ModelFile, write_model
from sparsecap_jax.model_files.safetensors import read_safetensors, write_safetensors
from sparsecap_jax.model_files.values import FORMS

__all__ = [
    "FORMS",
    "MAGIC",
    "ModelFile",
    "check_paths",
    "read_safetensors",
    "write_model",
    "write_safetensors",
]
