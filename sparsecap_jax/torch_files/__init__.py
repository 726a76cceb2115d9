"""PyTorch's file formats, read and written without PyTorch and without executing anything in them.

state_dict = load_torch_file("model_best.pth")
save_torch_file("copy.pth", state_dict)
"""

from sparsecap_jax.torch_files.reading import load_torch_file
from sparsecap_jax.torch_files.tensors import SparseTensor
from sparsecap_jax.torch_files.writing import save_torch_file

__all__ = ["SparseTensor", "load_torch_file", "save_torch_file"]
