"""Safetensors: the bytes that the format's page asks for, and damage."""

import json

import numpy as np
import pytest

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.model_files import read_safetensors, write_safetensors
from sparsecap_jax.runs.weights import load_weights


def made(header, data=b""):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_the_bytes_of_a_file(tmp_path):
    """8 bytes of the header's length, the header padded by blanks, values row by row."""
    matrix = np.array([[1, 2], [3, 4]], np.float32).T  # not contiguous
    size = write_safetensors(
        tmp_path / "w.safetensors", {"a": matrix, "b": np.float16([[-2]])}, {"k": "v"}
    )
    content = (tmp_path / "w.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0 and size == len(content) == 8 + length + 18
    assert json.loads(content[8 : 8 + length]) == {
        "__metadata__": {"k": "v"},
        "a": entry("F32", (2, 2), (0, 16)),
        "b": entry("F16", (1, 1), (16, 18)),
    }
    values = b"\0\0\x80\x3f\0\0\x40\x40\0\0\0\x40\0\0\x80\x40"  # 1, 3, 2, 4
    assert content[8 + length :] == values + b"\0\xc0"


def test_a_file_of_another_program(tmp_path):
    """Entries in any order, types other than float32, no metadata."""
    path = tmp_path / "w.safetensors"
    header = {"b/x": entry("F64", (1,), (4, 12)), "a": entry("F16", (2, 1), (0, 4))}
    path.write_bytes(made(header, b"\0\x3c\0\xbc" + np.float64(0.5).tobytes()))
    arrays, metadata = read_safetensors(path)
    assert metadata == {} and {n: a.dtype.str for n, a in arrays.items()} == {
        "a": "<f2",
        "b/x": "<f8",
    }
    found = load_weights(path)
    assert found["masks"] == {} and found["params"]["a"].tolist() == [[1], [-1]]
    assert found["params"]["b"]["x"].dtype == np.float32 and found["params"]["b"]["x"][0] == 0.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is cut short: it has 0 bytes, expected at least 8$"),
        (b"\xff" * 9, "a header of 18446744073709551615 bytes; expected at most 16777216"),
        (b"\x09" + bytes(9), "the file is cut short: it has 10 bytes, expected at least 17"),
        (made({"a": entry()}, bytes(7)), "'a': the file is cut short: it has 76 bytes, expected"),
        (made({"a": entry()}, bytes(9)), "bytes stated"),
        (made({"a": entry(offsets=(1, 9))}, bytes(9)), "'a': data_offsets do not fit"),
        (made({"a": entry(shape=(2**40,))}, bytes(8)), "'a': data_offsets do not fit"),
        (made({"a": entry(shape=(-2,))}, bytes(8)), r"'a': shape \[-2\]"),
        (made({"a": entry("BF16", (4,))}, bytes(8)), "'a': 'BF16'; expected one of F64, F32"),
        (made({"a": entry(), "b": entry()}, bytes(8)), "'b': data_offsets do not fit"),
        (made([]), "no safetensors file"),
        (made({"__metadata__": {"masked": 5}}), "metadata that is not text"),
        (
            made({"__metadata__": {"masked": '["b"]'}, "a": entry()}, bytes(8)),
            r"masks of \['b'\]; expected names of weights",
        ),
        (made({"/".join("a" * 10**5): entry()}, bytes(8)), "'a/a/.*expected plain names"),
    ],
)
def test_damage_is_one_clear_error(content, message, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 500


def test_a_mask_of_another_shape(tmp_path):
    path = tmp_path / "w.safetensors"
    header = {"__metadata__": {"masked": '["a"]'}}
    header |= {"a": entry(), "mask:a": entry("U8", (2, 1), (8, 10))}
    path.write_bytes(made(header, bytes(10)))
    with pytest.raises(CheckpointError, match="masks of other shapes than the weights"):
        load_weights(path)
