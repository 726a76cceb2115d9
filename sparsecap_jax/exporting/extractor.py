"""EfficientNet-Lite extractors as ONNX graphs, from pixels to the features of windows.

The graph is written layer by layer, with channels first, batch norms folded and biases inside of
the convolutions, as runtimes want it; it needs neither JAX nor jax2onnx.
"""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from jaxtyping import Float

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.exporting.manifest import specs_entry
from sparsecap_jax.exporting.onnx_weights import IR_VERSION, OPSET, store
from sparsecap_jax.exporting.specs import Spec
from sparsecap_jax.photos.efficientnet_lite import (
    FEATURES,
    NETWORKS,
    STRIDE,
    block_shapes,
    load_params,
)
from sparsecap_jax.photos.extractors import Lite, pooling_weights, remake_extractor
from sparsecap_jax.settings import optional_package
from sparsecap_jax.trees import flatten


def extractor_bytes(
    settings: Mapping[str, Any], form: str = "float32"
) -> tuple[bytes, dict[str, Any]]:
    """Return an extractor as an ONNX file, and what a manifest says about it.

    Its input is `pixels [b, S, S, 3]`, uint8 RGB of photos squeezed to a square by Pillow's bicubic
    filter. Its outputs are `features [b, R, 1280]` of the windows, `fc [b, 1280]`, the mean over
    the map, both times the extractor's `scale`, and `map [b, h, w, 1280]`, all float32.

    Args:
        settings: of the extractor, as in `extractor.json`: `{"extractor": "lite0", "size": 320,
            "grid": 0, "pyramid": [1, 2, 3]}`.
        form: of the weights, one of `model_files.FORMS`.

    Raises:
        ConfigError: another extractor than EfficientNet-Lite, its weights are not installed, or the
            package onnx is not.
    """
    optional_package("onnx", "onnx", "export to ONNX")
    network = settings.get("extractor")
    if network not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise ConfigError(f"extractor {network!r:.80} cannot be exported; expected one of {known}")
    extractor = cast(Lite, remake_extractor(settings))
    size, boxes = extractor.windows.size, extractor.boxes
    params = {
        _key(name): leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf
        for name, leaf in flatten(load_params(network)).items()
        if not name.startswith("classes/")
    }
    side = size // STRIDE
    outputs = {
        "features": Spec(("b", len(boxes), FEATURES), "float32"),
        "fc": Spec(("b", FEATURES), "float32"),
        "map": Spec(("b", side, side, FEATURES), "float32"),
    }
    scale = extractor.windows.scale
    model = _Network(network, size, params).model(boxes, scale, outputs)
    store(model, params, form)
    notes = {
        "inputs": specs_entry({"pixels": Spec(("b", size, size, 3), "uint8")}),
        "outputs": specs_entry(outputs),
        "settings": dict(extractor.settings),
        "boxes": boxes.tolist(),
        "photo": f"RGB, upright, squeezed to {size} x {size} pixels by Pillow's bicubic filter",
    }
    return model.SerializeToString(), notes


def _key(name: str) -> str:
    """Return the name of a weight in the graph; kernels are `[out, in, h, w]` there."""
    return name.replace("/kernel", "/kernel_OIHW")


class _Network:
    """The graph of a network for photos of one size; its weights are inputs at first."""

    def __init__(self, network: str, size: int, params: Mapping[str, np.ndarray]):
        self._network, self._size, self._params = network, size, params
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def model(
        self, boxes: Float[np.ndarray, "R 4"], scale: float, outputs: Mapping[str, Spec]
    ) -> Any:
        """Return the `onnx.ModelProto` with the means over `boxes` of the last map, scaled."""
        from onnx import TensorProto, helper

        side = self._size // STRIDE
        self._pool(self._last_map(self._scaled()), boxes, side, scale)

        def described(shapes: Mapping[str, Any], kind: int = TensorProto.FLOAT) -> list[Any]:
            pairs = shapes.items()
            return [helper.make_tensor_value_info(name, kind, shape) for name, shape in pairs]

        pixels = described({"pixels": ("b", self._size, self._size, 3)}, TensorProto.UINT8)
        weights = described({name: leaf.shape for name, leaf in self._params.items()})
        results = described({name: spec.shape for name, spec in outputs.items()})
        parts = self._nodes, self._network, pixels + weights, results, self._constants
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(
            helper.make_graph(*parts), opset_imports=[opset], ir_version=IR_VERSION
        )

    def _scaled(self) -> str:
        """Cast pixels, scale them as `efficientnet_lite.scaled`, and put channels first."""
        from onnx import TensorProto

        pixels = self._node("Cast", "pixels", to=TensorProto.FLOAT)
        pixels = self._node("Sub", pixels, self._constant(np.float32(127.0)))
        pixels = self._node("Div", pixels, self._constant(np.float32(128.0)))
        return self._node("Transpose", pixels, perm=[0, 3, 1, 2])

    def _last_map(self, pixels: str) -> str:
        """Add the convolutions, as `efficientnet_lite.last_map`."""
        hidden, side = self._conv("stem", pixels, self._size, 2), -(-self._size // 2)
        hidden, width = self._relu6(hidden), len(self._params["stem/bias"])
        for number, shape in enumerate(block_shapes(self._network)):
            name, inputs, before = f"blocks_{number}", hidden, (side, width)
            if shape.expand > 1:
                hidden = self._relu6(self._conv(f"{name}/expand", hidden, side))
            hidden = self._relu6(self._conv(f"{name}/depthwise", hidden, side, shape.stride))
            side, width = -(-side // shape.stride), shape.features
            hidden = self._conv(f"{name}/project", hidden, side)
            if (side, width) == before:
                hidden = self._node("Add", hidden, inputs)
        return self._relu6(self._conv("head", hidden, side))

    def _pool(self, maps: str, boxes: Float[np.ndarray, "R 4"], side: int, scale: float) -> None:
        """Add the outputs, of the last map `[b, 1280, h, w]`."""
        cells = self._node("Transpose", maps, perm=[0, 2, 3, 1], output="map")
        shape = self._constant(np.array([0, side * side, FEATURES]))
        cells = self._node("Reshape", cells, shape)
        if scale != 1:
            cells = self._node("Mul", cells, self._constant(np.float32(scale)))
        pooling = self._constant(pooling_weights(boxes, side, side))
        self._node("MatMul", pooling, cells, output="features")
        self._node("ReduceMean", cells, self._constant(np.array([1])), keepdims=0, output="fc")

    def _conv(self, name: str, maps: str, side: int, stride: int = 1) -> str:
        """Add a convolution with TensorFlow's SAME padding of maps of `side x side`."""
        kernel = f"{name}/kernel_OIHW"
        outputs, _, size, _ = self._params[kernel].shape
        total = max((-(-side // stride) - 1) * stride + size - side, 0)
        pads = 2 * [total // 2] + 2 * [total - total // 2]
        groups = outputs if name.endswith("depthwise") else 1
        inputs = maps, kernel, f"{name}/bias"
        return self._node("Conv", *inputs, strides=2 * [stride], pads=pads, group=groups)

    def _relu6(self, maps: str) -> str:
        return self._node("Clip", maps, *map(self._constant, (np.float32(0.0), np.float32(6.0))))

    def _node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node, and return the name of its output."""
        from onnx import helper

        output = output or f"{kind}:{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def _constant(self, value: Any) -> str:
        """Return the name of a constant, which is added once."""
        from onnx import numpy_helper

        value = np.asarray(value)
        name = f"constant:{value.dtype}:{value.tobytes().hex() if value.size < 9 else 'pooling'}"
        if name not in [tensor.name for tensor in self._constants]:
            self._constants.append(numpy_helper.from_array(value, name))
        return name
