"""Initialisers of every form hold the weights that they should."""

import numpy as np
import pytest

from sparsecap_jax.model_files import ModelFile, write_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def model_of(params):
    """A model that returns its inputs."""
    from onnx import TensorProto, helper

    def described(prefix):
        return [
            helper.make_tensor_value_info(prefix + name, TensorProto.FLOAT, leaf.shape)
            for name, leaf in params.items()
        ]

    nodes = [helper.make_node("Identity", [name], [f"out {name}"]) for name in params]
    graph = helper.make_graph(nodes, "copy", described(""), described("out "))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("form", ["float32", "float16", "int8"])
def test_values_are_those_of_a_model_file(tmp_path, form, sparse):
    from sparsecap_jax.exporting.onnx_weights import store

    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(40, 30)) * (rng.random((40, 30)) < 0.05)
    params = {
        "a/kernel": kernel.astype(np.float32),
        "b/embedding": rng.normal(size=(12, 5)).astype(np.float32),
        "b/bias": rng.normal(size=7).astype(np.float32),
        "c/kernel": np.zeros((3, 4), np.float32),
    }
    model = model_of(params)
    store(model, params, form, sparse=sparse)
    assert not model.graph.input
    stored = [tensor.values.name for tensor in model.graph.sparse_initializer]
    suffix = "" if form == "float32" else f":{form}"
    assert stored == ([f"a/kernel{suffix}", f"c/kernel{suffix}"] if sparse else [])
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    masks = {name: params[name] != 0 for name in ("a/kernel", "c/kernel")}
    write_model(tmp_path / "m.scap", params, masks, form=form)
    with ModelFile(tmp_path / "m.scap") as file:
        expected = file.read()[0]
    for name, found in zip(params, session.run(None, {}), strict=True):
        np.testing.assert_array_equal(found, expected[name], err_msg=name)
