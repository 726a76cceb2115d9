"""Times products with one row by PyTorch's CSR; started by `sparse_runtime.py`.

python torch_csr.py KERNELS.npz

Prints the microseconds of each kernel `[in, out]` on one thread as a list.
"""

import json
import sys
import time
import warnings

import numpy as np
import torch

warnings.simplefilter("ignore")  # "Sparse CSR tensor support is in beta state"
torch.set_num_threads(1)


def microseconds(kernel):
    """The fastest of 20 products."""
    matrix = torch.from_numpy(np.ascontiguousarray(kernel.T)).to_sparse_csr()
    row, best = torch.rand(len(kernel)), float("inf")
    for _ in range(20):
        start = time.perf_counter()
        matrix @ row
        best = min(best, time.perf_counter() - start)
    return 1e6 * best


if __name__ == "__main__":
    with np.load(sys.argv[1]) as kernels, torch.inference_mode():
        print(json.dumps([microseconds(kernels[name]) for name in kernels.files]))
