"""Greedy search and sampling: exact against prefix-by-prefix loops, and in distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_fakes import (
    EOS,
    HashModel,
    SlowModel,
    captions_of,
    fast_decode,
    images,
    random_table,
)

from sparsecap_jax.decoding import DecodeOptions, decode
from sparsecap_jax.decoding.search import keep_top_k, keep_top_p
from sparsecap_jax.errors import ConfigError

STARTS = np.arange(12) * 7
VOCAB = 8


def test_greedy_equals_a_loop():
    options = DecodeOptions(method="greedy", max_length=9)
    for seed in range(10):
        table = random_table(seed, VOCAB)
        decoded = fast_decode(
            HashModel(VOCAB), {"table": jnp.asarray(table)}, images(STARTS), options
        )
        for image, start in enumerate(STARTS):
            model, prefix, history = SlowModel(table, int(start)), [], []
            while len(prefix) < 9 and EOS not in prefix:
                log_probs = model(prefix)
                prefix.append(int(log_probs.argmax()))
                history.append(log_probs.max())
            assert captions_of(decoded, image) == [tuple(prefix)]
            expected = np.pad(np.array(history, np.float32), (0, 9 - len(history)))
            np.testing.assert_array_equal(decoded.log_probs[image, 0], expected)
            assert decoded.scores[image, 0] == expected.sum()
            assert not np.asarray(decoded.tokens)[image, 0, len(prefix) :].any()


@pytest.mark.parametrize(
    "options",
    [
        {"method": "sample"},
        {"method": "gumbel", "temperature": 0.6},
        {"method": "sample", "top_k": 3},
        {"method": "gumbel", "top_p": 0.7, "temperature": 1.5},
    ],
)
def test_frequencies_of_samples_match_the_distribution(options):
    table = random_table(0, VOCAB, ties=False)
    log_probs = np.float64(SlowModel(table, 5)([]))
    probs = np.exp(log_probs / options.get("temperature", 1.0))
    probs /= probs.sum()
    order = np.argsort(-probs)
    kept = np.ones(VOCAB, bool)
    if "top_k" in options:
        kept[order[options["top_k"] :]] = False
    if "top_p" in options:
        before = np.cumsum(probs[order]) - probs[order]
        kept[order[before >= options["top_p"]]] = False
    assert (1 < kept.sum() < VOCAB) == ("top_k" in options or "top_p" in options)
    probs = np.where(kept, probs, 0) / probs[kept].sum()

    count = 4000
    settings = DecodeOptions(num_samples=count, max_length=1, **options)
    params = {"table": jnp.asarray(table)}
    decoded = fast_decode(HashModel(VOCAB), params, images([5, 5]), settings, jax.random.key(0))
    tokens = np.asarray(decoded.tokens).reshape(-1)
    # The log-probs are the model's, not those of the distribution drawn from.
    np.testing.assert_array_equal(np.asarray(decoded.log_probs).reshape(-1), log_probs[tokens])
    seen = np.bincount(tokens, minlength=VOCAB)
    assert not seen[~kept].any()
    expected = 2 * count * probs[kept]
    chi_square = np.sum((seen[kept] - expected) ** 2 / expected)
    freedom = kept.sum() - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


# One compilation for each number of images serves the tests below.
SAMPLING = DecodeOptions(method="sample", num_samples=5, max_length=7)


def sample(starts, key):
    params = {"table": jnp.asarray(random_table(4, VOCAB, ties=False))}
    return fast_decode(HashModel(VOCAB), params, images(starts), SAMPLING, key)


def test_samples_have_the_log_probs_of_their_tokens_and_stop_at_eos():
    decoded = sample(STARTS, jax.random.key(3))
    for image, start in enumerate(STARTS):
        model = SlowModel(random_table(4, VOCAB, ties=False), int(start))
        for row, caption in enumerate(captions_of(decoded, image)):
            assert EOS not in caption[:-1]
            assert caption[-1] == EOS or len(caption) == 7
            expected = [model(caption[:i])[token] for i, token in enumerate(caption)]
            np.testing.assert_array_equal(decoded.log_probs[image, row, : len(caption)], expected)
            np.testing.assert_allclose(decoded.scores[image, row], sum(expected), rtol=1e-6)
    lengths = np.asarray(decoded.lengths)
    assert len(set(lengths.ravel())) > 3


def test_sampling_is_reproducible_and_rows_differ():
    starts = np.zeros(12)
    first, again = sample(starts, jax.random.key(1)), sample(starts, jax.random.key(1))
    other = sample(starts, jax.random.key(2))
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (np.asarray(first.tokens) != np.asarray(other.tokens)).any()
    # 60 rows of the same image: many are different captions.
    assert len({row.tobytes() for row in np.asarray(first.tokens).reshape(60, 7)}) > 30


def test_a_key_per_image_makes_samples_independent_of_the_batch():
    keys = jax.random.split(jax.random.key(9), len(STARTS))
    together = sample(STARTS, keys)
    order = np.random.default_rng(0).permutation(len(STARTS))[:5]
    part = sample(STARTS[order], keys[order])
    np.testing.assert_array_equal(part.tokens, np.asarray(together.tokens)[order])


def test_a_single_key_gives_an_image_the_same_samples_in_any_bucket():
    small, large = sample(STARTS[:5], jax.random.key(9)), sample(STARTS, jax.random.key(9))
    np.testing.assert_array_equal(small.tokens, np.asarray(large.tokens)[:5])


def test_the_search_ends_with_the_last_caption():
    """Steps are counted by a model that adds them up in a host callback."""
    steps = []

    class Counting(HashModel):
        def step(self, carry, tokens, context):
            jax.debug.callback(lambda: steps.append(1))
            return super().step(carry, tokens, context)

    greedy, beam = DecodeOptions(method="greedy"), DecodeOptions(beam_size=2)
    for options, eos, expected in [
        (greedy, -1, 1),
        (greedy, -9, 18),
        (beam, -1, 2),
        (beam, -9, 18),
    ]:
        table = np.full((97, VOCAB), -5.0, np.float32)
        table[:, EOS] = eos
        steps.clear()
        fast_decode(Counting(VOCAB), {"table": jnp.asarray(table)}, images([1, 2]), options)
        jax.effects_barrier()
        assert len(steps) == expected


def test_many_samples_are_searched_for_on_fewer_rows_as_they_end(monkeypatch):
    """The same captions as on all rows, and the row counts that captions' lengths call for."""
    rows = []

    class Counting(HashModel):
        def step(self, carry, tokens, context):
            jax.debug.callback(lambda: rows.append(tokens.shape[1]))
            return super().step(carry, tokens, context)

    table = random_table(4, VOCAB, ties=False)
    table[:, EOS] -= 0.5  # longer captions
    params = {"table": jnp.asarray(table)}
    options = DecodeOptions(method="sample", num_samples=40, max_length=15, no_repeat_ngram=3)
    given = Counting(VOCAB), params, images(STARTS[:3]), options, jax.random.key(5)
    found = fast_decode(*given)
    jax.effects_barrier()

    lengths = np.asarray(found.lengths)
    assert (lengths.min(), lengths.max()) == (1, 15)
    expected = [1]
    for position in range(1, lengths.max()):
        most = (lengths > position).sum(axis=1).max()
        expected.append(min(size for size in (10, 20, 30, 40) if size >= most))
    assert rows == expected
    assert set(rows) == {1, 10, 20, 30, 40}

    class Whole(Counting):
        """Another class, and so compiled anew."""

    monkeypatch.setattr("sparsecap_jax.decoding.search._STAGES", ())
    rows.clear()
    whole = fast_decode(Whole(VOCAB), *given[1:])
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    jax.effects_barrier()
    assert rows == [1] + [40] * 14


@pytest.mark.parametrize(
    "options",
    [
        {"method": "greedy"},
        {"method": "sample", "num_samples": 2},
        {"beam_size": 3, "no_repeat_ngram": 2},
        {"beam_size": 4, "num_groups": 2},
    ],
)
def test_batches_of_one_shape_compile_once(options):
    """A model's Python code runs while it is traced for a compilation, and never again."""
    traces = []

    class Traced(HashModel):
        def step(self, carry, tokens, context):
            traces.append(1)
            return super().step(carry, tokens, context)

    lengths = set()
    for batch in range(21):
        params = {"table": jnp.asarray(random_table(batch, VOCAB))}
        key = jax.random.key(batch)
        found = decode(Traced(VOCAB), params, images(STARTS + batch), DecodeOptions(**options), key)
        lengths.update(np.unique(found.lengths).tolist())
        if batch == 0:
            assert traces
            traces.clear()
    assert not traces
    assert len(lengths) > 3


def test_keep_top_k_keeps_the_first_of_equals():
    logits = jnp.asarray([[[1.0, 3.0, 2.0, 2.0, 2.0]]], jnp.float32)
    kept = np.isfinite(np.asarray(keep_top_k(logits, 3)))[0, 0]
    np.testing.assert_array_equal(kept, [False, True, True, True, False])


@pytest.mark.parametrize(
    ("mass", "expected"),
    [(0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.95, 4), (1e-6, 1)],
)
def test_keep_top_p_keeps_what_the_mass_needs(mass, expected):
    probs = np.array([0.1, 0.4, 0.2, 0.3], np.float32)
    kept = np.isfinite(np.asarray(keep_top_p(jnp.log(probs)[None, None], mass)))[0, 0]
    np.testing.assert_array_equal(np.flatnonzero(kept), sorted(np.argsort(-probs)[:expected]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "rng: found none"),
        ({"rng": jnp.zeros(2, jnp.uint32)}, "rng: found dtype uint32, expected a key"),
        ({"rng": jax.random.split(jax.random.key(0), 3)}, r"rng: found shape \(3,\), expected"),
        ({"prefix": np.zeros((3, 1), np.int32)}, "prefix: found 3 images, expected 2"),
    ],
)
def test_wrong_arguments_are_refused(given, message):
    params = {"table": jnp.asarray(random_table(0, VOCAB))}
    with pytest.raises(ConfigError, match=message):
        decode(HashModel(VOCAB), params, images([0, 1]), DecodeOptions(method="sample"), **given)


def test_a_batch_spread_over_devices_decodes_alike():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    params = {"table": jnp.asarray(random_table(1, VOCAB))}
    regions = images(STARTS)
    options = DecodeOptions(beam_size=3, max_length=6)
    one = fast_decode(HashModel(VOCAB), params, regions, options)
    four = fast_decode(HashModel(VOCAB), params, jax.device_put(regions, spread), options)
    np.testing.assert_array_equal(one.tokens, four.tokens)
    np.testing.assert_array_equal(one.scores, four.scores)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "bean"}, "method: found 'bean', expected one of greedy, sample"),
        ({"beam_size": 0}, "beam_size: found 0, expected an integer of at least 1"),
        ({"temperature": 0.0}, "temperature: found 0.0, expected a positive number"),
        ({"method": "sample", "top_p": 1.5}, "top_p: found 1.5"),
        ({"top_k": 5}, "top_k: found 5, expected 0 with method beam"),
        ({"num_groups": 3}, "num_groups: found 3, expected a divisor of beam_size 5"),
        ({"length_penalty": "wu"}, "length_penalty: found 'wu'"),
        ({"diversity": -1.0}, "diversity: found -1.0"),
        ({"min_length": 19}, "min_length: found 19, expected at most max_length 18"),
        ({"method": "greedy", "num_samples": 2}, "num_samples: found 2, expected 1"),
    ],
)
def test_wrong_options_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        DecodeOptions(**wrong)
