"""Up-Down against the reference's figures: outputs, intermediate tensors and gradients."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_cases as cases
from flax import linen as nn
from flax.traverse_util import flatten_dict

from sparsecap_jax.models import count_params, make_model
from sparsecap_jax.training.losses import reward_loss
from sparsecap_jax.types import Regions

FILES = ("", "_logit2", "_prune_supermask", "_prune_mag_blind")
ATOL = 3e-5


@pytest.fixture(scope="module", params=FILES, ids=lambda name: name or "dense")
def case(request, golden):
    return golden(f"arch/up_down_lstm{request.param}.npz")


def straight_through(logits, binary):
    """`binary` forward, the sigmoid's derivative backward."""
    probs = jax.nn.sigmoid(logits)
    return binary + probs - jax.lax.stop_gradient(probs)


def rounded(case, masks):
    """The reference's evaluation masks: rounded probabilities, or the masks as they are."""
    supermask = cases.config_of(case)["prune_type"] == "supermask"
    if not supermask:
        return masks
    return jax.tree.map(lambda m: straight_through(m, jnp.round(jax.nn.sigmoid(m))), masks)


def masked(params, masks):
    """Multiply each masked weight by its mask, the slow obvious way."""
    if not isinstance(masks, dict):
        return params * masks
    return {k: masked(v, masks[k]) if k in masks else v for k, v in params.items()}


def effective(case, variables):
    return masked(variables["params"], rounded(case, variables["masks"]))


def caption_loss(log_probs, case):
    """-sum(log p of the next token) / number of tokens, over all captions."""
    tokens, mask = cases.captions(case)
    picked = jnp.take_along_axis(log_probs[:, :, :-1], tokens[:, :, 1:, None], axis=-1)[..., 0]
    weights = jnp.asarray(mask[:, :, 1:], jnp.float32)
    return -jnp.sum(picked * weights) / jnp.sum(weights)


def teacher_forced(case, model, params):
    return model.apply({"params": params}, cases.regions(case), cases.captions(case)[0])


def test_teacher_forcing_matches_the_reference(case):
    model, variables = cases.load(case)
    ours = teacher_forced(case, model, effective(case, variables))
    theirs = case["out/tf_logprobs"].reshape(ours.shape)
    ran = np.any(theirs != 0, axis=(0, 1, 3))  # it stops where every caption has ended
    assert ran.sum() >= 9
    np.testing.assert_allclose(ours[:, :, ran], theirs[:, :, ran], atol=ATOL)
    np.testing.assert_allclose(caption_loss(ours, case), case["out/tf_xe_loss"], rtol=1e-5)


def test_encoder_matches_the_reference(case):
    model, variables = cases.load(case)
    params = effective(case, variables)
    context = model.apply({"params": params}, cases.regions(case), method="encode")
    np.testing.assert_allclose(context["fc"], case["out/prep_fc"], atol=ATOL)
    np.testing.assert_allclose(context["regions"], case["out/prep_att"], atol=ATOL)
    np.testing.assert_allclose(context["keys"], case["out/prep_p_att"], atol=ATOL)


def test_steps_match_the_reference(case):
    model, variables = cases.load(case)
    variables = {"params": effective(case, variables)}
    tokens, mask = cases.captions(case)

    @jax.jit
    def run(tokens):
        context = model.apply(variables, cases.regions(case), method="encode")
        carry = model.apply(variables, context, tokens.shape[1], method="init_carry")

        def body(carry, token):
            return model.apply(variables, carry, token, context, method="step")

        return jnp.moveaxis(jax.lax.scan(body, carry, jnp.moveaxis(tokens, 2, 0))[1], 0, 2)

    ours = run(tokens)
    theirs = case["out/step_logprobs"].reshape(ours.shape)
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=ATOL)
    np.testing.assert_allclose(ours, teacher_forced(case, model, variables["params"]), atol=1e-5)


def test_evaluation_gradients_match_the_reference(case):
    model, variables = cases.load(case)

    @jax.jit
    @jax.grad
    def gradients(variables):
        params = effective(case, variables)
        return caption_loss(teacher_forced(case, model, params), case)

    ours = gradients(variables)
    config, theirs = cases.config_of(case), cases.tensors(case, "grad_eval/")
    expected = cases.to_paths(theirs, config)
    cases.assert_trees_close(ours["params"], expected, atol=2e-5, rtol=1e-3)
    if config["prune_type"] == "supermask" and variables["masks"]:
        expected = cases.to_paths(theirs, config, cases.MASK_SUFFIX)
        cases.assert_trees_close(ours["masks"], expected, atol=2e-5, rtol=1e-3)


def test_training_gradients_with_fixed_mask_draws_match_the_reference(golden):
    case = golden("arch/up_down_lstm_prune_supermask.npz")
    model, variables = cases.load(case)
    drawn = cases.masks_of(case, "train_sampled_mask/")

    @jax.jit
    def loss(variables):
        binary = jax.tree.map(straight_through, variables["masks"], drawn)
        log_probs = teacher_forced(case, model, masked(variables["params"], binary))
        return caption_loss(log_probs, case), log_probs

    (value, log_probs), ours = jax.value_and_grad(loss, has_aux=True)(variables)
    theirs = case["out/train_tf_logprobs"].reshape(log_probs.shape)
    _, mask = cases.captions(case)
    np.testing.assert_allclose(log_probs[mask], theirs[mask], atol=ATOL)
    np.testing.assert_allclose(value, case["out/train_xe_loss"], rtol=1e-5)
    config, theirs = cases.config_of(case), cases.tensors(case, "grad_train/")
    for part, suffix in (("params", ""), ("masks", cases.MASK_SUFFIX)):
        expected = cases.to_paths(theirs, config, suffix)
        cases.assert_trees_close(ours[part], expected, atol=2e-5, rtol=1e-3)


def test_paper_size_has_the_papers_number_of_parameters():
    assert count_params(make_model({"name": "up_down", "vocab_size": 10001})) == 53_151_538


def test_initial_weights_are_distributed_as_the_references(golden, shared):
    case = golden("arch/up_down_lstm.npz")
    model, _ = cases.load(case)
    ours = model.init(jax.random.key(0), cases.regions(case), cases.captions(case)[0])["params"]
    ours = flatten_dict(ours)
    summary = json.loads((shared / "reference/arch/summary.json").read_text())
    theirs = dict(summary["up_down_lstm"]["init_stats(mean,std,min,max)"])
    for rule in cases.rules(cases.config_of(case)):
        leaf = ours[rule.path]
        if leaf.size >= 400:  # small leaves say little about their distribution
            _, std, low, high = theirs[rule.reference]
            np.testing.assert_allclose(np.std(leaf), std, rtol=0.1, err_msg=rule.reference)
            limit = max(-low, high)
            np.testing.assert_allclose(np.abs(leaf).max(), limit, rtol=0.3, err_msg=rule.reference)


def test_padding_regions_change_nothing(golden):
    case = golden("arch/up_down_lstm.npz")
    model, variables = cases.load(case)
    regions = cases.regions(case)
    wide = Regions(
        np.pad(regions.features, ((0, 0), (0, 3), (0, 0)), constant_values=7.0),
        np.pad(regions.mask, ((0, 0), (0, 3))),
        np.pad(regions.boxes, ((0, 0), (0, 3), (0, 0))),
        regions.fc,
    )
    tokens = cases.captions(case)[0]
    ours = model.apply(variables, wide, tokens)
    np.testing.assert_allclose(ours, model.apply(variables, regions, tokens), rtol=1e-6, atol=1e-6)


def test_dropout_is_on_in_training_only(golden):
    case = golden("arch/up_down_lstm.npz")
    model, variables = cases.load(case)
    inputs = cases.regions(case), cases.captions(case)[0]

    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, *inputs, train=True, rngs=rngs)

    assert np.abs(train(0) - train(1)).max() > 0.1
    np.testing.assert_array_equal(train(0), train(0))


def test_samples_and_self_critical_gradients_match_the_reference(golden):
    case = golden("arch/up_down_lstm.npz")
    model, variables = cases.load(case)
    kinds = ("scst/seq", "out/random4__seq", "out/random3_temp0.7__seq")
    sampled = np.concatenate([case[kind] for kind in kinds], axis=1)
    theirs = np.concatenate([case[f"{kind}_logprobs"] for kind in kinds], axis=1)
    tokens = np.concatenate([np.full_like(sampled[..., :1], 2), sampled[..., :-1]], axis=-1)
    rewards = case["scst/reward"].reshape(3, 3)
    mask = sampled[:, :3] != 0

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params):
        log_probs = model.apply({"params": params}, cases.regions(case), tokens)
        log_probs = jnp.take_along_axis(log_probs, sampled[..., None], axis=-1)[..., 0]
        return reward_loss(log_probs[:, :3], rewards, mask), log_probs

    (loss, log_probs), gradients = run(variables["params"])
    real = sampled != 0
    np.testing.assert_allclose(np.asarray(log_probs)[real], theirs[real], atol=ATOL)
    np.testing.assert_allclose(loss, case["scst/loss"], rtol=1e-5, atol=1e-6)
    expected = cases.to_paths(cases.tensors(case, "scst_grad/"), cases.config_of(case))
    cases.assert_trees_close(gradients, expected, atol=2e-5, rtol=1e-3)


def test_dropout_is_where_the_reference_has_it(golden):
    """Shapes of every dropout of a training pass, in order; all have the one rate."""
    case = golden("arch/up_down_lstm_logit2.npz")
    model, variables = cases.load(case)
    model = model.clone(dropout=0.25)
    found = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            found.append((args[0].shape, context.module.rate, kwargs["deterministic"]))
        return call(*args, **kwargs)

    inputs = cases.regions(case), cases.captions(case)[0]
    with nn.intercept_methods(record):
        apply = functools.partial(model.apply, train=True, rngs={"dropout": jax.random.key(0)})
        jax.eval_shape(apply, {"params": variables["params"]}, *inputs)
    (b, r), (_, k, t) = inputs[0].mask.shape, inputs[1].shape
    embedded = [(b, 32), (b, r, 32), (b, k, t, 24)]  # image, regions, words
    logits = [(b, k, t, 32), (b, k, t, 32)]  # language LSTM, hidden layer of the logits
    assert found == [(shape, 0.25, False) for shape in embedded + logits]


def test_pruned_models_start_as_dense_ones(shared):
    """Of the reference: the same figures for each weight, so that one initialiser serves both."""
    summary = json.loads((shared / "reference/arch/summary.json").read_text())
    checked = 0
    for name, record in summary.items():
        if "_prune_" not in name:
            continue
        dense = summary[name[: name.index("_prune_")]]["init_stats(mean,std,min,max)"]
        for parameter, figures in record["init_stats(mean,std,min,max)"].items():
            if parameter.endswith("_pruning_mask"):
                supermask = name.endswith("supermask")
                assert figures == [5.0 if supermask else 1.0, 0.0, *[5.0 if supermask else 1.0] * 2]
            else:
                assert figures == dense[parameter], (name, parameter)
                checked += 1
    assert checked > 100
