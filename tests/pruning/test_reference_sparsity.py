"""Sparsities and nonzeros that the reference counts for its pruned models."""

import jax
import numpy as np
import pytest
import reference_cases as cases
from flax.traverse_util import flatten_dict

from sparsecap_jax.pruning.masks import finalize, overall_sparsity

FILES = (
    "up_down_lstm_prune_supermask",
    "up_down_lstm_prune_mag_blind",
    "relation_transformer_prune_supermask",
    "relation_transformer_prune_mag_uniform",
)


@pytest.mark.parametrize("name", FILES)
def test_sparsity_and_nonzeros_match_the_reference(name, golden):
    case = golden(f"arch/{name}.npz")
    _, variables = cases.load(case)
    binary = variables["masks"]
    if name.endswith("supermask"):  # stored as logits, which round at 0
        binary = jax.tree.map(lambda mask: (np.asarray(mask) > 0).astype(np.float32), binary)
    total = case["out/mask_sparsity_total"]
    np.testing.assert_allclose(overall_sparsity(binary), total, rtol=1e-5)
    params = flatten_dict(finalize(variables["params"], binary))
    masks, paths = flatten_dict(binary), {}
    for rule in cases.rules(cases.config_of(case)):
        paths[rule.reference + cases.MASK_SUFFIX] = rule.path
    names = case["out/mask_sparsity_names"].tolist()
    assert {paths[name] for name in names} == masks.keys()
    figures = zip(names, case["out/mask_sparsity_each"], strict=True)
    for mask_name, sparsity in figures:
        found = 1.0 - np.mean(masks[paths[mask_name]])
        np.testing.assert_allclose(found, sparsity, atol=1e-6, err_msg=mask_name)
    keys = case["out/sparse_checkpoint_sparse_keys"].tolist()
    for key, nonzeros in zip(keys, case["out/sparse_checkpoint_nnz"], strict=True):
        assert np.count_nonzero(params[paths[key + cases.MASK_SUFFIX]]) == nonzeros, key
