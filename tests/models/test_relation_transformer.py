"""Box geometry, and the Object Relation Transformer under masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_cases as cases
import transformer_cases as tc

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.formulas import box_geometry, trigonometric
from sparsecap_jax.models import count_params, make_model
from sparsecap_jax.models.layers import torch_uniform
from sparsecap_jax.models.relation_transformer import GeometryBias


def test_geometry_of_two_boxes_by_hand():
    # Centres (0.2, 0.3) and (0.6, 0.3); widths + 1: 1.2, 1.4; heights + 1: 1.4, 1.1.
    boxes = np.float32([[[0.1, 0.1, 0.3, 0.5], [0.4, 0.25, 0.8, 0.35]]])
    least = np.log(1e-3)
    expected = [
        [
            [least, least, 0, 0],
            [np.log(0.4 / 1.2), least, np.log(1.2 / 1.4), np.log(1.4 / 1.1)],
        ],
        [
            [np.log(0.4 / 1.4), least, np.log(1.4 / 1.2), np.log(1.1 / 1.4)],
            [least, least, 0, 0],
        ],
    ]
    np.testing.assert_allclose(box_geometry(jnp.asarray(boxes))[0], expected, atol=1e-6)


def test_trigonometric_embedding_by_hand():
    geometry = np.float32([0.01, -0.5, 0.02, 0.3]).reshape(1, 1, 1, 4)
    embedded = trigonometric(jnp.asarray(geometry))[0, 0, 0]
    assert embedded.shape == (64,)
    for number, value in enumerate([0.01, -0.5, 0.02, 0.3]):
        for wave in range(8):
            angle = 100 * value / 1000 ** (wave / 8)
            place = 8 * number + wave
            found = embedded[place], embedded[32 + place]
            np.testing.assert_allclose(found, (np.sin(angle), np.cos(angle)), atol=1e-5)


@pytest.mark.parametrize("name", tc.RELATION_TRANSFORMERS)
def test_geometry_matches_the_reference(name, golden):
    case = golden(f"arch/{name}.npz")
    geometry = box_geometry(jnp.asarray(case["in/boxes"]))
    if name.endswith("no_trig"):
        np.testing.assert_allclose(geometry, case["out/box_embedding"], atol=1e-6)
    else:
        embedded = trigonometric(geometry)
        np.testing.assert_allclose(embedded, case["out/box_embedding"], atol=1e-4)


def test_geometry_bias_is_the_log_of_clamped_weights():
    geometry = jnp.float32([[1.0, 2.0], [-1.0, 0.5]]).reshape(2, 1, 1, 2)
    heads = {
        "head_0": {"kernel": np.float32([[1], [2]]), "bias": np.float32([0.5])},
        "head_1": {"kernel": np.float32([[1], [-1]]), "bias": np.float32([0.0])},
    }
    layer = GeometryBias(2, torch_uniform, "float32")
    bias = layer.apply({"params": heads}, geometry)
    # Head 0 weighs the two pairs by 5.5 and 0.5; head 1 by -1 and -1.5, below the clamp.
    expected = np.log([[5.5, 1e-6], [0.5, 1e-6]])
    np.testing.assert_allclose(bias[:, :, 0, 0], expected, rtol=1e-6)


def test_training_gradients_with_fixed_mask_draws_match_the_reference(golden):
    case = golden("arch/relation_transformer_prune_supermask.npz")
    model, variables = cases.load(case)
    drawn = cases.masks_of(case, "train_sampled_mask/")

    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(variables):
        binary = jax.tree.map(tc.straight_through, variables["masks"], drawn)
        params = tc.masked(variables["params"], binary)
        log_probs = model.apply({"params": params}, cases.regions(case), tc.inputs(case))
        return tc.caption_loss(log_probs, case), log_probs

    (loss, log_probs), gradients = run(variables)
    theirs = case["out/train_tf_logprobs"].reshape(log_probs.shape)
    np.testing.assert_allclose(log_probs, theirs, atol=3e-3)
    np.testing.assert_allclose(loss, case["out/train_xe_loss"], rtol=1e-4)
    config, theirs = cases.config_of(case), cases.tensors(case, "grad_train/")
    for part, suffix in (("params", ""), ("masks", cases.MASK_SUFFIX)):
        expected = cases.to_paths(theirs, config, suffix)
        cases.assert_trees_close(gradients[part], expected, atol=2e-3, rtol=1e-3)


def test_boxes_matter():
    model, params, regions, tokens = tc.small_model("relation_transformer")
    moved = regions.replace(boxes=regions.boxes[:, ::-1])
    before = tc.apply(model, params, regions, tokens)
    assert np.abs(tc.apply(model, params, moved, tokens) - before).max() > 1e-3


def test_paper_size_has_the_papers_number_of_parameters():
    model = make_model({"name": "relation_transformer", "vocab_size": 10001})
    assert count_params(model) == 55_443_777


def test_unknown_box_embedding_is_named():
    with pytest.raises(ConfigError, match=r"model.box_embedding is 'sine'; \(valid: plain, trig\)"):
        make_model({"name": "relation_transformer", "vocab_size": 10, "box_embedding": "sine"})
