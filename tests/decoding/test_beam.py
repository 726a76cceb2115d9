"""Beam searches against slow ones and exhaustive ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_fakes import (
    HashModel,
    SlowModel,
    all_captions,
    captions_of,
    fast_decode,
    images,
    random_table,
    slow_beam,
)

from sparsecap_jax.decoding import DecodeOptions, penalty_factors
from sparsecap_jax.errors import ConfigError

STARTS = np.arange(8) * 11


def compare(options, slow, *, seeds, ties, vocab=7):
    """Assert that the fast search finds what `slow(model)` finds, on 8 images per seed."""
    model = HashModel(vocab)
    for seed in seeds:
        table = random_table(seed, vocab, ties=ties)
        decoded = fast_decode(model, {"table": jnp.asarray(table)}, images(STARTS), options)
        for image, start in enumerate(STARTS):
            groups = slow(SlowModel(table, int(start)))
            expected = [caption for group in groups for caption in group]
            assert captions_of(decoded, image) == [caption[1] for caption in expected]
            scores = np.array([caption[0] for caption in expected], np.float32)
            np.testing.assert_allclose(decoded.scores[image], scores, rtol=1e-6 * (not ties))
            for row, caption in enumerate(expected):
                found = np.asarray(decoded.log_probs[image, row])
                np.testing.assert_array_equal(found[: len(caption[2])], caption[2])
                assert not found[len(caption[2]) :].any()


@pytest.mark.parametrize(
    ("size", "ties", "penalty"),
    [(1, True, "wu_0.7"), (3, True, ""), (3, False, "avg_0"), (6, True, ""), (6, True, "avg_0")],
)
def test_equals_the_slow_search(size, ties, penalty):
    factors = penalty_factors(penalty, 6)
    options = DecodeOptions(beam_size=size, max_length=6, length_penalty=penalty)
    compare(
        options,
        lambda model: slow_beam(model, size, 6, factor=lambda n: factors[n - 1]),
        seeds=range(12),
        ties=ties,
    )


@pytest.mark.parametrize(
    ("size", "groups", "diversity", "ties"),
    [(3, 3, 0.5, True), (4, 2, 0.25, True), (6, 2, 1.0, False)],
)
def test_diverse_groups_equal_the_slow_search(size, groups, diversity, ties):
    options = DecodeOptions(beam_size=size, max_length=5, num_groups=groups, diversity=diversity)
    compare(
        options,
        lambda model: slow_beam(model, size, 5, groups=groups, diversity=diversity),
        seeds=range(6),
        ties=ties,
    )


def test_one_group_of_no_diversity_is_plain_beam_search():
    model, params = HashModel(9), {"table": jnp.asarray(random_table(3, 9, ties=False))}
    plain = fast_decode(model, params, images(STARTS), DecodeOptions(beam_size=2, max_length=7))
    options = DecodeOptions(beam_size=4, num_groups=2, diversity=0.0, max_length=7)
    grouped = fast_decode(model, params, images(STARTS), options)
    for half in (slice(0, 2), slice(2, 4)):
        np.testing.assert_array_equal(grouped.tokens[:, half], plain.tokens)
        np.testing.assert_array_equal(grouped.scores[:, half], plain.scores)


@pytest.mark.parametrize("penalty", ["", "wu_0.7"])
def test_a_beam_as_wide_as_all_prefixes_is_exhaustive(penalty):
    vocab, length, allowed = 32, 4, [1, 3, 4]
    factors = penalty_factors(penalty, length)
    model = HashModel(vocab)
    # 2 tokens that do not end a caption: at most 2^3 open prefixes, 24 of their continuations.
    options = DecodeOptions(beam_size=24, max_length=length, length_penalty=penalty)
    for seed in range(10):
        table = np.full((97, vocab), -np.inf, np.float32)
        table[:, allowed] = random_table(seed, 3, ties=False)
        decoded = fast_decode(model, {"table": jnp.asarray(table)}, images(STARTS), options)
        for image, start in enumerate(STARTS):
            every = all_captions(SlowModel(table, int(start)), length, allowed)
            ranked = [(total * factors[len(tokens) - 1], tokens) for tokens, total in every]
            ranked.sort(key=lambda caption: -caption[0])
            assert len(ranked) == 31
            assert captions_of(decoded, image) == [tokens for _, tokens in ranked[:24]]
            np.testing.assert_allclose(
                decoded.scores[image], [s for s, _ in ranked[:24]], rtol=1e-5
            )


def test_fewer_captions_than_beams_leave_empty_rows():
    table = np.full((97, 8), -np.inf, np.float32)
    table[:, 3] = 0.0  # EOS is the only token possible.
    decoded = fast_decode(
        HashModel(8),
        {"table": jnp.asarray(table)},
        images([0]),
        DecodeOptions(beam_size=3, max_length=4),
    )
    assert captions_of(decoded, 0) == [(3,), (), ()]
    np.testing.assert_array_equal(decoded.scores[0], [0, -np.inf, -np.inf])


def test_beam_one_is_greedy():
    model, params = HashModel(9), {"table": jnp.asarray(random_table(1, 9))}
    beam = fast_decode(model, params, images(STARTS), DecodeOptions(beam_size=1, max_length=8))
    greedy = fast_decode(
        model, params, images(STARTS), DecodeOptions(method="greedy", max_length=8)
    )
    for found, expected in zip(jax.tree.leaves(beam), jax.tree.leaves(greedy), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_best_score_grows_with_the_beam_on_average():
    model, params = HashModel(9), {"table": jnp.asarray(random_table(2, 9, ties=False))}
    regions = images(np.arange(97))
    searches = [DecodeOptions(beam_size=k, max_length=8) for k in (1, 2, 4)]
    means = [np.mean(fast_decode(model, params, regions, one).scores[:, 0]) for one in searches]
    assert means == sorted(means)
    assert means[-1] > means[0] + 0.1


@pytest.mark.parametrize("groups", [1, 2])
def test_an_image_does_not_depend_on_its_batch(groups):
    model, params = HashModel(9), {"table": jnp.asarray(random_table(5, 9))}
    options = DecodeOptions(beam_size=4, num_groups=groups, max_length=8)
    together = fast_decode(model, params, images(STARTS), options)
    order = np.random.default_rng(0).permutation(len(STARTS))
    shuffled = fast_decode(model, params, images(STARTS[order]), options)
    alone = [fast_decode(model, params, images([start]), options) for start in STARTS]
    for name in ("tokens", "log_probs", "scores", "lengths"):
        expected = np.asarray(getattr(together, name))
        np.testing.assert_array_equal(getattr(shuffled, name), expected[order])
        np.testing.assert_array_equal(
            np.concatenate([np.asarray(getattr(one, name)) for one in alone]), expected
        )


def test_penalty_factors_are_those_of_the_paper():
    np.testing.assert_allclose(penalty_factors("wu_1", 3), [1, 6 / 7, 6 / 8], rtol=1e-6)
    np.testing.assert_allclose(penalty_factors("wu_0.5", 2), [1, (6 / 7) ** 0.5], rtol=1e-6)
    np.testing.assert_allclose(penalty_factors("avg_0", 3), [1, 1 / 2, 1 / 3], rtol=1e-6)
    np.testing.assert_array_equal(penalty_factors("", 2), [1, 1])


@pytest.mark.parametrize("penalty", ["wu", "max_1", "avg_nan"])
def test_unknown_penalties_are_refused(penalty):
    with pytest.raises(ConfigError, match=f"length_penalty is '{penalty}'; expected"):
        penalty_factors(penalty, 3)


def test_more_beams_than_tokens_are_refused():
    params = {"table": jnp.asarray(random_table(0, 4))}
    with pytest.raises(ConfigError, match=r"beam_size: found 5 .* at most the vocabulary's 4"):
        fast_decode(HashModel(4), params, images([0]), DecodeOptions(beam_size=5, max_length=3))
