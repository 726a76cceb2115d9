"""What pruning adds to a training step: masked over dense, taken in turns in one process.

python benchmarks/pruning_overhead.py --models=up_down,ort --pruners=supermask,mag_grad_blind,rigl

Sizes, batch and captions of benchmarks/train_step.py, with the dropout of pruned models on both
sides. Steps fall between the events at which masks are ranked; a step at an event is timed apart
where there are any. The median of `--repeats` steps counts. Nothing else should run on the machine.
"""

import json
import pathlib
import statistics
import time

from absl import app, flags
from paper_models import paper_config, random_captions, random_regions

MODELS = flags.DEFINE_list("models", ["up_down", "ort"], "Models, keys of paper_models.FIELDS.")
PRUNERS = flags.DEFINE_list("pruners", ["supermask", "mag_grad_blind", "rigl"], "Pruners.")
SCALE = flags.DEFINE_integer("scale", 1, "Divides all sizes, for a quick try.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 15, "Images; each has five captions.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed steps of each; the median counts.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")

CAPTIONS = 5
TOTAL_STEPS = 100_000
EVENT = 50_000  # a step at which the default schedules of gradual methods rank


class Side:
    """One training step with its state."""

    def __init__(self, config, pruner_name, batch, words):
        import jax

        from sparsecap_jax.interop.reference import model_config
        from sparsecap_jax.models import make_model, smallest_inputs
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
            params = model.init(keys[0], *smallest_inputs(model))["params"]
            prune = self.pruner.init(keys[1], params)
            return SparseStep(self.pruner, tx, objective).start(keys[2], prune, params)

        self.state = first()
        self._step = make_train_step(objective, self.pruner, tx, make_mesh(1, BATCH.value))
        self._batch, self._words = batch, words

    def seconds(self, at=None):
        """Take a step, number `at` where given, and time it."""
        import jax

        if at is not None:
            self.state = self.state.replace(step=jax.numpy.int32(at))
        start = time.perf_counter()
        self.state, metrics = self._step(self.state, self._batch, self._words)
        float(metrics["loss"])
        jax.block_until_ready(self.state)
        return time.perf_counter() - start


def make_inputs(config):
    import jax
    import numpy as np

    from sparsecap_jax.training.objectives import words_to_pack
    from sparsecap_jax.types import Batch, Regions

    tokens, mask = random_captions(BATCH.value, CAPTIONS, config)
    index = np.arange(BATCH.value, dtype=np.int32)
    batch = Batch(Regions(*random_regions(BATCH.value, config)), tokens, mask, index)
    return jax.device_put(jax.tree.map(lambda leaf: leaf[None], batch)), words_to_pack(mask)


def compare(name, pruner_name):
    """Times of the dense and the masked step in turns, and what the masks take."""
    import jax

    from sparsecap_jax.pruning import pack

    config = paper_config(name, SCALE.value)
    inputs = make_inputs(config)
    dense, masked = Side(config, "none", *inputs), Side(config, pruner_name, *inputs)
    for side in (dense, masked):  # compiles
        side.seconds()
        side.seconds()
    times = [(dense.seconds(), masked.seconds()) for _ in range(REPEATS.value)]
    found = [statistics.median(column) for column in zip(*times, strict=True)]
    row = {"model": name, "pruner": pruner_name, "dense": found[0], "masked": found[1]}
    if getattr(masked.pruner, "schedule", None):
        masked.seconds(EVENT - 1001)  # setting the step compiles anew
        row["event"] = masked.seconds(EVENT - 1)
    masks = jax.device_get(masked.pruner.binarize(masked.state.prune.masks))
    row["weights"] = sum(mask.size for mask in jax.tree.leaves(masks))
    row["packed_bytes"] = sum(bits.nbytes for bits in jax.tree.leaves(pack(masks)))
    return row | {"ratio": found[1] / found[0]}


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    rows = []
    for name in MODELS.value:
        for pruner in PRUNERS.value:
            rows.append(compare(name, pruner))
            print(json.dumps(rows[-1]), flush=True)
    print("\n| model | pruner | dense, s | masked, s | masked / dense | at an event, s | bits |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for row in rows:
        event = f"{row['event']:.2f}" if "event" in row else ""
        bits = 8 * row["packed_bytes"] / row["weights"]
        cells = [row["model"], row["pruner"], f"{row['dense']:.2f}", f"{row['masked']:.2f}"]
        print("| " + " | ".join([*cells, f"{row['ratio']:.3f}", event, f"{bits:.4f}"]) + " |")
    if OUTPUT.value:
        pathlib.Path(OUTPUT.value).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    app.run(main)
