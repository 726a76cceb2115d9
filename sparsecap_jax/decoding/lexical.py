"""Words that captions must contain: an automaton per image that follows what is still missing.

Anderson et al., "Guided Open Vocabulary Image Captioning with Constrained Beam Search", EMNLP 2017.
`must_contain` builds the automata on the host; the rest runs on device, and images with other words
need no new compilation as long as their automata have the same size.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sparsecap_jax.array_modules import array_module
from sparsecap_jax.decoding.constraints import Prefix
from sparsecap_jax.decoding.options import DecodeOptions
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.types import ArrayLike

# A caption of an image holds one of several alternative phrases, each a sequence of tokens.
Requirement = Sequence[Sequence[int]]

_MOST_STATES = 64
_UNREACHABLE = 1 << 20


class Automaton(NamedTuple):
    """One automaton per image over S states and E special tokens; state 0 is the start.

    Attributes:
        tokens: int32 `[B, E]`, the special tokens, all different; -1 fills up.
        special: int32 `[B, S, E]`, state after each special token.
        default: int32 `[B, S]`, state after any other token.
        missing: int32 `[B, S]`, least number of tokens until nothing is missing.
    """

    tokens: Int[ArrayLike, "B E"]
    special: Int[ArrayLike, "B S E"]
    default: Int[ArrayLike, "B S"]
    missing: Int[ArrayLike, "B S"]


def must_contain(
    required: Sequence[Sequence[Requirement]],
    options: DecodeOptions,
    *,
    states: int = 1,
    tokens: int = 1,
) -> Automaton:
    """Build the automata of a batch.

    `[[[[17]], [[40], [41, 5]]], []]` asks of the first image that its captions hold the token 17
    and, besides, either 40 or 41 directly followed by 5; of the second image nothing. One token may
    serve several requirements.

    Args:
        required: per image its requirements; all of them must be met.
        options: of the search; gives `max_length` and `eos_id`.
        states: least number of states S to pad to, and
        tokens: least number of special tokens E, so that batches of differing needs share one
            compilation. S and E are padded to powers of two anyway.

    Returns:
        An automaton for every image, as numpy arrays.

    Raises:
        ConfigError: a phrase that is empty or holds EOS, more than `max_length` tokens in all, or
            requirements that need more than 64 states (n single tokens need 2^n).
    """
    automata = [_build(wishes, image, options) for image, wishes in enumerate(required)]
    ids, special, default, missing = zip(*automata, strict=True)
    size = _power_of_two(max(states, *map(len, default)))
    width = _power_of_two(max(tokens, *map(len, ids)))

    def padded(arrays, fill, *shape):
        """Stack tables of all images; what fills them up is never reached."""
        out = np.full((len(arrays), *shape), fill, np.int32)
        for whole, array in zip(out, arrays, strict=True):
            whole[tuple(map(slice, array.shape))] = array
        return out

    return Automaton(
        padded(ids, -1, width),
        padded(special, 0, size, width),
        padded(default, 0, size),
        padded(missing, _UNREACHABLE, size),
    )


def states_of(automaton: Automaton, prefix: Prefix) -> Int[ArrayLike, "B K"]:
    """Return the states that the tokens chosen so far lead to."""
    xp = array_module(prefix.tokens)

    def follow(place, states):
        token = prefix.tokens[:, :, place]
        hit = token[..., None] == automaton.tokens[:, None]
        after = xp.max(xp.where(hit, _rows(automaton.special, states), -1), axis=-1)
        after = xp.where(hit.any(axis=-1), after, _rows(automaton.default, states))
        return xp.where(place < prefix.length, after, states)

    start = xp.zeros(prefix.tokens.shape[:2], np.int32)
    return xp.fori_loop(0, prefix.tokens.shape[-1], follow, start)


def keep_reachable(
    log_probs: Float[ArrayLike, "B K V"],
    automaton: Automaton,
    states: Int[ArrayLike, "B K"],
    left: Int[ArrayLike, ""],
    eos_id: int,
) -> Float[ArrayLike, "B K V"]:
    """Forbid EOS while something is missing, and whatever leaves too little room for it.

    `left` is the number of tokens that a caption may still get, the next one included.
    """
    xp = array_module(log_probs)
    automaton = Automaton(*map(xp.asarray, automaton))
    ids, missing = xp.arange(log_probs.shape[-1], dtype=np.int32), automaton.missing

    def fits(after):
        return _rows(missing, after.reshape(after.shape[0], -1)).reshape(after.shape) < left

    allowed = fits(_rows(automaton.default, states))[..., None]
    after_special = fits(_rows(automaton.special, states))
    for e in range(automaton.tokens.shape[1]):
        is_token = ids == automaton.tokens[:, e][:, None, None]
        allowed = xp.where(is_token, after_special[:, :, e, None], allowed)
    ends = (_rows(missing, states) == 0)[..., None]
    allowed = xp.where(ids == eos_id, ends, allowed)
    return xp.where(allowed, log_probs, np.float32(-np.inf))


def lexical(
    log_probs: Float[ArrayLike, "B K V"], prefix: Prefix, *, automaton: Automaton, eos_id: int
) -> Float[ArrayLike, "B K V"]:
    """Apply the lexical constraint of any search: captions cannot end before they hold the words.

    A search without its own rule places the words when hardly any room is left for them;
    constrained beam search chooses the place.
    """
    left = prefix.tokens.shape[-1] - prefix.length
    return keep_reachable(log_probs, automaton, states_of(automaton, prefix), left, eos_id)


def _rows(
    table: Int[ArrayLike, "B S *E"], states: Int[ArrayLike, "B K"]
) -> Int[ArrayLike, "B K *E"]:
    """Row `states[b, k]` of `table[b]`."""
    xp = array_module(states)
    return xp.asarray(table)[xp.arange(len(table), dtype=np.int32)[:, None], states]


def _build(requirements: Sequence[Requirement], image: int, options: DecodeOptions):
    """Special tokens, transitions and distances of one image, numbering states as they are found.

    A state holds, for each requirement, the longest end of the caption that begins one of its
    phrases (Aho and Corasick, 1975), or None once it is met.
    """
    needs = [tuple(tuple(map(int, phrase)) for phrase in one) for one in requirements]
    for one in needs:
        if not one or not all(one) or any(options.eos_id in phrase for phrase in one):
            raise ConfigError(
                f"must_contain: image {image}: found {one}, expected phrases of at least one "
                "token, without EOS"
            )
    tokens = sorted({token for one in needs for phrase in one for token in phrase})
    numbers: dict[tuple[Any, ...], int] = {((),) * len(needs): 0}
    rows: list[list[int]] = []
    queue = deque(numbers)
    while queue:
        state = queue.popleft()
        after = [
            tuple(_follow(*pair, token) for pair in zip(needs, state, strict=True))
            for token in (*tokens, None)
        ]
        for new in after:
            if new not in numbers:
                numbers[new] = len(numbers)
                queue.append(new)
        rows.append([numbers[new] for new in after])
        if len(numbers) > _MOST_STATES:
            raise ConfigError(
                f"must_contain: image {image}: {len(needs)} requirements need more than "
                f"{_MOST_STATES} states; expected fewer or shorter ones"
            )
    table = np.asarray(rows, np.int32)
    # Least number of steps from each state to an accepting one.
    accepts = [all(part is None for part in state) for state in numbers]
    missing = np.where(accepts, 0, _UNREACHABLE)
    for _ in numbers:
        missing = np.minimum(missing, missing[table].min(axis=1) + 1)
    if missing[0] > options.max_length:
        raise ConfigError(
            f"must_contain: image {image}: found {missing[0]} tokens, expected at most max_length "
            f"{options.max_length}"
        )
    return np.array(tokens, np.int32), table[:, :-1], table[:, -1], missing


def _follow(phrases: Requirement, seen: tuple | None, token: int | None) -> tuple | None:
    """Return the seen part of a requirement after one more token (None: no special one)."""
    if seen is None:
        return None
    if token is None:
        return ()
    seen = (*seen, token)
    ends = [seen[i:] for i in range(len(seen))]
    if any(end in phrases for end in ends):
        return None
    return next((end for end in ends if any(p[: len(end)] == end for p in phrases)), ())


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
