"""Soft-Attention against a slow version written from its equations, one region at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecap_jax import models
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.models import count_params, init_params
from sparsecap_jax.models.soft_attention import SoftAttention
from sparsecap_jax.types import Regions

B, K, T, R, D, V, E, H, A = 2, 3, 5, 4, 7, 11, 6, 8, 9
VALID = [4, 2]  # regions of each image
CELLS = ("lstm", "gru")


SHAPES = {
    "embed/embedding": (V, E),
    "init_state/kernel": (D, H),
    "keys/kernel": (D, A),
    "values/kernel": (D, A),
    "query/kernel": (H, A),
    "score/kernel": (A, 1),
    "logit/kernel": (H, V),
    "logit/bias": (V,),
}
CELL_SHAPES = {
    "lstm": {
        "lstm/kernel_ih": (E + A, 4 * H),
        "lstm/kernel_hh": (H, 4 * H),
        "lstm/bias": (4 * H,),
    },
    "gru": {
        "gru_gates/kernel_ih": (E + A, 2 * H),
        "gru_gates/kernel_hh": (H, 2 * H),
        "gru_gates/bias": (2 * H,),
        "gru_candidate/kernel_ih": (E + A, H),
        "gru_candidate/kernel_hh": (H, H),
        "gru_candidate/bias": (H,),
    },
}


def make_model(cell, **fields):
    sizes = {"feature_size": D, "embed_size": E, "rnn_size": H, "attention_size": A}
    return SoftAttention(vocab_size=V, cell=cell, **sizes, **fields)


@functools.cache
def compiled(model, **options):
    """`model.apply` with these options; `f(params, *arguments, rngs=None)`."""

    @jax.jit
    def apply(params, *arguments, rngs=None):
        return model.apply({"params": params}, *arguments, rngs=rngs, **options)

    return apply


def make_regions(padding=0):
    rng = np.random.default_rng(1)
    mask = np.arange(R + padding) < np.array(VALID)[:, None]
    features = np.zeros((B, R + padding, D), np.float32)
    features[mask] = rng.normal(size=(sum(VALID), D))
    fc = np.stack([f[m].mean(0) for f, m in zip(features, mask, strict=True)])
    return Regions(features, mask, np.zeros((B, R + padding, 4), np.float32), fc)


TOKENS = np.random.default_rng(2).integers(0, V, (B, K, T)).astype(np.int32)


def make_params(model):
    """Random params by the names and shapes below, large enough that every term shows."""
    rng = np.random.default_rng(0)
    params = {}
    for name, shape in (SHAPES | CELL_SHAPES[model.cell]).items():
        module, leaf = name.split("/")
        wide = 8.0 if module == "score" else 2.0  # attention far from uniform
        scale = 1.0 if leaf == "bias" else wide / np.sqrt(shape[0])
        values = scale * rng.normal(size=shape)
        params.setdefault(module, {})[leaf] = values.astype(np.float32)
    return params


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def slow_cell(cell, params, x, h, c):
    """LSTM (Hochreiter & Schmidhuber, forget gate) or GRU (Cho et al.) on single vectors."""

    def affine(name, state):
        p = params[name]
        return x @ p["kernel_ih"] + state @ p["kernel_hh"] + p["bias"]

    if cell == "lstm":
        pre = affine("lstm", h)
        i, f, g, o = (pre[n * H : (n + 1) * H] for n in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    gates = sigmoid(affine("gru_gates", h))
    reset, update = gates[:H], gates[H:]
    candidate = np.tanh(affine("gru_candidate", reset * h))
    return update * h + (1 - update) * candidate, c


def slow_log_probs(cell, params, regions, tokens):
    """float64 log-probs `[B, K, T, V]` and attention weights `[B, K, T, R]`, region by region."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    result, maps = np.zeros((*tokens.shape, V)), np.zeros((*tokens.shape, R))
    for b, k in np.ndindex(*tokens.shape[:2]):
        annotations = np.float64(regions.features[b, : VALID[b]])
        h, c = np.float64(regions.fc[b]) @ params["init_state"]["kernel"], np.zeros(H)
        context = np.zeros(A)
        for t in range(tokens.shape[2]):
            word = params["embed"]["embedding"][tokens[b, k, t]]
            h, c = slow_cell(cell, params, np.concatenate([word, context]), h, c)
            scores = [
                np.tanh(a @ params["keys"]["kernel"] + h @ params["query"]["kernel"])
                @ params["score"]["kernel"][:, 0]
                for a in annotations
            ]
            alpha = softmax(np.array(scores))
            context = sum(
                w * (a @ params["values"]["kernel"])
                for w, a in zip(alpha, annotations, strict=True)
            )
            logits = h @ params["logit"]["kernel"] + params["logit"]["bias"]
            result[b, k, t] = np.log(softmax(logits))
            maps[b, k, t, : VALID[b]] = alpha
    return result, maps


@pytest.mark.parametrize("cell", CELLS)
def test_equals_the_slow_version(cell):
    model = make_model(cell)
    params = make_params(model)
    expected, maps = slow_log_probs(cell, params, make_regions(), TOKENS)
    apply = compiled(model, mutable=("intermediates",))
    actual, state = apply(params, make_regions(), TOKENS)
    np.testing.assert_allclose(actual, expected, atol=2e-5)
    (attention,) = state["intermediates"]["attention"]
    np.testing.assert_allclose(attention, maps, atol=1e-5)
    assert maps[0].max() > 0.6  # attention far from uniform: it is seen to matter
    assert np.ptp(expected) > 4


@pytest.mark.parametrize("cell", CELLS)
def test_steps_equal_teacher_forcing(cell):
    model = make_model(cell)
    params = make_params(model)
    expected = compiled(model)(params, make_regions(), TOKENS)
    context = compiled(model, method="encode")(params, make_regions())
    carry = compiled(model, method="init_carry", rows=K)(params, context)
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(carry)} == {(B, K)}
    for t in range(T):
        tokens = jnp.asarray(TOKENS[..., t])
        carry, log_probs = compiled(model, method="step")(params, carry, tokens, context)
        np.testing.assert_allclose(log_probs, expected[:, :, t], atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_padding_regions_change_nothing(cell):
    model = make_model(cell)
    params = make_params(model)
    expected = compiled(model)(params, make_regions(), TOKENS)
    padded = make_regions(padding=3)
    garbage = np.where(padded.mask[..., None], padded.features, np.float32(50))
    for features in (padded.features, garbage):
        actual = compiled(model)(params, padded.replace(features=features), TOKENS)
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_order_of_regions_does_not_matter():
    """A feature grid is a set of regions."""
    model = make_model("lstm")
    params = make_params(model)
    regions = make_regions()
    features = regions.features.copy()
    features[0] = features[0, [2, 0, 3, 1]]
    actual = compiled(model)(params, regions.replace(features=features), TOKENS)
    np.testing.assert_allclose(actual, compiled(model)(params, regions, TOKENS), atol=1e-6)


def test_an_image_without_regions_gives_numbers():
    """Rows that only fill a batch up must not poison the gradient of the others."""
    model = make_model("lstm")
    params = make_params(model)
    regions = make_regions()
    regions = regions.replace(mask=np.stack([regions.mask[0], np.zeros(R, bool)]))

    @jax.jit
    def loss(params):
        return -jnp.mean(model.apply({"params": params}, regions, TOKENS)[0])

    value, gradient = jax.value_and_grad(loss)(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_regions_enter_after_the_first_word_and_the_image_before_it():
    model = make_model("lstm")
    params = make_params(model)
    regions = make_regions()
    before = compiled(model)(params, regions, TOKENS)
    moved = compiled(model)(params, regions.replace(features=2 * regions.features), TOKENS)
    np.testing.assert_array_equal(moved[:, :, 0], before[:, :, 0])
    assert np.abs(moved - before)[:, :, 1].min(axis=(0, 1)).max() > 1e-3
    other = compiled(model)(params, regions.replace(fc=2 * regions.fc), TOKENS)
    assert np.abs(other - before)[:, :, 0].max() > 1e-2


def test_dropout_is_where_it_should_be():
    """What is dropped gets no gradient: words, gathered values and outputs, but never the state."""
    width = 40
    model = SoftAttention(3, D, width, width, width, dropout=0.5, attention_dropout=0.0)
    regions = jax.tree.map(lambda leaf: leaf[:1], make_regions())
    tokens = np.int32([[[1, 2]]])
    params = init_params(model, jax.random.key(0))
    # the state that reaches the second word is then that of the first step alone
    params["init_state"] = jax.tree.map(jnp.zeros_like, params["init_state"])

    @jax.jit
    def gradient(params):
        def second_word(params):
            rngs = {"dropout": jax.random.key(1)}
            log_probs = model.apply({"params": params}, regions, tokens, train=True, rngs=rngs)
            return log_probs[0, 0, 1, 0]

        return jax.grad(second_word)(params)

    alive = jax.tree.map(lambda leaf: np.asarray(leaf) != 0, gradient(params))
    for name, units in {
        "words": alive["embed"]["embedding"][2],
        "gathered values": alive["values"]["kernel"].any(axis=0),
        "output to the query": alive["query"]["kernel"].any(axis=1),
        "output to the logits": alive["logit"]["kernel"].any(axis=1),
    }.items():
        assert 0.25 < units.mean() < 0.75, name
    assert not alive["embed"]["embedding"][0].any()
    assert alive["lstm"]["kernel_hh"].any(axis=1).all()


def test_dropout_of_the_attention_weights():
    """It acts on what the second word gets to see; without any rate training is evaluation."""
    params = make_params(make_model("lstm"))
    expected = compiled(make_model("lstm"))(params, make_regions(), TOKENS)

    def run(rate, seed=0):
        model = make_model("lstm", dropout=0.0, attention_dropout=rate)
        rngs = {"dropout": jax.random.key(seed)}
        return compiled(model, train=True)(params, make_regions(), TOKENS, rngs=rngs)

    np.testing.assert_allclose(run(0.0), expected, atol=1e-5)
    dropped = run(0.5)
    np.testing.assert_allclose(dropped[:, :, 0], expected[:, :, 0], atol=1e-5)
    assert np.abs(dropped - expected)[:, :, 1].max() > 1e-2
    np.testing.assert_array_equal(dropped, run(0.5))
    assert np.abs(dropped - run(0.5, seed=1)).max() > 1e-2


def test_dropout_is_drawn_anew_at_each_step_and_keeps_the_mean():
    """With one region and zero kernels around them, the gathered value is values * mask / keep."""
    model = make_model("lstm", dropout=0.0, attention_dropout=0.5)
    params = jax.tree.map(np.zeros_like, make_params(model))
    params["values"]["kernel"][:] = np.eye(D, A)
    params["lstm"]["kernel_ih"][E:, 2 * H : 3 * H] = 0.01
    params["logit"]["kernel"][:, 0] = 1
    ones = np.ones((64, 1, D), np.float32)
    regions = Regions(ones, ones[..., 0] > 0, np.zeros((64, 1, 4), np.float32), ones[:, 0])
    tokens = np.zeros((64, 1, 3), np.int32)
    rngs = {"dropout": jax.random.key(0)}
    log_probs = compiled(model, train=True)(params, regions, tokens, rngs=rngs)
    logit = np.asarray(log_probs[:, 0, :, 0] - log_probs[:, 0, :, 1])  # H * h of each step
    # forget, input and output gates are all 1/2: c_t = c_{t-1}/2 + tanh(0.01 D * (0 or 2))/2
    kept = [np.arctanh(logit[:, t] / H * 2) for t in range(3)]  # cell states c_t
    new = np.stack([kept[1], kept[2] - kept[1] / 2], -1) / (np.tanh(0.02 * D) / 2)
    np.testing.assert_allclose(kept[0], 0, atol=1e-7)
    np.testing.assert_allclose(new, np.round(new), atol=1e-4)
    assert set(np.round(new).ravel()) == {0, 1}
    assert 0.3 < np.round(new).mean() < 0.7
    assert (np.round(new[:, 0]) != np.round(new[:, 1])).mean() > 0.25


def flat(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


@pytest.mark.parametrize("cell", CELLS)
def test_parameter_shapes(cell):
    params = jax.eval_shape(make_model(cell).init, jax.random.key(0), make_regions(), TOKENS)
    params = flat(params["params"])
    assert {name: leaf.shape for name, leaf in params.items()} == SHAPES | CELL_SHAPES[cell]
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("cell", "vocab_size", "expected"),
    [
        # V*256 + 3*2048*512 + 512*512 + 512 + cell + 512*V + V
        # LSTM: (256+512+512)*4*512 + 4*512 = 2,623,488
        # GRU: (256+512+512)*3*512 + 3*512 = 1,967,616
        ("lstm", 10_001, 13_722_641),
        ("gru", 10_001, 13_066_769),
        ("lstm", 771, 6_624_771),  # radix base 768
    ],
)
def test_parameter_counts_at_paper_size(cell, vocab_size, expected):
    assert count_params(SoftAttention(vocab_size=vocab_size, cell=cell)) == expected


@pytest.mark.parametrize("cell", CELLS)
def test_initial_values(cell):
    """Glorot bounds of the joint matrices; biases 0, and 1 for forget and GRU gates."""
    model = SoftAttention(300, 64, 32, 48, 40, cell=cell)
    params = flat(init_params(model, jax.random.key(0)))
    inputs = 32 + 40 + 48
    bounds = {
        "embed/embedding": 6 / (300 + 32),
        "init_state/kernel": 6 / (64 + 48),
        "keys/kernel": 6 / (64 + 40),
        "values/kernel": 6 / (64 + 40),
        "query/kernel": 6 / (48 + 40),
        "score/kernel": 3 / 40,
        "logit/kernel": 6 / (48 + 300),
        "lstm/kernel_ih": 6 / (inputs + 4 * 48),
        "lstm/kernel_hh": 6 / (inputs + 4 * 48),
        "gru_gates/kernel_ih": 6 / (inputs + 2 * 48),
        "gru_gates/kernel_hh": 6 / (inputs + 2 * 48),
        "gru_candidate/kernel_ih": 6 / (inputs + 48),
        "gru_candidate/kernel_hh": 6 / (inputs + 48),
    }
    for name in (name for name in params if not name.endswith("bias")):
        largest = np.abs(params[name]).max()
        assert 0.9 * bounds[name] ** 0.5 < largest <= bounds[name] ** 0.5, name
    ones = {"lstm/bias": slice(48, 96), "gru_gates/bias": slice(0, 96)}
    for name in (name for name in params if name.endswith("bias")):
        expected = np.zeros(params[name].shape)
        if name in ones:
            expected[ones[name]] = 1
        np.testing.assert_array_equal(params[name], expected)


def scans(jaxpr):
    """All scans anywhere inside a jaxpr."""
    for equation in jaxpr.eqns:
        inner = [v.jaxpr for v in equation.params.values() if hasattr(v, "jaxpr")]
        if equation.primitive.name == "scan":
            yield equation
        for sub in inner:
            yield from scans(sub)


@pytest.mark.parametrize(("cell", "matmuls"), [("lstm", 5), ("gru", 6)])
def test_only_what_depends_on_the_state_is_in_the_scan(cell, matmuls):
    """attended and state kernels (GRU: two), query, score, weights @ values; nothing else."""
    model = make_model(cell)
    params = make_params(model)
    jaxpr = jax.make_jaxpr(lambda p, r: model.apply({"params": p}, r, TOKENS))(
        params, make_regions()
    )
    (scan,) = scans(jaxpr.jaxpr)
    assert scan.params["length"] == T
    names = [equation.primitive.name for equation in scan.params["jaxpr"].jaxpr.eqns]
    assert names.count("dot_general") == matmuls


def test_unknown_cell():
    with pytest.raises(ConfigError, match=r"model\.cell is 'rnn'; \(valid: gru, lstm\)"):
        models.make_model({"name": "soft_attention", "vocab_size": V, "cell": "rnn"})
