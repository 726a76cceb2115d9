"""Masks of jaxpruner and of this package from the same weights and gradients, entry by entry.

jaxpruner is on no package index and needs an old JAX, so it records in an environment of its own:

    python3.11 -m venv old
    old/bin/pip install jax==0.4.25 jaxlib==0.4.25 "flax<0.9" "optax<0.2.3" "chex<0.1.87" \
        ml-collections "numpy<2" "scipy<1.13"
    PYTHONPATH=JAXPRUNER old/bin/python benchmarks/jaxpruner_masks.py record masks.npz
    python benchmarks/jaxpruner_masks.py compare masks.npz

JAXPRUNER is a checkout of google-research/jaxpruner. Each step has weights of its own; sparsities
are such that both libraries round to the same number of weights, but on the rising schedule and
where RigL drops.
"""

import sys

import numpy as np

SHAPES = {"first": (40, 60), "second": (60, 20), "third": (20, 100)}
STEPS, SPARSITY = 10, 0.8
EVENTS = {"update_start_step": 2, "update_freq": 1, "update_end_step": 10}
OURS = {"start_step": 2, "frequency": 1, "events": 8}
# Name of a case: fields for jaxpruner, and for this package.
AT_ONCE: dict[str, tuple[dict, dict]] = {
    "magnitude": ({}, {}),
    "magnitude, erk": ({"dist_type": "erk"}, {"distribution": "erk"}),
    "magnitude, 2:4": ({"sparsity_type": "nm_2,4", "sparsity": 0.5}, {"sparsity_type": "2:4"}),
    "magnitude, 1:5": ({"sparsity_type": "nm_1,5"}, {"sparsity_type": "1:5"}),
    "magnitude, blocks of 2 x 5": ({"sparsity_type": "block_2,5"}, {"sparsity_type": "2x5"}),
    "magnitude, channels": ({"sparsity_type": "channel_-1"}, {"sparsity_type": "channels"}),
    "global_magnitude": ({}, {}),
    "saliency": ({}, {}),
    "saliency, erk": ({"dist_type": "erk"}, {"distribution": "erk"}),
    "global_saliency": ({}, {}),
}
IN_TRAINING = ("magnitude", "global_magnitude", "saliency", "global_saliency", "rigl")


def recorded_inputs():
    """Weights and gradients of each step, `[step][layer]["kernel"]`."""
    rng = np.random.default_rng(0)

    def tree():
        layers = SHAPES.items()
        return {n: {"kernel": rng.normal(size=s).astype(np.float32)} for n, s in layers}

    return [(tree(), tree()) for _ in range(STEPS)]


def flat(masks):
    return np.concatenate([np.ravel(masks[name]["kernel"]) != 0 for name in sorted(SHAPES)])


def record(path):
    """Write the masks of jaxpruner."""
    import jax
    import jaxpruner
    import ml_collections

    inputs, found = recorded_inputs(), {}

    def updater(name, **fields):
        config = {"algorithm": name, "dist_type": "uniform", "sparsity": SPARSITY, **fields}
        return jaxpruner.create_updater_from_config(ml_collections.ConfigDict(config))

    for case, (fields, _) in AT_ONCE.items():
        params, grads = inputs[0]
        made = updater(case.partition(",")[0], **fields).instant_sparsify(params, grads)[1]
        found[case] = flat(made)
    for name in IN_TRAINING:
        made = updater(name, **EVENTS)
        state = made.init_state(inputs[0][0])
        found[f"{name}, first"] = flat(state.masks)
        masks = []
        for step, (params, grads) in enumerate(inputs):
            state = state._replace(count=jax.numpy.int32(step), inner_state=())
            if made.scheduler.is_mask_update_iter(step):
                state = made.update_state(state, params, grads)
            masks.append(flat(state.masks))
        found[f"{name}, in training"] = np.stack(masks)
    np.savez_compressed(path, **found)


def compare(path):
    """Print how many entries of the masks are equal."""
    import jax
    import jax.numpy as jnp

    from sparsecap_jax.pruning import make_pruner

    inputs, theirs = recorded_inputs(), np.load(path)

    def show(case, mine, known):
        print(f"| {case} | {(mine == known).mean():.4%} | {(~known).sum()} | {(~mine).sum()} |")

    print("| case | equal entries | pruned by jaxpruner | pruned here |\n|---|--:|--:|--:|")
    for case, (settings, fields) in AT_ONCE.items():
        name, sparsity = case.partition(",")[0], settings.get("sparsity", SPARSITY)
        pruner = make_pruner({"name": name, "sparsity": sparsity, **fields}, total_steps=STEPS)
        show(case, flat(pruner.instant_sparsify(*inputs[0])[1]), theirs[case])
    for name in IN_TRAINING:
        fields = {"name": name, "sparsity": SPARSITY, **OURS}
        pruner, mine = make_pruner(fields, total_steps=STEPS), []
        state = pruner.init(jax.random.key(0), inputs[0][0])
        start, first = 0, {}
        for layer in sorted(SHAPES):
            size = int(np.prod(SHAPES[layer]))
            bits = theirs[f"{name}, first"][start : start + size].reshape(SHAPES[layer])
            first[layer], start = {"kernel": jnp.asarray(bits, jnp.float32)}, start + size
        state = pruner.load_masks(state, first)
        for step, (params, grads) in enumerate(inputs):
            # Both count finished steps, jaxpruner those before the update, this package it as well;
            # the cosine of RigL reads these counts as they are.
            count = step if name == "rigl" else step + 1
            state = pruner.update(state, params, grads, count)
            mine.append(flat(state.masks))
        show(f"{name}, in training", np.stack(mine), theirs[f"{name}, in training"])


if __name__ == "__main__":
    {"record": record, "compare": compare}[sys.argv[1]](sys.argv[2])
