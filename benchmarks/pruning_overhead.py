"""What pruning adds to a training step: masked over dense, taken in turns in one process.

python benchmarks/pruning_overhead.py --models=up_down,ort --pruners=supermask,mag_grad_blind,rigl

Sizes, batch and captions of benchmarks/train_step.py, with the dropout of pruned models on both
sides; 53 million prunable weights for up_down. Steps fall between the events at which masks are
ranked; a step at an event, and a ranking alone, are timed apart where there are any. The median of
`--repeats` steps counts. A floor is the arrays that a method must read and write on top of the
dense step, at the rate at which this machine reads and writes a large one. Memory is what the
process holds after each timed step, the states of both sides included. Nothing else should run on
the machine; a first call with `--repeats=1` fills JAX's compilation cache.
"""

import json
import pathlib
import statistics
import time
from typing import Any

import psutil
from absl import app, flags
from paper_models import paper_config, random_captions, random_regions

MODELS = flags.DEFINE_list("models", ["up_down", "ort"], "Models, keys of paper_models.FIELDS.")
PRUNERS = flags.DEFINE_list("pruners", ["supermask", "mag_grad_blind", "rigl"], "Pruners.")
SCALE = flags.DEFINE_integer("scale", 1, "Divides all sizes, for a quick try.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 15, "Images; each has five captions.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed steps of each; the median counts.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")

CAPTIONS = 5
FLOAT = 4
# Float32 arrays of the size of the prunable weights that a step moves on top of the dense one: the
# weights and masks read and the masked weights written; the masks read where gradients are masked.
MASKED = 4
# Masks written besides; logits read to draw them; logits and two moments read and written by Adam.
TRAINED = MASKED + 1 + 1 + 6
# A ranking: weights read; keys written, read in 11 passes, for ties and for masks; these written.
RANKING = 16
TOTAL_STEPS = 100_000
EVENT = 50_000  # a step at which the default schedules of gradual methods rank


class Side:
    """One training step with its state."""

    def __init__(self, config, pruner_name, batch, words):
        import jax

        from sparsecap_jax.interop.reference import model_config
        from sparsecap_jax.models import init_params, make_model
        from sparsecap_jax.pruning import make_pruner
        from sparsecap_jax.pruning.step import SparseStep
        from sparsecap_jax.training.objectives import CrossEntropy, Task
        from sparsecap_jax.training.optimizers import make_optimizer
        from sparsecap_jax.training.sharding import make_mesh
        from sparsecap_jax.training.steps import make_train_step

        recurrent = config["caption_model"].startswith("up_down")
        dropout = {"dropout": 0.1} if recurrent else {"dropout": 0.1 / 3, "source_dropout": 0.1}
        recipe = {"learning_rate": 1e-2, "epsilon": 1e-2} if recurrent else {"schedule": "noam"}
        model = make_model(model_config(config) | dropout)
        fields = {} if pruner_name == "none" else {"sparsity": 0.95}
        self.pruner = make_pruner({"name": pruner_name, **fields}, total_steps=TOTAL_STEPS)
        tx = make_optimizer(recipe, TOTAL_STEPS, trains_masks=self.pruner.trains_masks)
        objective = CrossEntropy(task=Task(model))

        @jax.jit
        def first():
            keys = jax.random.split(jax.random.key(0), 3)
            params = init_params(model, keys[0])
            prune = self.pruner.init(keys[1], params)
            return SparseStep(self.pruner, tx, objective).start(keys[2], prune, params)

        self.state = first()
        self._step = make_train_step(objective, self.pruner, tx, make_mesh(1, BATCH.value))
        self._batch, self._words = batch, words

    def seconds(self, at=None):
        """Take a step, number `at` where given, and time it."""
        import jax

        if at is not None:
            step = jax.device_put(jax.numpy.int32(at), self.state.step.sharding)
            self.state = self.state.replace(step=step)
        start = time.perf_counter()
        self.state, metrics = self._step(self.state, self._batch, self._words)
        float(metrics["loss"])
        jax.block_until_ready(self.state)
        return time.perf_counter() - start

    def ranking(self):
        """Return a function that ranks the weights and waits for the masks."""
        import jax

        pruner: Any = self.pruner  # one that ranks
        rank = jax.jit(lambda prune, params: pruner.rank(prune, params, params))
        return lambda: jax.block_until_ready(rank(self.state.prune, self.state.params))


def make_inputs(config):
    import jax
    import numpy as np

    from sparsecap_jax.training.objectives import words_to_pack
    from sparsecap_jax.types import Batch, Regions

    tokens, mask = random_captions(BATCH.value, CAPTIONS, config)
    index = np.arange(BATCH.value, dtype=np.int32)
    batch = Batch(Regions(*random_regions(BATCH.value, config)), tokens, mask, index)
    return jax.device_put(jax.tree.map(lambda leaf: leaf[None], batch)), words_to_pack(mask)


def fastest(call, repeats):
    """Seconds of the fastest of `repeats` calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def bandwidth():
    """Bytes/s of reading and writing a large array in place."""
    import jax
    import jax.numpy as jnp

    block = jnp.zeros((2**26 // SCALE.value,), jnp.float32)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def pass_over():
        nonlocal block
        block = jax.block_until_ready(add(block))

    return 2 * FLOAT * block.size / fastest(pass_over, 12)


def prepare(config, pruner_name, inputs):
    """A side whose step is compiled and has been taken."""
    side = Side(config, pruner_name, *inputs)
    side.seconds()
    side.seconds()
    return side


def compare(dense, masked):
    """Times of the dense and the masked step in turns, of what ranks, and what the masks take."""
    import jax

    from sparsecap_jax.pruning import pack

    steps = [
        (dense.seconds(), masked.seconds(), psutil.Process().memory_info().rss)
        for _ in range(REPEATS.value)
    ]
    *times, held = zip(*steps, strict=True)
    found = [statistics.median(column) for column in times]
    row = {"dense": found[0], "masked": found[1], "ratio": found[1] / found[0]}
    row["memory"] = min(held), max(held)
    if getattr(masked.pruner, "schedule", None):
        row["event"] = masked.seconds(EVENT - 1)
        row["ranking"] = fastest(masked.ranking(), 4)
    masks = jax.device_get(masked.pruner.binarize(masked.state.prune.masks))
    row["weights"] = sum(mask.size for mask in jax.tree.leaves(masks))
    row["packed_bytes"] = sum(bits.nbytes for bits in jax.tree.leaves(pack(masks)))
    rate, arrays = bandwidth(), TRAINED if masked.pruner.trains_masks else MASKED
    moved = FLOAT * row["weights"] / rate
    return row | {"rate": rate, "floor": arrays * moved, "ranking_floor": RANKING * moved}


def show(rows):
    """Print the table."""
    titles = ("model", "pruner", "dense, s", "masked, s", "masked / dense", "added, s", "floor, s")
    print(
        f"\n| {' | '.join(titles)} | at an event, s | ranking, s | floor, s | bits | GB/s "
        "| memory, GB |"
    )
    print("|---|---|" + "--:|" * 11)
    for row in rows:
        added = row["masked"] - row["dense"]
        seconds = (row["dense"], row["masked"], row["ratio"], added, row["floor"])
        cells = [row["model"], row["pruner"], *(f"{value:.3f}" for value in seconds)]
        names = ("event", "ranking", "ranking_floor")
        cells += [f"{row[name]:.2f}" if "event" in row else "" for name in names]
        bits = 8 * row["packed_bytes"] / row["weights"]
        memory = " to ".join(f"{held / 1e9:.1f}" for held in row["memory"])
        cells += [f"{bits:.4f}", f"{row['rate'] / 1e9:.0f}", memory]
        print("| " + " | ".join(cells) + " |")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    rows = []
    for name in MODELS.value:
        config = paper_config(name, SCALE.value)
        inputs = make_inputs(config)
        dense = prepare(config, "none", inputs)
        for pruner in PRUNERS.value:
            found = compare(dense, prepare(config, pruner, inputs))
            rows.append({"model": name, "pruner": pruner, **found})
            print(json.dumps(rows[-1]), flush=True)
    show(rows)
    if OUTPUT.value:
        pathlib.Path(OUTPUT.value).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    app.run(main)
