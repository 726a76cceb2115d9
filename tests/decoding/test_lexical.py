"""Required words: the automata, and every search that must obey them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_fakes import (
    EOS,
    HashModel,
    SlowModel,
    all_captions,
    captions_of,
    fast_decode,
    images,
    random_table,
)

from sparsecap_jax.decoding import DecodeOptions, decode, must_contain
from sparsecap_jax.decoding.constraints import Prefix
from sparsecap_jax.decoding.lexical import states_of
from sparsecap_jax.errors import ConfigError

VOCAB = 9
STARTS = np.arange(6) * 13
REQUIRED = [
    [],
    [[[4]]],
    [[[4]], [[5]]],
    [[[6, 7]]],
    [[[4], [5, 6]], [[6, 8]]],
    [[[5, 5, 7]]],
]


def contains(caption, requirements):
    """Whether every requirement has an alternative that the caption holds."""

    def holds(phrase):
        size = len(phrase)
        return any(list(caption[i : i + size]) == list(phrase) for i in range(len(caption)))

    return all(any(holds(phrase) for phrase in one) for one in requirements)


def test_automata_accept_exactly_what_contains_the_words():
    length = 5
    alphabet = [4, 5, 6, 7]
    options = DecodeOptions(max_length=length)
    words = np.array(list(itertools.product(alphabet, repeat=length)), np.int32)
    required = [*REQUIRED[:4], [[[4], [5, 6]], [[6, 7]]], [[[5, 5, 6], [5, 6, 5]]]]
    automaton = must_contain(required, options)
    tokens = jnp.broadcast_to(jnp.asarray(words), (len(required), *words.shape))
    for size in (0, 2, length):
        states = np.asarray(states_of(automaton, Prefix(tokens, jnp.int32(size))))
        missing = np.take_along_axis(np.asarray(automaton.missing), states, axis=1)
        for image, one in enumerate(required):
            expected = [contains(word[:size], one) for word in words.tolist()]
            np.testing.assert_array_equal(missing[image] == 0, expected)


def test_missing_tokens_are_the_fewest_possible():
    options = DecodeOptions(max_length=9)
    automaton = must_contain([*REQUIRED, [[[4, 5]], [[5, 4]]]], options)
    # The last one is met by 4 5 4, the one before by 5 5 7, ...
    np.testing.assert_array_equal(automaton.missing[:, 0], [0, 1, 2, 2, 3, 3, 3])


@pytest.mark.parametrize(
    ("search", "length"),
    [
        ({"method": "greedy"}, 3),
        ({"method": "greedy"}, 7),
        ({"method": "sample", "num_samples": 5}, 7),
        ({"beam_size": 3}, 7),
        ({"beam_size": 4, "num_groups": 2}, 7),
    ],
)
def test_every_search_obeys(search, length):
    options = DecodeOptions(max_length=length, **search)
    automaton = must_contain(REQUIRED, options)
    sizes = {"states": automaton.default.shape[1], "tokens": automaton.tokens.shape[1]}
    nothing = must_contain([[]] * len(REQUIRED), options, **sizes)
    unmet = 0
    for seed in range(5):
        table = random_table(seed, VOCAB, ties=False)
        params = {"table": jnp.asarray(table)}
        args = HashModel(VOCAB), params, images(STARTS), options, jax.random.key(seed)
        free = fast_decode(*args, required=nothing)
        decoded = fast_decode(*args, required=automaton)
        for image, one in enumerate(REQUIRED):
            unmet += sum(not contains(caption, one) for caption in captions_of(free, image))
            model = SlowModel(table, int(STARTS[image]))
            captions = captions_of(decoded, image)
            assert captions[0]
            for row, caption in enumerate(captions):
                assert contains(caption, one) or not caption
                costs = [model(caption[:i])[token] for i, token in enumerate(caption)]
                np.testing.assert_array_equal(decoded.log_probs[image, row, : len(costs)], costs)
        if search in ({"method": "greedy"}, {"beam_size": 3}):
            # Nothing is asked of the first image.
            np.testing.assert_array_equal(decoded.tokens[0], free.tokens[0])
    assert unmet > 10


def test_a_wide_constrained_beam_finds_the_best_of_all_captions():
    length, allowed, vocab = 4, [1, EOS, 4, 5], 40
    required = [[[[4]]], [[[4]], [[5]]], [[[4, 5], [5, 1]]], []]
    starts = np.array([3, 14, 25, 36])
    options = DecodeOptions(beam_size=30, max_length=length)
    automaton = must_contain(required, options)
    for seed in range(8):
        table = np.full((97, vocab), -np.inf, np.float32)
        table[:, allowed] = random_table(seed, len(allowed), ties=False)
        params = {"table": jnp.asarray(table)}
        decoded = fast_decode(HashModel(vocab), params, images(starts), options, required=automaton)
        for image, one in enumerate(required):
            every = all_captions(SlowModel(table, int(starts[image])), length, allowed)
            good = [tokens for tokens, _ in every if contains(tokens, one)]
            found = [caption for caption in captions_of(decoded, image) if caption]
            assert found == good[: len(found)]
            assert len(found) == min(30, len(good))


def test_constrained_beams_score_better_than_forcing_at_the_end():
    options = DecodeOptions(beam_size=3, max_length=7)
    automaton = must_contain(REQUIRED, options)
    grouped = DecodeOptions(beam_size=6, num_groups=2, diversity=0.0, max_length=7)
    gains = []
    for seed in range(10):
        params = {"table": jnp.asarray(random_table(seed, VOCAB, ties=False))}
        args = HashModel(VOCAB), params, images(STARTS)
        smart = fast_decode(*args, options, required=automaton)
        # Without constrained search: the same beams, held back until the words are in.
        plain = fast_decode(*args, grouped, required=automaton)
        gains.append(np.asarray(smart.scores)[1:, 0] - np.asarray(plain.scores)[1:, 0])
    assert np.mean(gains) > 0.2


def test_other_words_do_not_compile_again():
    traces = []

    class Traced(HashModel):
        def step(self, carry, tokens, context):
            traces.append(1)
            return super().step(carry, tokens, context)

    options = DecodeOptions(beam_size=2, max_length=6)
    params = {"table": jnp.asarray(random_table(0, VOCAB))}
    sizes = []
    for required in ([[[[4]], [[5]]], []], [[[[7]]], [[[8, 5, 4]]]], [[], [[[4], [5]]]], [[], []]):
        automaton = must_contain(required, options, states=4, tokens=4)
        assert (automaton.default.shape, automaton.tokens.shape) == ((2, 4), (2, 4))
        decode(Traced(VOCAB), params, images([1, 2]), options, required=automaton)
        sizes.append(len(traces))
    assert sizes[0] > 0
    assert set(sizes) == {sizes[0]}


@pytest.mark.parametrize(
    ("required", "message"),
    [
        ([[[[]]]], "image 0: found .* expected phrases of at least one token"),
        ([[], [[[4, EOS]]]], "image 1: .* without EOS"),
        ([[[]]], "image 0: found .* expected phrases"),
        ([[[[4, 5, 6, 7]]]], "found 4 tokens, expected at most max_length 3"),
        ([[[[token]] for token in range(4, 12)]], "8 requirements need more than 64 states"),
    ],
)
def test_impossible_requirements_are_refused(required, message):
    with pytest.raises(ConfigError, match=message):
        must_contain(required, DecodeOptions(max_length=3))
