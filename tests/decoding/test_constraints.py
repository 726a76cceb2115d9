"""Each constraint against its definition in plain Python, and in every search."""

import functools
import itertools

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
    slow_beam,
)

from sparsecap_jax.decoding import DecodeOptions, constraints
from sparsecap_jax.decoding.constraints import Prefix

VOCAB, LENGTH = 8, 6
STARTS = np.arange(6) * 13
SEARCHES = {
    "greedy": {"method": "greedy"},
    "sample": {"method": "sample", "num_samples": 4},
    "gumbel": {"method": "gumbel", "num_samples": 4},
    "beam": {"beam_size": 4},
    "groups": {"beam_size": 4, "num_groups": 2},
}
BAD = (4, 6)


def has_repeated_ngram(caption, size):
    grams = [tuple(caption[i : i + size]) for i in range(len(caption) - size + 1)]
    return len(grams) != len(set(grams))


def forbidden(caption, options):
    """What of `options` a finished caption breaks."""
    broken = []
    if options.get("no_repeat") and any(a == b for a, b in itertools.pairwise(caption)):
        broken.append("no_repeat")
    size = options.get("no_repeat_ngram")
    if size and has_repeated_ngram(caption, size):
        broken.append("no_repeat_ngram")
    if set(caption) & set(options.get("suppress", ())):
        broken.append("suppress")
    if options.get("suppress_unk") and 1 in caption:
        broken.append("suppress_unk")
    words = [token for token in caption if token != EOS]
    if words and words[-1] in options.get("bad_endings", ()):
        broken.append("bad_endings")
    if len(words) < options.get("min_length", 0):
        broken.append("min_length")
    return broken


CONSTRAINTS = [
    {"no_repeat": True},
    {"no_repeat_ngram": 1},
    {"no_repeat_ngram": 2},
    {"suppress": (0, 5), "suppress_unk": True},
    {"bad_endings": BAD},
    {"min_length": 4},
    {"no_repeat_ngram": 2, "bad_endings": BAD, "min_length": 3, "suppress_unk": True},
]
ALL = CONSTRAINTS[-1]


@pytest.mark.parametrize("options", CONSTRAINTS, ids=lambda options: "+".join(options))
def test_beams_equal_the_slow_search_under_a_constraint(options):
    """The slow search forbids a token when the caption with it breaks the rule in plain Python."""
    open_rules = {k: v for k, v in options.items() if k not in ("bad_endings", "min_length")}

    def constrain(log_probs, prefix):
        for token in range(len(log_probs)):
            new = (*prefix, token)
            ends = token == EOS or len(new) == LENGTH
            rules = options if ends else open_rules
            if len(new) == LENGTH and token != EOS:
                rules = {k: v for k, v in rules.items() if k != "min_length"}
            if forbidden(new, rules):
                log_probs[token] = -np.inf
        return log_probs

    settings = DecodeOptions(beam_size=3, max_length=LENGTH, **options)
    for seed in range(6):
        table = random_table(seed, VOCAB)
        table[:, [2, EOS]] += np.float32(0.25)  # Ends and repetitions are tempting.
        table = np.minimum(table, 0)
        params = {"table": jnp.asarray(table)}
        decoded = fast_decode(HashModel(VOCAB), params, images(STARTS), settings)
        for image, start in enumerate(STARTS):
            (expected,) = slow_beam(SlowModel(table, int(start)), 3, LENGTH, constrain=constrain)
            expected = [caption for caption in expected if caption[0] > -900]
            found = [one for one in captions_of(decoded, image) if one]
            assert found == [caption[1] for caption in expected]
            scores = np.asarray(decoded.scores)[image, : len(expected)]
            np.testing.assert_array_equal(scores, [caption[0] for caption in expected])


@pytest.mark.parametrize("search", SEARCHES)
def test_every_search_obeys_all_constraints_at_once(search):
    options = DecodeOptions(max_length=LENGTH, **SEARCHES[search], **ALL)
    for seed in range(5):
        params = {"table": jnp.asarray(random_table(seed, VOCAB))}
        key = jax.random.key(seed)
        decoded = fast_decode(HashModel(VOCAB), params, images(STARTS), options, key)
        for image in range(len(STARTS)):
            for caption in captions_of(decoded, image):
                assert not forbidden(caption, ALL)


@pytest.mark.parametrize("search", ["sample", "beam", "groups"])
def test_captions_start_with_their_prefix(search):
    table = random_table(3, VOCAB)
    params = {"table": jnp.asarray(table)}
    prefix = np.array([[5, 5, 7], [6, 0, 0], [0, 0, 0], [4, 0, 1], [5, 5, 5], [7, 7, 0]], np.int32)
    options = DecodeOptions(max_length=LENGTH, no_repeat=True, **SEARCHES[search])
    args = HashModel(VOCAB), params, images(STARTS), options, jax.random.key(0)
    decoded = fast_decode(*args, prefix=prefix)
    free = fast_decode(*args, prefix=np.zeros_like(prefix))
    np.testing.assert_array_equal(decoded.tokens[2], free.tokens[2])
    for image, forced in enumerate(prefix):
        model = SlowModel(table, int(STARTS[image]))
        for row, caption in enumerate(captions_of(decoded, image)):
            if not caption:
                continue
            for token, given in zip(caption, forced, strict=False):
                assert given in (0, token)
            # Forcing changes what is chosen, not what it costs.
            costs = [model(caption[:i])[token] for i, token in enumerate(caption)]
            np.testing.assert_array_equal(decoded.log_probs[image, row, : len(costs)], costs)
            assert all(a != b for a, b in itertools.pairwise(caption[2:]))


def never_after_five(log_probs, prefix):
    """A constraint of one's own: 6 may not follow 5."""
    ids = jnp.arange(log_probs.shape[-1])
    return jnp.where((prefix.last[..., None] == 5) & (ids == 6), -jnp.inf, log_probs)


def test_own_constraints_compose():
    table = np.full((97, VOCAB), -3.0, np.float32)
    table[:, [5, 6]] = -1.0
    params = {"table": jnp.asarray(table)}
    options = {"method": "greedy", "no_repeat": True, "max_length": 4}
    for given, expected in [((), (5, 6, 5, 6)), ((never_after_five,), (5, 0, 5, 0))]:
        settings = DecodeOptions(constraints=given, **options)
        decoded = fast_decode(HashModel(VOCAB), params, images([0]), settings)
        assert captions_of(decoded, 0) == [expected]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_repeated_ngrams_are_those_of_a_loop(size):
    rng = np.random.default_rng(size)
    tokens = rng.integers(0, 4, (2, 3, 9)).astype(np.int32)
    forbid = jax.jit(functools.partial(constraints.no_repeat_ngram, size=size))
    for length in range(10):
        prefix = Prefix(jnp.asarray(tokens), jnp.int32(length))
        log_probs = jnp.zeros((2, 3, 5), jnp.float32)
        found = np.asarray(forbid(log_probs, prefix))
        for b in range(2):
            for k in range(3):
                before = tokens[b, k, :length].tolist()
                grams = {tuple(before[i : i + size]) for i in range(length - size + 1)}
                start = before[length - size + 1 :] if length >= size - 1 else None
                expected = [start is not None and (*start, v) in grams for v in range(5)]
                np.testing.assert_array_equal(np.isneginf(found[b, k]), expected)


@pytest.mark.parametrize("size", [5, 10**20])
def test_ngrams_longer_than_captions_forbid_nothing(size):
    tokens = np.array([[[7, 7, 7, 7]]], np.int32)
    log_probs = np.log(np.full((1, 1, 9), 1 / 9, np.float32))
    found = constraints.no_repeat_ngram(log_probs, Prefix(tokens, np.int32(3)), size=size)
    np.testing.assert_array_equal(found, log_probs)
    assert (
        constraints.no_repeat_ngram(log_probs, Prefix(tokens, np.int32(3)), size=2)[0, 0, 7]
        == -np.inf
    )
