"""Masks, counts and sparsity losses against the figures of the PyTorch reference."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.pruning import finalize, make_pruner, sparsity
from sparsecap_jax.pruning.paths import by_path, nest
from sparsecap_jax.pruning.ranking import prune_smallest
from sparsecap_jax.pruning.targets import removals

SUFFIX = "_pruning_mask"
FREEZE = {"": (), "none": (), "out.": ("out/.*",), "embed,lstm.": ("embed.*", "lstm/.*")}


@pytest.fixture
def figures(shared):
    def load(name):
        return json.loads((shared / "reference/losses_pruning" / name).read_text())

    return load


def to_path(name):
    return tuple(name.removesuffix(SUFFIX).rsplit(".", 1))


def tree(case, prefix):
    """The arrays below `prefix`, as a nested dict of our paths."""
    found = {to_path(k.removeprefix(prefix)): v for k, v in case.items() if k.startswith(prefix)}
    assert found
    return nest({path: jnp.asarray(value, jnp.float32) for path, value in found.items()})


def assert_same_masks(ours, theirs):
    ours, theirs = by_path(ours), by_path(theirs)
    assert ours.keys() == theirs.keys()
    for path, mask in ours.items():
        np.testing.assert_array_equal(mask, theirs[path], err_msg="/".join(path))


def one_shot_cases():
    for scope in ("none", "out."):
        for target in (0.0, 0.5, 0.8, 0.975):
            for name in ("mag_blind", "mag_uniform", "mag_dist"):
                yield name, scope, target
                yield f"lottery_{name}", scope, target


@pytest.mark.parametrize(("name", "scope", "target"), list(one_shot_cases()))
def test_one_shot_masks(golden, figures, name, scope, target):
    case = golden("losses_pruning/update_masks_once.npz")
    key = f"{name}/scope_{scope}/target_{target}"
    params = tree(case, "weights/")
    config = {"name": name, "sparsity": target, "freeze": FREEZE[scope]}
    pruner = make_pruner(config, total_steps=1)
    state = pruner.prepare(pruner.init(jax.random.key(0), params), params)
    assert_same_masks(state.masks, tree(case, f"masks/{key}/"))
    (entry,) = [e for e in figures("update_masks_once.json") if e["key"] == key]
    found = sparsity(state.masks)
    np.testing.assert_allclose(found.prunable, entry["total_sparsity"], rtol=1e-6, atol=1e-7)
    for mask, value in entry["each"].items():
        np.testing.assert_allclose(found.tensors["/".join(to_path(mask))], value, atol=1e-7)


@pytest.mark.parametrize("sign", ["possum", "negsum"])
@pytest.mark.parametrize("scope", ["none", "out."])
@pytest.mark.parametrize("target", [0.0, 0.5, 0.8, 0.975])
def test_signed_snip_masks(golden, sign, scope, target):
    """The reference's ranking, on its mask gradients split over two batches."""
    case = golden("losses_pruning/update_masks_once.npz")
    gradients = tree(case, f"grads/snip_{sign}/")
    ones = jax.tree.map(jnp.ones_like, gradients)
    config = {"name": "snip", "sparsity": target, "freeze": FREEZE[scope]}
    pruner = make_pruner({**config, "reference_signed": True, "num_batches": 2}, total_steps=1)
    state = pruner.prepare(
        pruner.init(jax.random.key(0), ones),
        ones,
        lambda params, share: jax.tree.map(lambda g: share * g, gradients),
        iter([0.25, 0.75, None]),
    )
    expected = tree(case, f"masks/snip_{sign}/scope_{scope}/target_{target}/")
    assert_same_masks(state.masks, expected)


def test_snip_of_the_paper_ranks_absolute_products(golden):
    case = golden("losses_pruning/update_masks_once.npz")
    gradients, params = tree(case, "grads/snip_negsum/"), tree(case, "weights/")
    pruner = make_pruner({"name": "snip", "sparsity": 0.8}, total_steps=1)
    state = pruner.init(jax.random.key(0), params)
    state = pruner.prepare(state, params, lambda p, batch: gradients, [None])
    products = {p: np.abs(g * by_path(params)[p]) for p, g in by_path(gradients).items()}
    flat = np.sort(np.concatenate([p.reshape(-1) for p in products.values()]))
    limit = flat[int(0.8 * flat.size)]
    for path, mask in by_path(state.masks).items():
        np.testing.assert_array_equal(mask, products[path] >= limit)


@pytest.mark.parametrize("name", ["mag_grad_blind", "mag_grad_uniform"])
def test_gradual_masks(golden, figures, name):
    case = golden("losses_pruning/update_masks_gradual.npz")
    entry = figures("update_masks_gradual.json")[name]
    args = entry["args"]
    config = {
        "name": name,
        "sparsity": args["sparsity_target"],
        "start_step": args["start_step"],
        "frequency": args["prune_frequency"],
        "events": args["prune_steps"],
    }
    pruner = make_pruner(config, total_steps=26)
    update = jax.jit(lambda state, params, step: pruner.update(state, params, None, step))
    start = tree(case, f"{name}/weights_init/")
    state = pruner.init(jax.random.key(0), start)
    events = 0
    for record in entry["steps"]:
        step = record["step"]
        at_event = any(key.startswith(f"{name}/step{step}/") for key in case)
        params = tree(case, f"{name}/step{step}/weights/") if at_event else start
        previous, state = state, update(state, params, jnp.int32(step))
        found = sparsity(state.masks).prunable
        np.testing.assert_allclose(found, record["mask_sparsity"], atol=1e-7)
        if at_event:
            events += 1
            assert_same_masks(state.masks, tree(case, f"{name}/step{step}/masks/"))
        else:
            assert_same_masks(state.masks, previous.masks)
    assert events == 6
    assert update._cache_size() == 1
    final = tree(case, f"{name}/final/pruned_weights/")
    assert_same_masks(state.masks, jax.tree.map(lambda w: jnp.float32(w != 0), final))
    jax.tree.map(np.testing.assert_array_equal, finalize(final, state.masks), final)


def test_masks_of_the_dist_criterion_may_be_gradual(golden):
    """The reference raises an error there; the last event equals one-shot masks."""
    case = golden("losses_pruning/update_masks_once.npz")
    params = tree(case, "weights/")
    config = {"name": "mag_grad_dist", "sparsity": 0.8, "start_step": 1, "frequency": 1}
    pruner = make_pruner({**config, "events": 2}, total_steps=10)
    state = pruner.init(jax.random.key(0), params)
    for step in range(1, 4):
        state = pruner.update(state, params, None, jnp.int32(step))
    assert_same_masks(state.masks, tree(case, "masks/mag_dist/scope_none/target_0.8/"))


def test_compute_mask_examples(figures):
    entry = figures("compute_mask.json")
    criterion = jnp.array(entry["criterion"], jnp.float32)
    checked = 0
    for example in entry["cases"]:
        target = example["target"]
        if "mask" in example:
            remove = jnp.array([removals(target, criterion.size)], jnp.uint32)
            (mask,) = prune_smallest([criterion], remove, (0,))
            np.testing.assert_array_equal(mask, example["mask"])
            checked += 1
        elif target >= 1:
            with pytest.raises(ConfigError, match=r"pruner.sparsity is 1.0; expected.*below 1"):
                make_pruner({"name": "mag_blind", "sparsity": target}, total_steps=1)
            checked += 1
    assert checked == 5  # the remaining one: an integer 0, which the reference refuses


@pytest.mark.parametrize("name", ["supermask", "mag_blind", "snip", "mask_freeze"])
def test_initial_masks(figures, name):
    key = f"{name}_init_5.0" if name == "supermask" else name
    expected = {to_path(mask): value for mask, value in figures("mask_init.json")[key].items()}
    order = figures("mask_init.json")["parameter_order"]
    names = [n for n in order if not n.endswith(SUFFIX)]
    shape = {True: (2,), False: (2, 3)}
    params = nest({to_path(n): jnp.ones(shape["bias" in n], jnp.float32) for n in names})
    state = make_pruner({"name": name}, total_steps=1).init(jax.random.key(0), params)
    masks = by_path(state.masks)
    assert masks.keys() == expected.keys()
    for path, (low, high, _) in expected.items():
        assert (float(masks[path].min()), float(masks[path].max())) == (low, high)


@pytest.mark.parametrize("index", range(5))
def test_sparsity_loss(golden, figures, index):
    case = golden("losses_pruning/sparsity_loss.npz")
    entry = figures("sparsity_loss.json")[index]
    masks = tree(case, f"sparsity/case{index}/mask_logits/")
    freeze = FREEZE[entry["mask_freeze_scope"]]

    def build(target, weight=120.0):
        config = {"name": "supermask", "sparsity": target, "sparsity_weight": weight}
        return make_pruner({**config, "freeze": freeze}, total_steps=100)

    found = sparsity(build(0.8).binarize(masks))
    assert found.nonzeros == entry["total_nnz"]
    np.testing.assert_allclose(found.prunable, entry["total_sparsity"], atol=1e-7)
    for name, value in entry["each"].items():
        np.testing.assert_allclose(found.tensors["/".join(to_path(name))], value, atol=1e-7)
    for record in entry["losses"]:
        assert (record["weight"], record["max_step"]) == (120.0, 100)
        loss, metrics = build(record["target"]).penalty(masks, jnp.int32(record["current_step"]))
        np.testing.assert_allclose(loss, record["loss"], rtol=1e-6)
        np.testing.assert_allclose(metrics["sparsity_gap"], record["unscaled"], rtol=1e-6)
        np.testing.assert_allclose(metrics["anneal_rate"], record["anneal_rate"], atol=1e-7)
        np.testing.assert_allclose(metrics["sparsity"], entry["active_sparsity"], rtol=1e-6)


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("target", [0.8, 0.975])
def test_sparsity_loss_gradient(golden, figures, index, target):
    case = golden("losses_pruning/sparsity_loss.npz")
    entry = figures("sparsity_loss.json")[index]
    masks = tree(case, f"sparsity/case{index}/mask_logits/")
    config = {"name": "supermask", "sparsity": target, "sparsity_weight": 120.0}
    freeze = FREEZE[entry["mask_freeze_scope"]]
    pruner = make_pruner({**config, "freeze": freeze}, total_steps=100)
    grads = jax.jit(jax.grad(lambda m: pruner.penalty(m, jnp.int32(50))[0]))(masks)
    expected = by_path(tree(case, f"sparsity/case{index}/target{target}/step50/grad/"))
    for path, grad in by_path(grads).items():
        np.testing.assert_allclose(grad, expected[path], rtol=1e-5, atol=1e-8)
    frozen = {to_path(name) for name in entry["masks_without_grad"]}
    assert {path for path, grad in by_path(grads).items() if not grad.any()} == frozen
