"""Captions on CPU by sparse products, in NumPy: no JAX, and at most a few small kernels to compile.

`decode` and `attention_weights` are those of `sparsecap_jax.decoding`, for a model that
`make_sparse_model` prepared; the searches are the same code. Weights are pruned, and each matrix is
kept in the form that costs least (`matrices.Product`). docs/sparse_runtime.md says from which
sparsity on this is faster than XLA.
"""

from sparsecap_jax.sparse.entries import attention_weights, decode
from sparsecap_jax.sparse.models import SPARSE_MODELS, make_sparse_model

__all__ = ["SPARSE_MODELS", "attention_weights", "decode", "make_sparse_model"]
