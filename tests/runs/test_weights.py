"""Small weight files: exact, of the size they promise, and clear about what is wrong."""

import numpy as np
import pytest

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.runs.weights import load_weights, save_weights


def variables(seed=0, sparsity=0.95):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(120, 50)).astype(np.float32)
    mask = (rng.random((120, 50)) > sparsity).astype(np.float32)
    params = {"layer": {"kernel": kernel * mask, "bias": rng.normal(size=50).astype(np.float32)}}
    return params, {"layer": {"kernel": mask}}


def test_weights_and_masks_come_back_exactly(tmp_path):
    params, masks = variables()
    size = save_weights(tmp_path / "w.npz", params, masks)
    found = load_weights(tmp_path / "w.npz")
    np.testing.assert_array_equal(found["params"]["layer"]["kernel"], params["layer"]["kernel"])
    np.testing.assert_array_equal(found["params"]["layer"]["bias"], params["layer"]["bias"])
    np.testing.assert_array_equal(found["masks"]["layer"]["kernel"], masks["layer"]["kernel"])
    assert size == (tmp_path / "w.npz").stat().st_size
    payload = 6000 // 8 + 4 * int(masks["layer"]["kernel"].sum()) + 4 * 50
    assert payload < size < payload + 2000  # names and headers of the archive


def test_zeros_are_stored_sparse_without_a_mask_too(tmp_path):
    params, masks = variables()
    save_weights(tmp_path / "w.npz", params)
    found = load_weights(tmp_path / "w.npz")
    np.testing.assert_array_equal(found["params"]["layer"]["kernel"], params["layer"]["kernel"])
    np.testing.assert_array_equal(found["masks"]["layer"]["kernel"], masks["layer"]["kernel"])


def test_a_dense_model_has_no_masks(tmp_path):
    params, _ = variables(sparsity=0.0)
    save_weights(tmp_path / "w.npz", params)
    assert load_weights(tmp_path / "w.npz")["masks"] == {}


def test_a_kept_weight_of_zero_stays_kept(tmp_path):
    params, masks = variables()
    kept = np.argwhere(masks["layer"]["kernel"])[0]
    params["layer"]["kernel"][tuple(kept)] = 0.0
    save_weights(tmp_path / "w.npz", params, masks)
    found = load_weights(tmp_path / "w.npz")
    np.testing.assert_array_equal(found["masks"]["layer"]["kernel"], masks["layer"]["kernel"])


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    params, masks = variables()
    save_weights(tmp_path / "w.npz", params, masks)
    before = (tmp_path / "w.npz").read_bytes()
    with pytest.raises(TypeError):
        save_weights(tmp_path / "w.npz", {"layer": {"kernel": object()}})
    assert (tmp_path / "w.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["w.npz"]


def test_faults_are_one_clear_error(tmp_path):
    path = tmp_path / "w.npz"
    with pytest.raises(CheckpointError, match=r"w\.npz: no such file"):
        load_weights(path)
    save_weights(path, *variables())
    whole = path.read_bytes()
    for content in (b"", b"junk", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"w\.npz: corrupt"):
            load_weights(path)
    np.savez(path, **{"dense:a": np.zeros(2, np.float32)})
    with pytest.raises(CheckpointError, match="format_version is None"):
        load_weights(path)
    shape = np.array([4, 4])
    np.savez(path, **{"format_version": np.int32(1), "shape:a": shape})
    with pytest.raises(CheckpointError, match="bits or values are missing"):
        load_weights(path)


def test_a_compact_file_rounds_to_float16_and_keeps_the_masks(tmp_path):
    params, masks = variables()
    size = save_weights(tmp_path / "c.npz", params, masks, compact=True)
    found = load_weights(tmp_path / "c.npz")
    kernel = found["params"]["layer"]["kernel"]
    assert kernel.dtype == found["params"]["layer"]["bias"].dtype == np.float32
    rounded = params["layer"]["kernel"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(kernel, rounded)
    np.testing.assert_array_equal(found["masks"]["layer"]["kernel"], masks["layer"]["kernel"])
    assert size < 0.75 * save_weights(tmp_path / "w.npz", params, masks)
