"""A tiny exact captioner, and slow, obvious searches over it."""

import importlib
import inspect
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sparsecap_jax.decoding import decode
from sparsecap_jax.types import Regions

EOS = 3

# Inputs this small gain nothing from optimised code, and its compilation takes most of the time.
UNOPTIMIZED = {"xla_backend_optimization_level": 0}

_MODULE = importlib.import_module("sparsecap_jax.decoding.entries")
_QUICK = jax.jit(
    inspect.unwrap(_MODULE._decode),
    static_argnames=("model", "options"),
    compiler_options=UNOPTIMIZED,
)


def fast_decode(*args, **given):
    """`decode`, compiled in half the time."""
    with mock.patch.object(_MODULE, "_decode", _QUICK):
        return decode(*args, **given)


class HashModel(nn.Module):
    """Looks the log-probs up by a hash of everything before: the image and all tokens.

    Table entries that are multiples of 1/4 make every sum exact, and ties common.
    """

    vocab_size: int
    num_states: int = 97

    def setup(self):
        shape = (self.num_states, self.vocab_size)
        self.table = self.param("table", nn.initializers.zeros, shape)

    def encode(self, regions, *, train=False):
        return {"start": jnp.asarray(regions.fc)[:, 0].astype(jnp.int32) % self.num_states}

    def init_carry(self, context, rows):
        return {"state": jnp.repeat(context["start"][:, None], rows, axis=1)}

    def step(self, carry, tokens, context):
        state = next_state(carry["state"], tokens, self.num_states)
        return {"state": state}, self.table[state]


def next_state(state, token, num_states):
    return (state * 31 + token * 17 + 5) % num_states


def images(starts):
    """Regions of images that start at the given states."""
    starts = np.asarray(starts, np.float32)
    count = len(starts)
    return Regions(
        features=np.zeros((count, 1, 1), np.float32),
        mask=np.ones((count, 1), bool),
        boxes=np.zeros((count, 1, 4), np.float32),
        fc=starts[:, None],
    )


def random_table(seed, vocab, *, ties=True, num_states=97):
    rng = np.random.default_rng(seed)
    if ties:
        return (-0.25 * rng.integers(0, 13, (num_states, vocab))).astype(np.float32)
    logits = rng.normal(size=(num_states, vocab)).astype(np.float32) * 2
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


class SlowModel:
    """The same captioner, one prefix at a time."""

    def __init__(self, table, start):
        self.table, self.start = table, start

    def __call__(self, prefix, bos=2):
        state = self.start % len(self.table)
        for token in (bos, *prefix):
            state = next_state(state, int(token), len(self.table))
        return self.table[state].copy()


def slow_beam(model, size, length, *, factor=None, constrain=None, groups=1, diversity=0.0):
    """Beam search as the reference describes it, prefix lists and stable sorts.

    Returns, per group, the best captions as (score, tokens, log-probs).
    """
    factor = factor or (lambda length: np.float32(1))
    constrain = constrain or (lambda log_probs, prefix: log_probs)
    width = size // groups
    beams = [[((), np.float32(0), ())] for _ in range(groups)]
    done = [[] for _ in range(groups)]
    for time in range(length + groups - 1):
        for g in range(groups):
            position = time - g
            if not 0 <= position < length:
                continue
            candidates = []
            for prefix, total, history in beams[g]:
                log_probs = constrain(model(prefix), prefix)
                ranked = log_probs.copy()
                for other in beams[:g]:
                    for beam in other:
                        ranked[beam[0][position]] -= np.float32(diversity)
                for token in range(len(log_probs)):
                    new = (*prefix, token), total + ranked[token], (*history, log_probs[token])
                    candidates.append(new)
            order = np.argsort([-c[1] for c in candidates], kind="stable")[:width]
            beams[g] = [candidates[i] for i in order]
            for i, (prefix, total, history) in enumerate(beams[g]):
                if prefix[-1] == EOS or position == length - 1:
                    done[g].append((total * factor(position + 1), prefix, history))
                    beams[g][i] = prefix, total - np.float32(1000), history
    return [sorted(found, key=lambda caption: -caption[0])[:width] for found in done]


def all_captions(model, length, allowed):
    """Every caption over `allowed` tokens with its log-prob, best first."""
    found, open_prefixes = [], [((), 0.0)]
    while open_prefixes:
        prefix, total = open_prefixes.pop()
        log_probs = model(prefix)
        for token in allowed:
            new = (*prefix, token), total + float(log_probs[token])
            ended = token == EOS or len(new[0]) == length
            (found if ended else open_prefixes).append(new)
    return sorted(found, key=lambda caption: -caption[1])


def captions_of(decoded, image):
    """Rows of one image as tuples of tokens."""
    rows = zip(np.asarray(decoded.tokens[image]), np.asarray(decoded.lengths[image]), strict=True)
    return [tuple(row[:length].tolist()) for row, length in rows]
