"""Weights of an ONNX graph: dense or sparse initialisers of float32, float16 or int8.

Products are of float32 in every form: a Cast, or a Cast and a product with the steps, follows each
rounded tensor. ONNX Runtime computes them once, when it loads the file.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.model_files import FORMS, values

OPSET, IR_VERSION = 21, 10
"""Versions of ONNX's operators and files; ONNX Runtime has them since 1.20."""

# Bytes of the place of a kept weight.
_INDEX_BYTES = 8
_MAX_BYTES = 2**31 - 1  # of a file of Protocol Buffers


class Rounded(NamedTuple):
    """A tensor as int8: `multiples * steps`.

    Attributes:
        multiples: int8, from -127 to 127, of the tensor's shape.
        steps: float32, of the same rank, 1 on all axes but that of the outputs.
    """

    multiples: np.ndarray
    steps: np.ndarray


def rounded(value: np.ndarray, axis: int) -> Rounded:
    """Round a matrix to int8, with a step for each place along `axis`, as model files do.

    See `model_files.values.quantize`: zeros stay zeros. Kernels of convolutions, which model files
    do not have, get the smallest steps, their largest magnitude / 127.
    """
    if value.ndim == 4:
        largest = np.abs(value).max(axis=(1, 2, 3), keepdims=True)
        steps = np.where(largest > 0, largest / np.float32(127), np.float32(1))
        return Rounded(np.rint(value / steps).astype(np.int8), steps.astype(np.float32))
    outputs = value.shape[axis]
    shape = [outputs if axis % value.ndim == n else 1 for n in range(value.ndim)]
    output = np.broadcast_to(np.arange(outputs).reshape(shape), value.shape)
    kept = np.flatnonzero(value)
    coded, exponents, lowest = values.quantize(value.ravel()[kept], output.ravel()[kept], outputs)
    multiples = np.zeros(value.size, np.int8)
    multiples[kept] = coded.astype(np.int16) - 128
    steps = values.steps(exponents.astype(np.int64) + lowest)
    return Rounded(multiples.reshape(value.shape), steps.astype(np.float32).reshape(shape))


def store(model: Any, params: Mapping[str, np.ndarray], form: str, *, sparse: bool = False) -> None:
    """Turn inputs of an ONNX model into initialisers of the same names.

    Args:
        model: an `onnx.ModelProto`, which changes.
        params: float32, by the name of their input; int8 has a step for each row of what is named
            "embedding", for each column of other matrices, and for each output of convolutions.
        form: one of `model_files.FORMS`; int8 is for matrices, vectors are float16 then.
        sparse: whether tensors are stored sparse where that is smaller.

    Raises:
        ConfigError: no such form, or weights beyond the 2 GiB of a file.
    """
    if form not in FORMS:
        raise ConfigError(f"weights is {form!r}; expected one of {', '.join(FORMS)}")
    graph, nodes = model.graph, []
    weights = {value.name: value for value in graph.input if value.name in params}
    for name, value in weights.items():
        graph.input.remove(value)
        tensors, casts = _stored(name, np.asarray(params[name], np.float32), form)
        nodes += casts
        for key, tensor in tensors.items():
            _add(graph, key, tensor, sparse)
    first = [*nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(first)
    if model.ByteSize() > _MAX_BYTES:
        raise ConfigError(f"{model.ByteSize()} bytes of weights; an ONNX file holds {_MAX_BYTES}")


def _stored(name: str, value: np.ndarray, form: str) -> tuple[dict[str, np.ndarray], list[Any]]:
    """Return the tensors that hold a weight, and the nodes that turn them into it."""
    from onnx import TensorProto, helper

    form = values.form_of(value.ravel(), form, value.ndim)
    if form == "float32":
        return {name: value}, []
    key = f"{name}:{form}"
    if form == "float16":
        cast = helper.make_node("Cast", [key], [name], to=TensorProto.FLOAT)
        return {key: value.astype(np.float16)}, [cast]
    multiples, steps = rounded(value, 0 if name.endswith("embedding") else -1)
    cast = helper.make_node("Cast", [key], [f"{name}:multiples"], to=TensorProto.FLOAT)
    product = helper.make_node("Mul", [f"{name}:multiples", f"{name}:steps"], [name])
    return {key: multiples, f"{name}:steps": steps}, [cast, product]


def _add(graph: Any, name: str, tensor: np.ndarray, sparse: bool) -> None:
    from onnx import helper, numpy_helper

    kept = np.flatnonzero(tensor)
    if sparse and len(kept) * (tensor.itemsize + _INDEX_BYTES) < tensor.nbytes:
        of_values = numpy_helper.from_array(tensor.ravel()[kept], name)
        places = numpy_helper.from_array(kept.astype(np.int64), f"{name}:places")
        graph.sparse_initializer.append(
            helper.make_sparse_tensor(of_values, places, list(tensor.shape))
        )
    else:
        graph.initializer.append(numpy_helper.from_array(tensor, name))
