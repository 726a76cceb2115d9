"""Files in Hugging Face's safetensors format, read and written without its package.

8 bytes with the length of a JSON header, the header, and the data of the tensors, little-endian.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.files import foreign_errors, unique_keys, write_atomically
from sparsecap_jax.model_files.checks import cut_short

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "U8": "|u1", "BOOL": "|u1"}
_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "uint8": "U8"}
_METADATA = "__metadata__"
_MAX_HEADER = 2**24


def write_safetensors(
    path: str | pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> int:
    """Write arrays (floats or uint8) by name, all or nothing, and return the size in bytes."""
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for name, array in tensors.items():
        dtype, end = _NAMES[array.dtype.name], offset + array.nbytes
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with write_atomically(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return pathlib.Path(path).stat().st_size


def read_safetensors(path: str | pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays of a file by name, and its metadata.

    Raises:
        CheckpointError: it is missing or damaged, or holds other types than floats and bytes.
    """
    with foreign_errors(f"{path}: no safetensors file", CheckpointError), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise ValueError(cut_short(size, 8))
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER:
            raise ValueError(f"a header of {length} bytes; expected at most {_MAX_HEADER}")
        if length > size - 8:
            raise ValueError(cut_short(size, 8 + length))
        header = json.loads(file.read(length), object_pairs_hook=unique_keys)
        metadata = header.pop(_METADATA, {})
        if any(type(value) is not str for value in metadata.values()):
            raise ValueError("metadata that is not text")
        tensors, end = {}, 0
        by_place = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        for name, entry in by_place:
            if entry["dtype"] not in _DTYPES:
                kinds = ", ".join(_DTYPES)
                raise ValueError(f"{name!r:.200}: {entry['dtype']!r:.40}; expected one of {kinds}")
            dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), entry["shape"]
            if any(type(n) is not int or n < 0 for n in shape) or len(shape) > 32:
                raise ValueError(f"{name!r:.200}: shape {shape!s:.80}")
            start, end = end, end + math.prod(shape) * dtype.itemsize
            if entry["data_offsets"] != [start, end]:
                raise ValueError(f"{name!r:.200}: data_offsets do not fit {dtype} {shape!s:.80}")
            if 8 + length + end > size:
                raise ValueError(f"{name!r:.200}: {cut_short(size, 8 + length + end)}")
            data = np.empty(math.prod(shape), dtype)
            file.readinto(memoryview(data).cast("B") if data.size else bytearray())
            tensors[name] = data.reshape(shape)
        if 8 + length + end != size:
            raise ValueError(f"{8 + length + end} bytes stated, {size} found")
    return tensors, metadata
