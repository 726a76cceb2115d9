"""Times products with one row by another library; started by `sparse_runtime.py`.

python other_products.py torch|onnxruntime KERNELS.npz

Prints the microseconds of each kernel `[in, out]` on one thread as a list: by PyTorch's CSR, or by
onnxruntime's MatMul, whose graph holds the same pruned weights.
"""

import json
import sys
import time
import warnings

import numpy as np


def torch_csr(kernel):
    """Return the product of a row with a kernel."""
    import torch

    warnings.simplefilter("ignore")  # "Sparse CSR tensor support is in beta state"
    torch.set_num_threads(1)
    matrix = torch.from_numpy(np.ascontiguousarray(kernel.T)).to_sparse_csr()
    row = torch.rand(len(kernel))
    return lambda: matrix @ row


def onnx_product(kernel):
    """Return the product of a row with a kernel."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rows = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
        for name, size in zip("xy", kernel.shape, strict=True)
    ]
    node = helper.make_node("MatMul", ["x", "kernel"], ["y"])
    weights = [numpy_helper.from_array(kernel, "kernel")]
    graph = helper.make_graph([node], "product", rows[:1], rows[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    row = np.random.default_rng(0).random((1, len(kernel)), np.float32)
    return lambda: session.run(None, {"x": row})


def microseconds(product):
    """Return the time of the fastest of 20 products."""
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return 1e6 * best


make = {"torch": torch_csr, "onnxruntime": onnx_product}[sys.argv[1]]
kernels = np.load(sys.argv[2])
print(json.dumps([microseconds(make(kernels[key])) for key in kernels.files]))
