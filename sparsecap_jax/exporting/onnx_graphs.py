"""Graphs as ONNX, traced by jax2onnx."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.exporting.graphs import Graph
from sparsecap_jax.exporting.onnx_weights import OPSET, store
from sparsecap_jax.exporting.packages import load_jax2onnx


def onnx_bytes(
    graph: Graph, params: Mapping[str, Any], form: str = "float32", *, sparse: bool = False
) -> bytes:
    """Return a graph with its weights as an ONNX file; for `form` and `sparse` see `store`.

    Raises:
        ConfigError: jax2onnx is missing or cannot convert the graph, or faulty options.
    """
    model = _traced(graph)
    store(model, {name: np.asarray(params[name]) for name in graph.params}, form, sparse=sparse)
    return model.SerializeToString()


def _traced(graph: Graph) -> Any:
    """Return the `onnx.ModelProto` of a graph whose first inputs are its weights."""
    jax2onnx, names = load_jax2onnx(), [*graph.params, *graph.inputs]
    specs = [jax.ShapeDtypeStruct(s.shape, s.dtype) for s in (graph.params | graph.inputs).values()]

    def positional(*arrays: Any) -> tuple[Any, ...]:
        named = dict(zip(names, arrays, strict=True))
        parts = [{name: named[name] for name in part} for part in (graph.params, graph.inputs)]
        outputs = graph.function(*parts)
        return tuple(outputs[name] for name in graph.outputs)

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it logs at the root
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return jax2onnx.to_onnx(
                positional,
                specs,
                model_name=graph.name,
                opset=OPSET,
                input_names=names,
                output_names=list(graph.outputs),
            )
    except Exception as error:  # of any type, for what it does not know
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"jax2onnx cannot convert {graph.name}: {reason:.300}") from error
    finally:
        logging.disable(before)
