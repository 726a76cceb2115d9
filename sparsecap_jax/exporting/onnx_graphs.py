"""Graphs as ONNX, traced by jax2onnx."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.exporting.graphs import symbolic
from sparsecap_jax.exporting.onnx_weights import OPSET, store
from sparsecap_jax.exporting.packages import load_jax2onnx
from sparsecap_jax.exporting.specs import Graph, Spec


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
    specs = symbolic(graph.params | graph.inputs)

    def positional(*arrays: Any) -> tuple[Any, ...]:
        named = dict(zip(names, arrays, strict=True))
        parts = [{name: named[name] for name in part} for part in (graph.params, graph.inputs)]
        outputs = graph.function(*parts)
        return tuple(outputs[name] for name in graph.outputs)

    inputs = [specs[name] for name in names]
    # Traced by JAX itself: jax2onnx puts functions that know no unknown sizes in place of NumPy's.
    function = jaxpr_as_fun(jax.make_jaxpr(positional)(*inputs))
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it logs at the root
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = jax2onnx.to_onnx(
                function, inputs, model_name=graph.name, opset=OPSET, input_names=names
            )
    except Exception as error:  # of any type, for what it does not know
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"jax2onnx cannot convert {graph.name}: {reason:.300}") from error
    finally:
        logging.disable(before)
    _name_outputs(model.graph, graph.outputs)
    _drop_unused(model.graph)
    return model


def _name_outputs(graph: Any, outputs: Mapping[str, Spec]) -> None:
    """Name outputs by nodes of their own (an output may be an input), and their open sizes."""
    from onnx import helper

    for value, (name, spec) in zip(graph.output, outputs.items(), strict=True):
        graph.node.append(helper.make_node("Identity", [value.name], [name], f"output:{name}"))
        kind = value.type.tensor_type.elem_type
        value.CopyFrom(helper.make_tensor_value_info(name, kind, spec.shape))


def _drop_unused(graph: Any) -> set[str]:
    """Drop constants that nothing reads, and notes; of loop bodies too. Return the names read."""
    del graph.value_info[:], graph.metadata_props[:]
    read = {value.name for value in graph.output}
    for node in graph.node:
        read |= {*node.input}
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                read |= _drop_unused(attribute.g)
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return read
