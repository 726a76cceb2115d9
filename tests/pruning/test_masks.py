import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import (
    apply_masks,
    finalize,
    overall_sparsity,
    pack,
    sparsity,
    unpack,
)
from sparsecap_jax.pruning.masks import zero_moments


@pytest.fixture
def params():
    return {
        "dense": {
            "kernel": jnp.array([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]], jnp.float32),
            "bias": jnp.array([7.0, 8.0, 9.0], jnp.float32),
        },
        "embed": {"embedding": jnp.array([[1.5], [2.5]], jnp.float32)},
    }


@pytest.fixture
def binary():
    return {"dense": {"kernel": jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], jnp.float32)}}


def test_apply_masks_multiplies_and_leaves_the_rest(params, binary):
    masked = apply_masks(params, binary)
    np.testing.assert_array_equal(masked["dense"]["kernel"], [[1, 0, 3], [0, 5, 0]])
    assert masked["dense"]["bias"] is params["dense"]["bias"]
    assert masked["embed"]["embedding"] is params["embed"]["embedding"]


def test_gradients_of_weights_and_masks(params, binary):
    coefficients = jnp.arange(6, dtype=jnp.float32).reshape(2, 3)

    def loss(params, binary):
        return jnp.sum(coefficients * apply_masks(params, binary)["dense"]["kernel"])

    by_params, by_masks = jax.grad(loss, argnums=(0, 1))(params, binary)
    np.testing.assert_array_equal(by_params["dense"]["kernel"], [[0, 0, 2], [0, 4, 0]])
    np.testing.assert_array_equal(by_masks["dense"]["kernel"], [[0, -2, 6], [-12, 20, -30]])


def test_a_mask_that_fits_no_parameter_is_named(params):
    with pytest.raises(ConfigError, match="'dense/kernal' has no parameter"):
        apply_masks(params, {"dense": {"kernal": jnp.ones((2, 3), jnp.float32)}})
    with pytest.raises(ConfigError, match=r"'dense/kernel' has shape \(3, 2\).*\(2, 3\)"):
        apply_masks(params, {"dense": {"kernel": jnp.ones((3, 2), jnp.float32)}})


def test_moments_belong_to_the_longest_path():
    """`out/kernel` has no mask, though it ends in the path of `kernel`, which has one."""
    ones = jnp.ones((4, 4))
    weights = {"kernel": ones, "out": {"kernel": ones}}
    mask = {"kernel": jnp.ones((4, 4)).at[0].set(0)}
    state = optax.adam(0.1).init(weights)
    state = jax.tree.map(lambda leaf: leaf + 1, state)
    mu = zero_moments(state, mask, weights)[0].mu
    np.testing.assert_array_equal(mu["out"]["kernel"], ones)
    np.testing.assert_array_equal(mu["kernel"], mask["kernel"])


def test_finalize_writes_positive_zeros(params, binary):
    done = finalize(params, binary)
    np.testing.assert_array_equal(done["dense"]["kernel"], [[1, 0, 3], [0, 5, 0]])
    assert not np.signbit(np.asarray(done["dense"]["kernel"])).any()
    np.testing.assert_array_equal(jax.jit(finalize)(params, binary)["dense"]["bias"], [7, 8, 9])


def test_finalize_removes_a_nan_behind_a_mask(params, binary):
    params["dense"]["kernel"] = params["dense"]["kernel"].at[0, 1].set(jnp.nan)
    assert float(finalize(params, binary)["dense"]["kernel"][0, 1]) == 0.0


def test_finalize_refuses_logits(params):
    with pytest.raises(ConfigError, match="'dense/kernel' is not binary"):
        finalize(params, {"dense": {"kernel": jnp.full((2, 3), 5.0, jnp.float32)}})


def test_sparsity_counts(params, binary):
    binary["embed"] = {"embedding": jnp.array([[1.0], [1.0]], jnp.float32)}
    found = sparsity(binary, params)
    assert found.tensors == {"dense/kernel": 0.5, "embed/embedding": 0.0}
    assert found.tensor_nonzeros == {"dense/kernel": 3, "embed/embedding": 2}
    assert (found.nonzeros, found.prunable_size, found.total_size) == (5, 8, 11)
    assert found.prunable == 1 - 5 / 8
    assert found.total == 3 / 11
    assert float(jax.jit(overall_sparsity)(binary)) == 1 - 5 / 8
    assert sparsity(binary).total is None


def test_counts_beyond_what_float32_can_add():
    # 2^24 + 3 ones: a float32 running sum stops at 2^24.
    size = 2**24 + 4
    mask = {"w": jnp.ones((1, size), jnp.float32).at[0, 0].set(0.0)}
    assert sparsity(mask).nonzeros == 2**24 + 3


def test_pack_is_one_bit_per_weight(params):
    values = np.random.default_rng(0).integers(0, 2, (7, 11)).astype(np.float32)
    params = {"a": {"w": jnp.zeros((7, 11), jnp.float32)}, "b": jnp.zeros(3, jnp.float32)}
    packed = pack({"a": {"w": jnp.asarray(values)}})
    assert packed["a"]["w"].dtype == np.uint8
    assert packed["a"]["w"].shape == (10,)  # 77 bits
    first = int("".join(str(int(bit)) for bit in values.reshape(-1)[:8]), 2)
    assert packed["a"]["w"][0] == first
    restored = unpack(packed, params)
    np.testing.assert_array_equal(restored["a"]["w"], values)
    assert restored["a"]["w"].dtype == jnp.float32


def test_unpack_checks_paths_and_sizes(params):
    with pytest.raises(ConfigError, match="'dense/other' has no parameter"):
        unpack({"dense": {"other": np.zeros(1, np.uint8)}}, params)
    with pytest.raises(ConfigError, match=r"has 2 bytes.*needs 1"):
        unpack({"dense": {"kernel": np.zeros(2, np.uint8)}}, params)
    with pytest.raises(ConfigError, match="not binary"):
        pack({"dense": {"kernel": jnp.full((2, 3), 0.5, jnp.float32)}})
