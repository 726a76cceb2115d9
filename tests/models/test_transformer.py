"""The transformers against the reference's figures, and the properties of their interface.

Gradients are taken without `jit`: all figures have the same shapes, so that the operations compiled
for the first file serve the others.
"""

import functools
import json

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import reference_cases as cases
import transformer_cases as tc
from flax import linen as nn
from flax.traverse_util import flatten_dict

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.formulas import sinusoids
from sparsecap_jax.models import abstract_params, attention, count_params, make_model
from sparsecap_jax.training.losses import cross_entropy
from sparsecap_jax.types import Regions


@pytest.fixture(scope="module", params=tc.ALL)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def case(name, golden):
    return golden(f"arch/{name}.npz")


@pytest.fixture(scope="module")
def evaluated(case):
    """Log-probs, encoder output, loss and its gradients in evaluation mode."""
    model, variables = cases.load(case)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(variables):
        bound = model.bind({"params": tc.effective(case, variables)})
        context = bound.encode(cases.regions(case))
        log_probs = bound.decode(context, tc.inputs(case))
        return tc.caption_loss(log_probs, case), (log_probs, context)

    (loss, (log_probs, context)), gradients = run(variables)
    return loss, log_probs, context, gradients


def test_teacher_forcing_matches_the_reference(name, case, evaluated):
    loss, log_probs, context, _ = evaluated
    theirs = case["out/tf_logprobs"].reshape(log_probs.shape)
    np.testing.assert_allclose(log_probs, theirs, atol=tc.atol(name))
    np.testing.assert_allclose(loss, case["out/tf_xe_loss"], rtol=1e-5)
    np.testing.assert_allclose(context["memory"], case["out/memory"], atol=tc.atol(name))
    tokens, mask = (one[..., 1:] for one in cases.captions(case))
    smoothed = cross_entropy(log_probs, tokens, mask, 0.1)
    np.testing.assert_allclose(smoothed, case["out/tf_label_smoothing_0.1_loss"], rtol=1e-4)


def test_evaluation_gradients_match_the_reference(name, case, evaluated):
    gradients = evaluated[3]
    config, theirs = cases.config_of(case), cases.tensors(case, "grad_eval/")
    atol = tc.gradient_atol(name)
    expected = cases.to_paths(theirs, config)
    cases.assert_trees_close(gradients["params"], expected, atol=atol, rtol=1e-3)
    expected = cases.to_paths(theirs, config, cases.MASK_SUFFIX)
    assert bool(expected) == name.endswith("supermask")
    if expected:
        cases.assert_trees_close(gradients["masks"], expected, atol=atol, rtol=1e-3)


def test_steps_equal_teacher_forcing_and_decode_as_the_reference(name, case, evaluated):
    model, variables = cases.load(case)
    params = tc.effective(case, variables)
    encode, step = tc.stepper(model, params)
    context = encode(cases.regions(case))
    tokens = tc.inputs(case)

    stepped = tc.run_steps(model, params, cases.regions(case), tokens)
    real = tokens != 0
    np.testing.assert_allclose(stepped[real], np.asarray(evaluated[1])[real], atol=3e-5)
    if name in tc.CACHE_IS_RIGHT:
        theirs = case["out/step_logprobs"].reshape(stepped.shape)
        np.testing.assert_allclose(stepped[real], theirs[real], atol=tc.atol(name))

    # Greedy, whole prefix recomputed at each step by the reference; captions may contain PAD.
    expected = case["out/nocache_greedy__seq"]
    carry = model.apply({}, context, 1, method="init_carry")
    words, found = jnp.full((3, 1), 2, jnp.int32), []
    for _ in range(expected.shape[-1]):
        carry, log_probs = step(carry, words, context)
        words = jnp.argmax(log_probs, axis=-1).astype(jnp.int32)
        found.append(words)
    found = np.stack(found, axis=-1)
    ended = np.cumsum(found == 3, axis=-1) - (found == 3) > 0
    np.testing.assert_array_equal(np.where(ended, 0, found), expected)


@pytest.mark.parametrize("name", ["transformer", "relation_transformer"])
def test_samples_and_self_critical_gradients_match_the_reference(name, golden):
    """Decoding looks at generated PADs: so does teacher forcing with a mask of ones."""
    case = golden(f"arch/{name}.npz")
    model, variables = cases.load(case)
    kinds = ("scst/seq", "out/random4__seq", "out/random3_temp0.7__seq")
    sampled = np.concatenate([case[kind] for kind in kinds], axis=1)
    theirs = np.concatenate([case[f"{kind}_logprobs"] for kind in kinds], axis=1)
    tokens = np.concatenate([np.full_like(sampled[..., :1], 2), sampled[..., :-1]], axis=-1)
    rewards = case["scst/reward"].reshape(3, 3, 1)
    weights = (sampled[:, :3] != 0).astype(np.float32)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params):
        bound = model.bind({"params": params})
        context = bound.encode(cases.regions(case))
        log_probs = bound.decode(context, tokens, np.ones(tokens.shape, bool))
        log_probs = jnp.take_along_axis(log_probs, sampled[..., None], axis=-1)[..., 0]
        loss = -jnp.sum(log_probs[:, :3] * rewards * weights) / jnp.sum(weights)
        return loss, log_probs

    (loss, log_probs), gradients = run(variables["params"])
    real = sampled != 0
    np.testing.assert_allclose(np.asarray(log_probs)[real], theirs[real], atol=tc.atol(name))
    np.testing.assert_allclose(loss, case["scst/loss"], rtol=1e-4, atol=1e-4)
    expected = cases.to_paths(cases.tensors(case, "scst_grad/"), cases.config_of(case))
    cases.assert_trees_close(gradients, expected, atol=tc.gradient_atol(name), rtol=1e-3)


@pytest.mark.parametrize("name", ["transformer_acort_mixed", "relation_transformer"])
def test_initial_weights_are_distributed_as_the_references(name, golden, shared):
    case = golden(f"arch/{name}.npz")
    model, _ = cases.load(case)
    ours = model.init(jax.random.key(0), cases.regions(case), tc.inputs(case))["params"]
    ours = flatten_dict(ours)
    summary = json.loads((shared / "reference/arch/summary.json").read_text())
    theirs = summary[name]["init_stats(mean,std,min,max)"]
    equal_starts = {}
    for rule in cases.rules(cases.config_of(case)):
        if rule.reference not in theirs:
            continue  # a further name of a shared layer
        leaf, (mean, std, low, high) = np.asarray(ours[rule.path]), theirs[rule.reference]
        if std == 0.0 and leaf.size > 1:  # norms
            np.testing.assert_array_equal(leaf, mean, err_msg=rule.reference)
        elif leaf.size >= 400:  # small leaves say little about their distribution
            np.testing.assert_allclose(leaf.std(), std, rtol=0.1, err_msg=rule.reference)
            limit = max(-low, high)
            np.testing.assert_allclose(np.abs(leaf).max(), limit, rtol=0.03, err_msg=rule.reference)
        if rule.reference.endswith("bias"):
            key = tuple(leaf.round(6))
            equal_starts.setdefault((mean, std, low, high), set()).add(key)
    # Biases that start equal there start equal here, and no others.
    assert [len(found) for found in equal_starts.values()] == [1] * len(equal_starts)
    assert len(set.union(*equal_starts.values())) == len(equal_starts)


@pytest.mark.parametrize("name", tc.ALL)
def test_number_of_parameters(name, golden, shared):
    case = golden(f"arch/{name}.npz")
    summary = json.loads((shared / "reference/arch/summary.json").read_text())
    config = cases.config_of(case)
    masks = sum(v.size for k, v in cases.tensors(case, "param/").items() if k.endswith("_mask"))
    model, _ = cases.load(case)
    assert count_params(model) == summary[name]["n_params"] - masks, config


def test_dropout_is_where_the_reference_has_it():
    """Rates and shapes of every dropout of a training pass, in order."""
    sizes = {"source_dropout": 0.5, "dropout": 0.25}
    model, params, regions, tokens = tc.small_model(**sizes)
    found = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            found.append((context.module.rate, args[0].shape, kwargs["deterministic"]))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        apply = functools.partial(model.apply, train=True, rngs={"dropout": jax.random.key(0)})
        jax.eval_shape(apply, {"params": params}, regions, tokens)
    words = 2 * 3 * 7
    encoder = [(2, 4, 5, 5), (2 * 5, 16), (2 * 5, 24), (2 * 5, 16)]
    self_attn, cross_attn = [(6, 4, 7, 7), (words, 16)], [(2, 4, 21, 5), (words, 16)]
    decoder = self_attn + cross_attn + [(words, 24), (words, 16)]
    expected = [(0.5, (2 * 5, 16), False)]
    expected += [(0.25, shape, False) for shape in encoder * 2 + [(words, 16)] + decoder * 2]
    assert found == expected


def test_dropout_is_on_in_training_only():
    model, params, regions, tokens = tc.small_model(num_layers=1)
    apply = functools.partial(tc.apply, train=True)
    first = apply(model, params, regions, tokens, rngs={"dropout": jax.random.key(0)})
    again = apply(model, params, regions, tokens, rngs={"dropout": jax.random.key(0)})
    other = apply(model, params, regions, tokens, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    model = model.clone(dropout=0.0, source_dropout=0.0)
    rngs = {"dropout": jax.random.key(0)}
    without = apply(model, params, regions, tokens, rngs=rngs)
    np.testing.assert_allclose(without, tc.apply(model, params, regions, tokens), atol=1e-6)


def test_packed_decoding_equals_padded_decoding():
    model, params, regions, tokens = tc.small_model()
    seen = np.arange(7) < np.array([[7, 2, 4], [0, 1, 5]])[..., None]
    pick = np.flatnonzero(seen)

    @functools.partial(jax.jit, static_argnums=1)
    def packed(seen, size):
        bound = model.bind({"params": params})
        return bound.decode_packed(bound.encode(regions), tokens, seen, size)

    bound = model.bind({"params": params})
    expected = jax.jit(lambda: bound.decode(bound.encode(regions), tokens, seen))()
    expected = expected.reshape(-1, 11)[pick]
    for size in (len(pick), tokens.size):
        log_probs, places = packed(seen, size)
        empty = (0, size - len(pick))
        np.testing.assert_array_equal(places, np.pad(pick, empty, constant_values=tokens.size))
        np.testing.assert_allclose(log_probs[: len(pick)], expected, atol=1e-5)
    seen[0, 1, 2] = True  # one word more: too small a size cannot go unnoticed
    assert np.isnan(packed(seen, len(pick))[0]).all()


def test_memory_is_never_copied_per_row():
    """No array of the whole pass is as large as the memory, keys or values of all rows would be."""
    model, params, regions, _ = tc.small_model()
    regions = jax.tree.map(lambda leaf: np.repeat(leaf, 8, axis=1), regions)
    rows, count, width = 12, 40, 16
    tokens = np.ones((2, rows, 1), np.int32)

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.size for v in equation.outvars)
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from sizes(inner)

    def largest(apply, *args, **kwargs):
        call = functools.partial(apply, **kwargs)
        return max(sizes(jax.make_jaxpr(call)({"params": params}, *args).jaxpr))

    encoder_scores = 2 * 4 * count * count
    assert largest(model.apply, regions, tokens) == encoder_scores < 2 * rows * count * width
    context = tc.apply(model, params, regions, method="encode")
    carry = model.apply({}, context, rows, method="init_carry")
    step = functools.partial(largest, model.apply, method="step")
    scores_of_regions, cache = 2 * rows * 4 * count, 2 * rows * width * 7
    assert step(carry, tokens[:, :, 0], context) == scores_of_regions > cache


def test_carry_and_context_have_the_interfaces_axes():
    model, params, regions, tokens = tc.small_model("relation_transformer")
    encode, step = tc.stepper(model, params)
    context = encode(regions)
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(context))
    carry = model.apply({}, context, 3, method="init_carry")
    assert carry["position"].shape == (2, 3) and carry["position"].dtype == np.int32
    shapes = {leaf.shape for leaf in jax.tree.leaves(carry["cache"])}
    assert shapes == {(2, 3, 4, 7, 4)} and len(jax.tree.leaves(carry["cache"])) == 4
    after, _ = step(carry, tokens[:, :, 0], context)
    same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, carry, after)
    assert all(jax.tree.leaves(same))
    np.testing.assert_array_equal(after["position"], np.ones((2, 3)))


def test_rows_can_be_reordered_and_stand_at_different_positions():
    model, params, regions, tokens = tc.small_model()
    encode, step = tc.stepper(model, params)
    context = encode(regions)
    empty = model.apply({}, context, 3, method="init_carry")
    one, _ = step(empty, tokens[:, :, 0], context)
    two, _ = step(one, tokens[:, :, 1], context)
    _, expected_one = step(one, tokens[:, :, 2], context)
    _, expected_two = step(two, tokens[:, :, 2], context)

    order = np.array([2, 0, 0])
    reordered = jax.tree.map(lambda leaf: leaf[:, order], two)
    _, log_probs = step(reordered, tokens[:, order, 2], context)
    np.testing.assert_allclose(log_probs, expected_two[:, order], atol=1e-6)

    mixed = jax.tree.map(lambda a, b: jnp.concatenate([a[:, :1], b[:, 1:]], axis=1), one, two)
    _, log_probs = step(mixed, tokens[:, :, 2], context)
    np.testing.assert_allclose(log_probs[:, :1], expected_one[:, :1], atol=1e-6)
    np.testing.assert_allclose(log_probs[:, 1:], expected_two[:, 1:], atol=1e-6)


def test_steps_beyond_the_cache_are_not_a_number():
    model, params, regions, tokens = tc.small_model(max_seq_length=3)
    log_probs = tc.run_steps(model, params, regions, tokens[:, :, :4])
    assert np.isfinite(log_probs[:, :, :3]).all() and np.isnan(log_probs[:, :, 3]).all()


@pytest.mark.parametrize("kind", ["transformer", "relation_transformer"])
def test_padding_regions_change_nothing(kind):
    model, params, regions, tokens = tc.small_model(kind)
    pad = ((0, 0), (0, 3), (0, 0))
    wide = Regions(
        np.pad(regions.features, pad, constant_values=7.0),
        np.pad(regions.mask, pad[:2]),
        np.pad(regions.boxes, pad),
        regions.fc,
    )
    expected = tc.apply(model, params, regions, tokens)
    ours = tc.apply(model, params, wide, tokens)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_attention_over_regions_is_sown_on_request():
    model, params, regions, tokens = tc.small_model()
    _, sown = tc.apply(model, params, regions, tokens, mutable="intermediates")
    (whole,) = sown["intermediates"]["attention"]
    assert whole.shape == (2, 3, 7, 5)
    np.testing.assert_allclose(whole.sum(axis=-1), 1.0, atol=1e-5)
    assert (whole[1, :, :, 3:] == 0).all()  # padded regions
    context = tc.apply(model, params, regions, method="encode")
    carry = model.apply({}, context, 3, method="init_carry")
    step = functools.partial(tc.apply, method="step", mutable="intermediates")
    _, sown = step(model, params, carry, tokens[:, :, 0], context)
    np.testing.assert_allclose(sown["intermediates"]["attention"][0], whole[:, :, 0], atol=1e-6)


def test_bfloat16_rounds_products_and_nothing_else():
    model, params, regions, tokens = tc.small_model(num_layers=1)
    half = model.clone(compute_dtype="bfloat16")
    exact = tc.apply(model, params, regions, tokens)
    rounded = tc.apply(half, params, regions, tokens)
    assert rounded.dtype == np.float32
    error = np.abs(rounded - exact).max()
    assert 1e-4 < error < 16 * 2.0**-8  # a few roundings to 8 bits of values of about 1

    def loss(params):
        return -jnp.mean(tc.apply(half, params, regions, tokens))

    for tree in (abstract_params(half), jax.eval_shape(jax.grad(loss), params)):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(np.exp(rounded).sum(axis=-1), 1.0, atol=1e-5)


def test_remat_recomputes_each_layer_and_changes_no_result():
    model, params, regions, tokens = tc.small_model(num_layers=1)
    spared = model.clone(remat=True)
    rngs = {"dropout": jax.random.key(0)}

    def loss(params, model):
        apply = functools.partial(model.apply, train=True, rngs=rngs)
        return jnp.mean(apply({"params": params}, regions, tokens)[..., 3])

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    (expected, expected_grads), (found, grads) = run(params, model), run(params, spared)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, expected_grads)
    jaxpr = jax.make_jaxpr(jax.grad(loss), static_argnums=1)(params, spared)
    assert str(jaxpr).count("remat2[") == 2  # both layers


def test_layer_norm_by_hand():
    rows = jnp.array([[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0]], jnp.float32)
    params = {"scale": np.float32([1, 1, 2, 1]), "bias": np.float32([0, 0, 0, 1])}
    norm = functools.partial(attention.LayerNorm().apply, {"params": params})
    # Mean 3; squares of deviations 4 + 1 + 0 + 9 = 14, divided by 3.
    std = (14 / 3) ** 0.5 + 1e-6
    expected = [[-2 / std, -1 / std, 0, 3 / std + 1], [0, 0, 0, 1]]
    np.testing.assert_allclose(norm(rows), expected, atol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(norm(x)[:, 0]))(rows)
    assert np.isfinite(gradient).all() and np.abs(gradient[0]).max() > 0.1


def test_sinusoids_by_hand():
    table = sinusoids(26, 6)
    for position in (0, 1, 25):
        for pair in range(3):
            angle = position / 10000 ** (2 * pair / 6)
            expected = [np.sin(angle), np.cos(angle)]
            np.testing.assert_allclose(
                table[position, 2 * pair : 2 * pair + 2], expected, atol=1e-6
            )


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"d_model": 20, "num_heads": 8}, "model.d_model is 20; expected an even multiple of mode"),
        ({"dropout": 1.0}, "model.dropout is 1.0; expected at least 0 and below 1"),
        ({"num_layers": 0}, "model.num_layers is 0; expected at least 1"),
        (
            {"share_attention_encoder": "vk"},
            "model.share_attention_encoder is 'vk'",
        ),
        ({"share_layer_decoder": (0, 2)}, "model.share_layer_decoder is .* without gaps"),
        ({"compute_dtype": "float16"}, "model.compute_dtype is 'float16'; .*valid: bfloat16, f"),
    ],
)
def test_fields_out_of_range_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        make_model({"name": "transformer", "vocab_size": 10, **fields})
