"""What decoding makes of the weights alone, once for many batches."""

import jax
import numpy as np
import pytest
from decoding_fakes import fast_decode
from test_ensemble import hash_members, real_regions, up_down

from sparsecap_jax.decoding import DecodeOptions, make_ensemble, prepare
from sparsecap_jax.models import abstract_params, make_model

BEAMS = DecodeOptions(beam_size=3, max_length=6)


def soft_attention(cell):
    fields = {"name": "soft_attention", "vocab_size": 9, "feature_size": 6, "embed_size": 5}
    model = make_model(fields | {"rnn_size": 7, "attention_size": 8, "cell": cell})
    rng = np.random.default_rng(2)
    shapes = abstract_params(model)
    return model, jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape)), shapes)


MEMBERS = {
    "up_down": lambda: up_down(0, 7),
    "lstm": lambda: soft_attention("lstm"),
    "gru": lambda: soft_attention("gru"),
    "ensemble": lambda: make_ensemble([up_down(0, 7), up_down(1, 4), hash_members(1)[0][0]]),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_captions_stay_the_same(name):
    model, params = MEMBERS[name]()
    prepared = prepare(model, params)
    assert set(prepared) == {"prepared"}
    regions = real_regions(4, 3)
    expected = fast_decode(model, params, regions, BEAMS)
    found = fast_decode(model, params, regions, BEAMS, prepared=prepared)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-6)
    # They are used: captions of other weights have other scores.
    other = jax.tree.map(lambda leaf: -leaf, prepared)
    changed = fast_decode(model, params, regions, BEAMS, prepared=other)
    assert np.abs(np.asarray(changed.scores - expected.scores)).max() > 0.1


def test_parts_of_a_kernel():
    """The attention LSTM of Up-Down reads the other LSTM's state, the image and the word."""
    model, params = up_down(0, 7)
    whole = params["att_lstm"]["kernel_ih"]
    parts = prepare(model, params)["prepared"]
    shared = parts["kernels"]["att_lang"], parts["fc_kernel"], parts["kernels"]["att_word"]
    assert [len(part) for part in shared] == [7, 7, 5]
    np.testing.assert_array_equal(np.concatenate(shared), whole)


def test_other_arrays_are_not_copied():
    model, params = up_down(0, 7)
    params = jax.device_put(params)
    kernels = prepare(model, params)["prepared"]["kernels"]
    for ours, lstm, name in (
        ("att_hh", "att_lstm", "kernel_hh"),
        ("lang_ih", "lang_lstm", "kernel_ih"),
        ("lang_hh", "lang_lstm", "kernel_hh"),
    ):
        assert kernels[ours].unsafe_buffer_pointer() == params[lstm][name].unsafe_buffer_pointer()


def test_a_model_without_anything_to_prepare():
    ((model, params),) = hash_members(1)[0]
    assert prepare(model, params) == {}
