"""Overlaps of masks and distances of layers by hand; groups of tensors of every captioner."""

import numpy as np
import pytest

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning.similarity import layer_distances, layer_stacks, mask_overlap
from sparsecap_jax.pruning.summary import by_group, group_of


def packed(*bits):
    return {"a": np.packbits(np.array(bits, bool))}


def test_overlap_by_hand():
    one, two = packed(1, 1, 0, 0, 1, 0, 0, 0, 1), packed(1, 0, 0, 1, 1, 0, 0, 0, 0)
    none = packed(*[0] * 9)
    shares = mask_overlap([one, two, none])  # both keep 2 of the 5 that either keeps
    np.testing.assert_array_equal(shares, [[1, 0.4, 0], [0.4, 1, 0], [0, 0, 1]])
    with pytest.raises(ConfigError, match="masks of different tensors"):
        mask_overlap([one, packed(1, 0)])


def test_independent_masks_overlap_by_chance():
    rng = np.random.default_rng(0)
    masks = [{"w": np.packbits(rng.random(100_000) > 0.8)} for _ in range(2)]
    assert mask_overlap(masks)[0, 1] == pytest.approx(0.2 / 1.8, abs=5e-3)


def test_distances_of_layers_by_hand():
    """Columns (3, 4) and (0, 1) have norms 5 and 1; those of the other layer are unit vectors."""
    one = {"kernel": np.array([[3.0, 0.0], [4.0, 1.0]]), "bias": np.array([2.0, 0.0])}
    two = {"kernel": np.array([[1.0, 0.0], [0.0, 2.0]]), "bias": np.array([0.0, 0.0])}
    squares = (0.6 - 1) ** 2 + 0.8**2 + 0 + 0 + 1 + 0  # of six weights
    distances = layer_distances([one, two, one])
    expected = np.sqrt(squares / 6) * np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    np.testing.assert_allclose(distances, expected, atol=1e-7)


def test_stacks_are_layers_of_one_form():
    leaves = {f"encoder_layers_{n}/attn/kernel": np.full((2, 2), n) for n in (0, 2, 10)}
    leaves |= {"decoder_layers_0/kernel": np.ones((2, 2)), "layers_norm/scale": np.ones(2)}
    leaves |= {f"odd_layers_{n}/kernel": np.ones((2, n)) for n in (1, 2)}
    stacks = layer_stacks(leaves)
    assert list(stacks) == ["encoder"]
    assert [layer["attn/kernel"][0, 0] for layer in stacks["encoder"]] == [0, 2, 10]


@pytest.mark.parametrize(
    ("group", "tensors"),
    [
        ("embedding", "embed/embedding tgt_embed/embedding embed.0.weight"),
        ("embedding", "model.tgt_embed.0.lut.weight"),
        ("output", "logit_0/kernel logit/kernel logits/bias logit.weight"),
        ("output", "model.generator.proj.weight"),
        ("encoder", "encoder_layers_0/self_attn/key/kernel encoder_norm/scale src_embed/kernel"),
        ("encoder", "region_embed/kernel fc_embed/kernel ctx2att/kernel keys/kernel"),
        ("encoder", "init_state/kernel model.encoder.layers.0.self_attn.linears.0.weight"),
        ("encoder", "att_embed.0.weight"),
        ("decoder", "att_lstm/kernel_hh attention/alpha/kernel core.att_lstm.weight_ih"),
        ("decoder", "decoder_layers_0/cross_attn/key/kernel model.decoder.norm.a_2 lstm/kernel_ih"),
    ],
)
def test_groups(group, tensors):
    assert [group_of(tensor) for tensor in tensors.split()] == [group] * len(tensors.split())


def test_sums_of_groups():
    rows = [{"tensor": "embed/embedding", "size": 6}, {"tensor": "logit_0/kernel", "size": 4}]
    rows += [{"tensor": "logit_0/bias", "size": 2}, {"tensor": "(all)", "size": 12}]
    assert by_group(rows, "size") == {"embedding": 6, "encoder": 0, "decoder": 0, "output": 6}
