"""PyTorch checkpoint files: what torch wrote is read, and what we write torch reads."""

import io
import json
import pathlib
import zipfile

import ml_dtypes
import numpy as np
import pytest

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.torch_files import SparseTensor, load_torch_file, save_torch_file

FIXTURES = pathlib.Path(__file__).parent.parent / "golden" / "torch"
FORMATS = ("zip", "legacy")


def read_fixture(form):
    return load_torch_file(FIXTURES / f"{form}.pth")


def dense(value):
    return value.to_dense() if isinstance(value, SparseTensor) else value


@pytest.mark.parametrize("form", FORMATS)
def test_reads_every_value_that_torch_wrote(form):
    actual = read_fixture(form)
    with np.load(FIXTURES / "expected.npz") as expected:
        assert {name.replace(":", "/") for name in expected.files} == actual.keys() - {"nested"}
        for name in expected.files:
            value = dense(actual[name.replace(":", "/")])
            assert value.shape == expected[name].shape, name
            # bfloat16 and float8 are stored as float32 there, which holds them exactly
            np.testing.assert_array_equal(
                value.astype(expected[name].dtype), expected[name], strict=True, err_msg=name
            )
    for name in (name for name in actual if name.startswith("dtype/")):
        assert str(actual[name].dtype) == name.removeprefix("dtype/")


@pytest.mark.parametrize("form", FORMATS)
def test_structure(form):
    state = read_fixture(form)
    assert list(state)[:2] == ["weight", "bias"]
    nested = state["nested"]
    assert (nested["epoch"], nested["rate"], nested["blob"]) == (3, 0.25, b"\x00\xff")
    text, pair, last = nested["list"]
    assert (text, pair) == ("text", ("pair", None, True))
    np.testing.assert_array_equal(last["inner"], state["bias"])
    assert np.shares_memory(state["transposed"], state["slice"])
    assert np.shares_memory(state["tied"], state["weight"])
    assert not state["weight"].flags.writeable


@pytest.mark.parametrize("form", FORMATS)
def test_sparse_tensors_keep_their_coordinates(form):
    state = read_fixture(form)
    duplicates = state["sparse/duplicates"]
    np.testing.assert_array_equal(duplicates.indices, [[0, 1, 0], [2, 0, 2]])
    assert (duplicates.values.shape, duplicates.shape) == ((3,), (2, 3))
    a, b, c = duplicates.values
    np.testing.assert_array_equal(duplicates.to_dense(), [[0, 0, a + c], [b, 0, 0]])
    assert state["sparse/none"].indices.shape == (2, 0)
    assert state["sparse/hybrid"].values.shape[1:] == (6,)


def test_published_checkpoint(shared):
    folder = shared / "reference" / "checkpoint"
    contents = json.loads((folder / "tiny3_xe_contents.json").read_text())
    name = contents["zip"].removesuffix(".zip")
    with zipfile.ZipFile(folder / contents["zip"]) as archive:
        file = io.BytesIO(archive.read(f"{name}/model_best_pruned_sparse.pth"))
    state = load_torch_file(file)
    assert list(state) == list(contents["tensors"])
    for name, facts in contents["tensors"].items():
        sparse = facts["layout"] == "torch.sparse_coo"
        assert isinstance(state[name], SparseTensor) == sparse
        values = state[name].values if sparse else state[name]
        assert list(state[name].shape) == facts["shape"]
        assert f"torch.{values.dtype}" == facts["dtype"]
        total, absolute = ("values_sum", "values_abs_sum") if sparse else ("sum", "abs_sum")
        assert values.sum(dtype=np.float64) == pytest.approx(facts[total], rel=1e-12, abs=1e-9)
        assert np.abs(values).sum(dtype=np.float64) == pytest.approx(facts[absolute], rel=1e-12)
        if sparse:
            assert values.size == facts["nnz"]
            assert np.count_nonzero(state[name].to_dense()) == facts["nnz"]
    nnz = sum(v.values.size for v in state.values() if isinstance(v, SparseTensor))
    assert nnz == contents["total_nnz_pruned_tensors"] == 47264


# ---------------------------------------------------------------------------------------------
# Writing


def samples():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(4, 5)).astype(np.float32)
    mask = rng.random((4, 5)) < 0.3
    return {
        "matrix": matrix,
        "transposed": matrix.T,
        "big_endian": matrix.astype(">f4"),
        "scalar": np.float32(2.5).reshape(()),
        "empty": np.zeros((0, 3), np.float32),
        "half": matrix.astype(np.float16),
        "bfloat16": matrix.astype(ml_dtypes.bfloat16),
        "long": np.array([2**40, -1]),
        "bool": mask,
        "tied": matrix,
        "sparse": SparseTensor.from_dense(matrix * mask),
        "sparse_none": SparseTensor.from_dense(np.zeros((2, 3), np.float32)),
        "naïve.名前": matrix[0],
    }


def test_written_file_reads_back_exactly(tmp_path):
    state = samples()
    save_torch_file(tmp_path / "model.pth", state)
    actual = load_torch_file(tmp_path / "model.pth")
    assert list(actual) == list(state)
    for name, value in state.items():
        assert isinstance(actual[name], SparseTensor) == isinstance(value, SparseTensor)
        native = dense(value).astype(dense(value).dtype.newbyteorder("="))
        np.testing.assert_array_equal(dense(actual[name]), native, strict=True)
    assert np.shares_memory(actual["tied"], actual["matrix"])
    assert not np.shares_memory(actual["transposed"], actual["matrix"])
    save_torch_file(tmp_path / "again.pth", state)
    assert (tmp_path / "again.pth").read_bytes() == (tmp_path / "model.pth").read_bytes()


def test_torch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: torch)")
    state = samples()
    save_torch_file(tmp_path / "model.pth", state)
    for options in ({}, {"mmap": True}):
        loaded = torch.load(tmp_path / "model.pth", weights_only=True, **options)
        assert list(loaded) == list(state)
        for name, value in state.items():
            tensor = loaded[name]
            assert tensor.is_sparse == isinstance(value, SparseTensor)
            exact = tensor.to_dense().double().numpy()
            np.testing.assert_array_equal(exact, dense(value).astype(np.float64))
        assert loaded["bfloat16"].dtype == torch.bfloat16
        assert loaded["matrix"].data_ptr() == loaded["tied"].data_ptr()
    module = torch.nn.Linear(5, 4)
    module.load_state_dict({"weight": loaded["matrix"], "bias": loaded["matrix"][:, 0]})


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.pth"
    save_torch_file(path, {"a": np.ones(3, np.float32)})
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"model\.pth: text: dtype <U2 cannot be written"):
        save_torch_file(path, {"a": np.ones(3, np.float32), "text": np.array(["no"])})
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="folder: cannot be written"):
        save_torch_file(tmp_path / "folder", {"a": np.ones(3, np.float32)})
    assert path.read_bytes() == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.pth", "folder"}
