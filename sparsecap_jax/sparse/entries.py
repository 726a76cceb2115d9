"""The entries of the sparse runtime, in the place of those of `sparsecap_jax.decoding`."""

import functools
import itertools
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt32

from sparsecap_jax.array_modules.numpy_arrays import fold_in
from sparsecap_jax.decoding.lexical import Automaton
from sparsecap_jax.decoding.methods import check_images, find_captions
from sparsecap_jax.decoding.options import DecodeOptions
from sparsecap_jax.decoding.stepper import Decoded, penalty_factors
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.sparse.forms import LANES
from sparsecap_jax.sparse.threads import one_blas_thread, run_parts
from sparsecap_jax.types import Regions

# Where constraints leave no token, or an image has no region, numbers are not finite: XLA, too,
# goes on without a word.
_QUIET = np.errstate(divide="ignore", invalid="ignore")
# Images are captioned by several threads where a word's products take each at least this long.
_WORTH_A_THREAD_NS = 1_000_000


@_QUIET
@one_blas_thread()
def decode(
    model: Any,
    regions: Regions,
    options: DecodeOptions,
    rng: UInt32[np.ndarray, "*B 2"] | None = None,
    *,
    prefix: Int[np.ndarray, "B P"] | None = None,
    required: Automaton | None = None,
) -> Decoded:
    """Caption the images of a batch.

    As `decoding.decode`, with NumPy's arrays and a model of `make_sparse_model`; captions differ
    where two tokens are so close that the order of summation decides.

    Args:
        model: the model.
        regions: features `[B, R, D]` and so on.
        options: the search.
        rng: for sampling: the data of a threefry key, uint32 `[2]`, or of a key per image `[B, 2]`.
        prefix: as in `decoding.decode`.
        required: as in `decoding.decode`.

    Raises:
        ConfigError: see `decoding.decode`.
    """
    batch = len(regions.features)
    check_images(batch, prefix, required)
    keys = None
    if options.method in ("sample", "gumbel"):
        if rng is None or rng.dtype != np.uint32 or rng.shape not in ((2,), (batch, 2)):
            found = "none" if rng is None else f"{rng.dtype} {rng.shape}"
            raise ConfigError(f"decode: rng: found {found}, expected uint32 {(2,)} or {(batch, 2)}")
        keys = rng if rng.ndim == 2 else fold_in(np.tile(rng, (batch, 1)), np.arange(batch))
    factors = penalty_factors(options.length_penalty, options.max_length)

    def search(first: int, end: int) -> Decoded:
        def own(leaf: Any) -> Any:
            return None if leaf is None else leaf[first:end]

        encoded = model.encode(Regions(*(own(np.asarray(leaf)) for leaf in regions)))
        needs = required and Automaton(*map(own, required))
        return find_captions(model, None, encoded, options, factors, own(keys), own(prefix), needs)

    ends = _spans(model, batch, rows_per_image(options, required))
    parts = run_parts([functools.partial(search, *span) for span in itertools.pairwise(ends)])
    return parts[0] if len(parts) == 1 else Decoded(*map(np.concatenate, zip(*parts, strict=True)))


def rows_per_image(options: DecodeOptions, required: Automaton | None) -> int:
    """Return the number of rows of an image in each step of a search."""
    plain = options.method == "beam" and options.num_groups == 1
    # Beams are kept for each state of required words.
    return options.rows * (required.missing.shape[1] if plain and required is not None else 1)


def _spans(model: Any, batch: int, rows: int) -> list[int]:
    """Return where the images of each thread begin, and their number.

    Threads have at least two lots of `LANES` rows, so that few lanes are left over.
    """
    nanoseconds = sum(product.cost(batch * rows) for product in model.products)
    worth = min(nanoseconds / _WORTH_A_THREAD_NS, batch * rows / (2 * LANES), batch)
    threads = max(1, min(model.threads, int(worth)))
    return [batch * thread // threads for thread in range(threads + 1)]


@_QUIET
@one_blas_thread()
def attention_weights(
    model: Any, regions: Regions, tokens: Int[np.ndarray, "B K T"], *, bos_id: int = 2
) -> Float[np.ndarray, "B K T R"]:
    """Return the attention over regions with which each token was produced.

    As `decoding.attention_weights`.
    """
    context = model.encode(regions)
    carry, weights = model.init_carry(context, tokens.shape[1]), []
    bos = np.full((*tokens.shape[:2], 1), bos_id, np.int32)
    for words in np.moveaxis(np.concatenate([bos, tokens[:, :, :-1]], axis=2), 2, 0):
        members: list[np.ndarray] = []
        carry, _ = model.step(carry, words, context, members)
        weights.append(np.mean(members, axis=0))
    return np.stack(weights, axis=2)
