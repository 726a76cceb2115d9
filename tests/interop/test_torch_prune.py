"""Names and values of `torch.nn.utils.prune`, without torch; `test_reference_load.py` has torch."""

import jax
import numpy as np
import pytest
import reference_cases as cases

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.interop.reference import export_state_dict, load_state_dict
from sparsecap_jax.interop.torch_prune import from_torch_prune, to_torch_prune


def test_names_and_values_by_hand():
    weight, bias = np.float32([[1, 2], [3, 4]]), np.float32([5, 6])
    mask = np.float32([[1, 0], [0, 1]])
    state = {"a.weight": weight, "a.bias": bias, "a.weight_pruning_mask": mask, "b.seen_mask": bias}
    renamed = to_torch_prune(state)
    # The names that torch.nn.utils.prune.custom_from_mask(a, "weight", mask) leaves.
    assert list(renamed) == ["a.weight_orig", "a.bias", "a.weight_mask", "b.seen_mask"]
    assert renamed["a.weight_orig"] is weight and renamed["a.weight_mask"] is mask
    assert renamed["a.bias"] is bias
    assert from_torch_prune(renamed) == state


@pytest.mark.parametrize("name", ["up_down_lstm", "relation_transformer"])
def test_a_pruned_model_goes_and_comes_back(golden, name):
    case = golden(f"arch/{name}_prune_supermask.npz")
    config = cases.config_of(case)
    variables = cases.load(case)[1]
    masks = jax.tree.map(lambda logits: np.float32(logits > 0), variables["masks"])
    state = export_state_dict({"params": variables["params"], "masks": masks}, config)
    renamed = to_torch_prune(state)
    assert len(renamed) == len(state)
    for key, theirs in cases.tensors(case, "param/").items():
        if key.endswith("_pruning_mask"):
            weight = key.removesuffix("_pruning_mask")
            np.testing.assert_array_equal(renamed[f"{weight}_mask"], theirs > 0)
            assert weight not in renamed and f"{weight}_orig" in renamed
    back = load_state_dict(from_torch_prune(renamed), config)[1]
    jax.tree.map(np.testing.assert_array_equal, back, {**variables, "masks": masks})


def test_faults_name_the_tensor():
    weight = np.ones((2, 3), np.float32)
    for function, state, message in (
        (to_torch_prune, {"w_pruning_mask": weight}, "'w_pruning_mask' has no weight"),
        (from_torch_prune, {"w_orig": weight, "w_mask": weight * 5}, "'w_mask' is not binary"),
        (from_torch_prune, {"w_orig": weight}, "'w_orig' has no 'w_mask'"),
        (to_torch_prune, {"w": weight, "w_pruning_mask": weight * 5}, "not binary"),
        (to_torch_prune, {"w": weight, "w_pruning_mask": weight.T}, r"shape \(3, 2\); .* \(2, 3\)"),
    ):
        with pytest.raises(CheckpointError, match=message):
            function(state)
