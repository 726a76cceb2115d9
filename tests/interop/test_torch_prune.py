"""Names and values of `torch.nn.utils.prune`, without torch; `test_reference_load.py` has torch."""

import export_cases as ec
import jax
import numpy as np
import pytest
import reference_cases as cases

from sparsecap_jax.commands.reference_export import export_reference
from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.interop.checkpoint_dir import open_checkpoint_dir
from sparsecap_jax.interop.reference import export_state_dict, load_state_dict
from sparsecap_jax.interop.torch_prune import from_torch_prune, to_torch_prune
from sparsecap_jax.model_files import read_safetensors
from sparsecap_jax.pruning.paths import by_path, select


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


@pytest.mark.parametrize("name", ["up_down_supermask", "acort_supermask"])
def test_one_command_writes_masks(tmp_path, name):
    run = ec.drawn_run(tmp_path / "run", name)
    output = tmp_path / "exported"
    export_reference(tmp_path / "run", output, target="torch_prune", report=[].append)
    checkpoint = open_checkpoint_dir(output, "model_best_torch_prune.pth")
    assert any(name.endswith("weight_orig") for name in checkpoint.state_dict)
    back = from_torch_prune(checkpoint.state_dict)
    variables = load_state_dict(back, checkpoint.config)[1]
    jax.tree.map(np.testing.assert_array_equal, variables["params"], run.params)
    masks, params = by_path(variables["masks"]), by_path(run.params)
    assert {*masks} == {*select(run.params)}
    for path, mask in masks.items():
        np.testing.assert_array_equal(mask, params[path] != 0)


def test_safetensors_hold_the_tensors_of_the_checkpoint(tmp_path):
    ec.drawn_run(tmp_path / "run", "ort_supermask")
    for masks, file in (("applied", "model_best_pruned"), ("binary", "model_best_bin_mask")):
        for target in ("reference", "safetensors"):
            options = {"target": target, "masks": masks, "report": [].append}
            export_reference(tmp_path / "run", tmp_path / target / masks, **options)
        theirs = open_checkpoint_dir(tmp_path / "reference" / masks, f"{file}.pth")
        path = tmp_path / "safetensors" / masks / f"{file}.safetensors"
        tensors, metadata = read_safetensors(path)
        assert metadata == {"format": "pt"} and tensors.keys() == theirs.state_dict.keys()
        for name, tensor in theirs.state_dict.items():
            np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)
        assert (path.parent / "tokenizer").is_dir() and (path.parent / "config.json").is_file()


def test_targets_that_do_not_fit_are_refused(tmp_path):
    ec.drawn_run(tmp_path / "dense", "up_down")
    for options, message in (
        ({"target": "torch_prune"}, "a dense model has no masks"),
        ({"target": "torch_prune", "masks": "raw"}, "'torch_prune' has binary masks"),
        ({"target": "safetensors", "form": "sparse"}, "'safetensors' has dense tensors"),
        ({"target": "tensorflow"}, "expected one of reference, torch_prune, safetensors"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_reference(tmp_path / "dense", tmp_path / "x", report=[].append, **options)
