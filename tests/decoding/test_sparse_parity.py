"""The sparse runtime against every golden file: the reference's captions, by the same searches."""

import functools

import jax
import numpy as np
import pytest
import test_parity as parity
from reference_cases import captions, load, regions
from sparse_cases import sparse_of

from sparsecap_jax import sparse
from sparsecap_jax.decoding import DecodeOptions

CASES = [
    (name, search, variant)
    for names, searches, variants in (
        (parity.OWN, parity.EVERY, ("",)),
        (parity.WITHOUT_CACHE, parity.CONSISTENT, ("nocache_", "dense_")),
    )
    for name in names
    for search in searches
    for variant in variants
]


@functools.cache
def case_of(golden, name):
    """A golden file, its Linen module and params, read once for all searches."""
    case = golden(f"arch/{name}.npz")
    module, variables = load(case)
    return case, module, parity.params_of(case, variables)


@functools.cache
def decoded_by(golden, name, search):
    """Captions of a golden file's images, which its figures of all variants are compared with."""
    case, module, params = case_of(golden, name)
    model = sparse_of(module, params, form="csr")
    options = DecodeOptions(max_length=10, **parity.SEARCHES[search])
    decoded = sparse.decode(model, parity.padded(regions(case)), options)
    return jax.tree.map(lambda leaf: leaf[:3], decoded)


@pytest.mark.parametrize(("name", "search", "variant"), CASES)
def test_captions_of_the_reference(golden, name, search, variant):
    case = golden(f"arch/{name}.npz")
    key = f"out/{variant}{search}"
    if f"{key}__seq" not in case:
        pytest.skip("the reference's file has no such figure")
    parity.assert_equal_to(decoded_by(golden, name, search), case, key, 1e-4, 3e-3)


@pytest.mark.parametrize("form", ["dense", "csr", "blocks", ""])
@pytest.mark.parametrize("name", [*parity.OWN, *parity.WITHOUT_CACHE])
def test_log_probs_of_given_captions_in_every_form(golden, name, form):
    case, module, params = case_of(golden, name)
    model = sparse_of(module, params, form=form, threads=2)
    tokens = captions(case)[0]
    context = model.encode(regions(case))
    carry, found = model.init_carry(context, tokens.shape[1]), []
    for words in np.moveaxis(tokens, 2, 0):
        carry, log_probs = model.step(carry, words, context)
        found.append(log_probs)
    found = np.stack(found, axis=2)
    theirs = case["out/tf_logprobs"]
    found = found[:, :, : theirs.shape[-2]]
    theirs = theirs.reshape(*tokens.shape[:2], *theirs.shape[-2:])
    real = (tokens[:, :, : theirs.shape[2]] != 0) & np.any(theirs != 0, axis=-1)
    assert real.sum() > 20
    atol = 3e-3 if "relation" in name and "no_trig" not in name else 1e-4
    np.testing.assert_allclose(found[real], theirs[real], atol=atol)
