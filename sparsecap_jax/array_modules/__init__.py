"""Array operations of the searches: the same names for JAX, in compiled calls, and for NumPy.

A search asks `array_module` for the module that fits its arrays. What JAX and NumPy share it has
from there; what differs is written in `jax_arrays` and, free of JAX, in `numpy_arrays`.
"""

import importlib
from types import ModuleType
from typing import Any

import numpy as np

from sparsecap_jax.array_modules import numpy_arrays


def array_module(array: Any) -> ModuleType:
    """Return `numpy_arrays` for an array of NumPy, `jax_arrays` for one of JAX, traced or not."""
    if isinstance(array, np.ndarray):
        return numpy_arrays
    return importlib.import_module("sparsecap_jax.array_modules.jax_arrays")
