"""Memory and time of fine-tuning with frozen masks, the optimizer packed and not.

python benchmarks/packed_optimizer.py --models=up_down,ort --sparsities=0.95,0.99
python benchmarks/packed_optimizer.py --models= --sampling=15x5,5x60

Models of the papers' sizes with random masks. A step: teacher forcing on 15 images x 5 captions, or
the self-critical step of `scst_step.py`; Adam. Both forms take turns in one process, whose CPU
seconds count, so that other work on the machine hardly does; peak memory is that of a process for
each form. `--sampling` compares the search of a self-critical step (images x samples at
`--sampling_sparsity`) by XLA and by the sparse runtime, whose weights have to be prepared anew for
each step.
"""

import functools
import json
import pathlib
import re
import sys
import time

import processes
from absl import app, flags
from paper_models import our_fields, paper_config, random_captions, random_regions

MODELS = flags.DEFINE_list("models", ["up_down"], "Keys of paper_models.FIELDS.")
SPARSITIES = flags.DEFINE_list("sparsities", ["0.95", "0.99"], "Fractions removed.")
SAMPLING = flags.DEFINE_list("sampling", [], "Images x samples; for Up-Down.")
SAMPLING_SPARSITY = flags.DEFINE_float("sampling_sparsity", 0.975, "Fraction removed there.")
SCALE = flags.DEFINE_integer("scale", 1, "Divides all sizes, for a quick try.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed steps of each form; the fastest counts.")
ONE = flags.DEFINE_string("one", None, "Used by the script itself: MODEL:SPARSITY:PACKS here.")

IMAGES, CAPTIONS = 15, 5


def cpu_seconds(function):
    """Return the CPU seconds of a call, and what it returned."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def masked(params, pruner, sparsity):
    """Return params, random masks, and the pruner's state with them."""
    import jax
    import numpy as np

    from sparsecap_jax.pruning import finalize

    rng = np.random.default_rng(1)
    prune = pruner.init(jax.random.key(0), params)
    masks = jax.tree.map(
        lambda mask: (rng.random(mask.shape, np.float32) >= sparsity).astype(np.float32),
        prune.masks,
    )
    return finalize(params, masks), pruner.load_masks(prune, masks)


class Tuning:
    """A compiled step of a model with frozen masks, and its state."""

    def __init__(self, name, sparsity, packs):
        import jax
        import numpy as np
        from jax.sharding import NamedSharding, PartitionSpec

        from sparsecap_jax.models import init_params, make_model
        from sparsecap_jax.pruning import SparseStep, make_pruner
        from sparsecap_jax.training.objectives import CrossEntropy, Task, words_to_pack
        from sparsecap_jax.training.optimizers import make_optimizer
        from sparsecap_jax.training.sharding import make_mesh
        from sparsecap_jax.training.steps import make_train_step
        from sparsecap_jax.types import Batch, Regions

        config = paper_config(name, SCALE.value)
        tokens, mask = random_captions(IMAGES, CAPTIONS, config)
        index = np.arange(IMAGES, dtype=np.int32)
        batch = Batch(Regions(*random_regions(IMAGES, config)), tokens, mask, index)
        model = make_model(our_fields(config) | {"dropout": 0.1})
        pruner = make_pruner({"name": "mask_freeze"}, total_steps=1000)
        tx = make_optimizer({"learning_rate": 5e-5, "schedule": "constant"}, 1000)
        params = init_params(model, jax.random.key(0))
        params, prune = masked(params, pruner, sparsity)
        mesh = make_mesh(1, IMAGES)
        objective = CrossEntropy(task=Task(model))
        self._step = make_train_step(objective, pruner, tx, mesh, packs=packs)
        start = SparseStep(pruner, tx, packs=packs).start
        placed = NamedSharding(mesh, PartitionSpec())
        self.state = jax.device_put(start(jax.random.key(2), prune, params), placed)
        self._batches = jax.device_put(jax.tree.map(lambda leaf: leaf[None], batch))
        self._words = words_to_pack(mask)

    def __call__(self):
        """Take a step and return its loss."""
        self.state, metrics = self._step(self.state, self._batches, self._words)
        return float(metrics["loss"])

    def megabytes(self):
        """Return the sizes of the parts of the state."""
        import jax

        def size(tree):
            return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 1e6

        state = self.state
        parts = {"params": state.params, "masks": state.prune.masks, "optimizer": state.opt_state}
        return {name: size(tree) for name, tree in parts.items()}


def peak_here(name, sparsity, packs):
    """Print the peak memory of this process, in GB, once the first step is done."""
    from sparsecap_jax.training.steps import release_freed_memory

    tuning = Tuning(name, float(sparsity), packs == "True")
    tuning()
    release_freed_memory()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    tuning()
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    print(json.dumps(int(line) / 2**20))


def update_alone(name, sparsity):
    """Return the CPU seconds of an update of dense gradients, not packed and packed."""
    import jax
    import optax

    from sparsecap_jax.models import abstract_params, make_model
    from sparsecap_jax.pruning import make_pruner, packed, packed_step, take_kept
    from sparsecap_jax.training.optimizers import make_optimizer

    shapes = abstract_params(make_model(our_fields(paper_config(name, SCALE.value))))
    params = jax.tree.map(lambda leaf: jax.numpy.full(leaf.shape, 0.1, leaf.dtype), shapes)
    params, prune = masked(params, make_pruner({"name": "mask_freeze"}, 1000), sparsity)
    tx = make_optimizer({"learning_rate": 5e-5, "schedule": "constant"}, 1000)

    def dense(grads, state, trained):
        updates, state = tx.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state

    def lean(grads, state, trained):
        return packed_step(tx, take_kept(grads, state.places), state, trained)

    found = []
    for update, form in ((dense, tx), (None, packed(tx, {"params": prune.masks}))):
        update = update or lean
        trained = {"params": jax.tree.map(jax.numpy.array, params)}
        grads, state = {"params": params}, form.init(trained)
        compiled = jax.jit(update, donate_argnums=(1, 2))
        times = []
        for _ in range(REPEATS.value + 1):
            step = functools.partial(compiled, grads, state, trained)
            seconds, (trained, state) = cpu_seconds(lambda: jax.block_until_ready(step()))  # noqa: B023
            times.append(seconds)
        found.append(min(times[1:]))
        del trained, state
    return found


def compare(name, sparsity):
    """Print a row for each form."""
    forms = {"as it is": Tuning(name, float(sparsity), False)}
    forms["packed"] = Tuning(name, float(sparsity), True)
    losses, seconds, walls = {}, {}, {}
    for number in range(REPEATS.value + 1):
        for form, tuning in forms.items():
            start = time.perf_counter()
            cpu, loss = cpu_seconds(tuning)
            losses.setdefault(form, []).append(loss)
            if number:
                seconds[form] = min(cpu, seconds.get(form, cpu))
                walls[form] = min(time.perf_counter() - start, walls.get(form, 1e9))
    assert losses["as it is"] == losses["packed"], losses
    sizes = {form: tuning.megabytes() for form, tuning in forms.items()}
    forms.clear()
    updates = dict(zip(sizes, update_alone(name, float(sparsity)), strict=True))
    for form, parts in sizes.items():
        command = [sys.executable, __file__, f"--scale={SCALE.value}"]
        command.append(f"--one={name}:{sparsity}:{form == 'packed'}")
        processes.run_json(command)  # compiles, where JAX's cache is on
        weights, peak = parts["params"], processes.run_json(command)
        state, whole = weights + parts["optimizer"], sum(parts.values())
        cells = [name, sparsity, form, f"{parts['optimizer']:.0f}"]
        cells += [f"{state / weights:.2f}", f"{parts['masks']:.0f}", f"{whole:.0f}"]
        cells += [f"{whole / weights:.2f}", f"{peak:.2f}", f"{1e3 * updates[form]:.0f}"]
        cells += [f"{seconds[form]:.2f}", f"{walls[form]:.2f}"]
        cells += [f"{seconds['as it is'] / seconds[form]:.3f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


def compare_sampling(shape):
    """Print the CPU seconds of XLA's and of the sparse runtime's sampling."""
    import math

    import jax
    import numpy as np

    from sparsecap_jax import sparse
    from sparsecap_jax.decoding import DecodeOptions, decode
    from sparsecap_jax.models import init_params, make_model
    from sparsecap_jax.pruning import make_pruner
    from sparsecap_jax.types import Regions

    images, samples = map(int, shape.split("x"))
    config = paper_config("up_down", SCALE.value)
    model = make_model(our_fields(config))
    params = init_params(model, jax.random.key(0))
    # Captions end at every word with probability 1 / 12, as in `scst_step.py`.
    bias = math.log(config["vocab_size"] / 11)
    params["logit_0"]["bias"] = params["logit_0"]["bias"].at[config["eos_token_id"]].set(bias)
    pruner = make_pruner({"name": "mask_freeze"}, total_steps=1)
    params, _ = masked(params, pruner, SAMPLING_SPARSITY.value)
    weights, rng = jax.device_get(params), jax.random.key(1)
    data, regions = np.asarray(jax.random.key_data(rng)), Regions(*random_regions(images, config))
    options = DecodeOptions(method="sample", num_samples=samples, max_length=18)
    kept = {}

    def prepare():
        kept["model"] = sparse.make_sparse_model(our_fields(config), weights)

    runs = {
        "XLA": lambda: jax.block_until_ready(decode(model, params, regions, options, rng)),
        "prepare": prepare,
        "sparse": lambda: sparse.decode(kept["model"], regions, options, data),
    }
    seconds, walls, found = {}, {}, {}
    for number in range(REPEATS.value + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            cpu, found[name] = cpu_seconds(run)
            if number:
                seconds[name] = min(cpu, seconds.get(name, cpu))
                walls[name] = min(time.perf_counter() - start, walls.get(name, 1e9))
    same = np.mean((np.asarray(found["XLA"].tokens) == found["sparse"].tokens).all(axis=-1))
    cells = [shape, f"{float(np.mean(found['sparse'].lengths)):.1f}"]
    cells += [f"{seconds[name]:.2f} ({walls[name]:.2f})" for name in runs]
    whole = seconds["sparse"] + seconds["prepare"]
    cells += [f"{seconds['XLA'] / seconds['sparse']:.2f}", f"{seconds['XLA'] / whole:.2f}"]
    print("| " + " | ".join([*cells, f"{same:.3f}"]) + " |", flush=True)


def header(*titles):
    """Print the first lines of a table."""
    print("\n| " + " | ".join(titles) + " |\n|" + " --: |" * len(titles), flush=True)


def main(argv):
    """Measure and print tables."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if ONE.value:
        peak_here(*ONE.value.split(":"))
        return
    models = list(filter(None, MODELS.value))
    if models:
        titles = ["model", "sparsity", "optimizer", "its state MB", "with weights", "masks MB"]
        titles += ["train state MB", "of the weights", "peak GB", "update CPU ms", "step CPU s"]
        header(*titles, "step s", "speed")
    for name in models:
        for sparsity in SPARSITIES.value:
            compare(name, sparsity)
    if SAMPLING.value:
        titles = ["images x samples", "tokens", "XLA CPU s (s)", "prepare", "sparse"]
        header(*titles, "speed", "with preparing", "equal captions")
    for shape in SAMPLING.value:
        compare_sampling(shape)


if __name__ == "__main__":
    app.run(main)
