"""Writes zip.pth, legacy.pth and expected.npz beside itself, with PyTorch (2.13.0 wrote them)."""

import pathlib

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
DTYPES = "float16 float32 float64 bfloat16 float8_e5m2 int8 int32 int64 uint8 uint16 bool complex64"


def tensors():
    generator = torch.Generator().manual_seed(2718)
    noise = torch.randn(4, 6, generator=generator) * 50
    module = torch.nn.Linear(3, 2)
    with torch.no_grad():
        module.weight.copy_(noise[:2, :3])
        module.bias.copy_(noise[2, :2])
    state = module.state_dict()  # an OrderedDict with _metadata
    for name in DTYPES.split():
        values = noise.abs() if name.startswith("u") else noise
        state[f"dtype/{name}"] = (values > 0 if name == "bool" else values[:2, :3]).to(
            getattr(torch, name)
        )
    state["parameter"] = torch.nn.Parameter(noise[1].clone())
    state["transposed"] = noise.t()
    state["slice"] = noise[1:, 1::2]
    state["scalar"] = noise[0, 0]
    state["empty"] = torch.zeros(0, 3)
    state["expanded"] = torch.arange(3).expand(2, 3)
    state["tied"] = state["weight"]
    rectified = noise.relu()
    state["sparse/coo"] = rectified.to_sparse()
    state["sparse/none"] = torch.zeros(3, 2).to_sparse()
    state["sparse/hybrid"] = rectified.to_sparse(1)
    twice = torch.tensor([[0, 1, 0], [2, 0, 2]])
    state["sparse/duplicates"] = torch.sparse_coo_tensor(
        twice, noise[0, :3], (2, 3), check_invariants=True
    )
    return state


def main():
    state = tensors()
    expected = {}
    for name, tensor in state.items():
        dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
        unknown = name in ("dtype/bfloat16", "dtype/float8_e5m2")  # to numpy; exact in float32
        expected[name.replace("/", ":")] = (dense.float() if unknown else dense).numpy()
    np.savez_compressed(HERE / "expected.npz", **expected)
    state["nested"] = {
        "epoch": 3,
        "rate": 0.25,
        "blob": b"\x00\xff",
        "list": ["text", ("pair", None, True), {"inner": state["bias"]}],
    }
    torch.save(state, HERE / "zip.pth")
    torch.save(state, HERE / "legacy.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
