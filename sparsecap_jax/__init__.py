"""Sparse image captioning in JAX: models, pruners, self-critical training and decoding."""

from sparsecap_jax.version import __version__

__all__ = ["__version__"]
