r"""What a mesh adds to a step on one device, and how long a checkpoint holds a step up.

    python benchmarks/loop_overhead.py --output=loop_overhead.json

`mesh`: steps with sharded state on a mesh of one device against plain `jax.jit`, taken in turns;
the median of their ratios. `checkpoint`: steps while a checkpoint is written, against steps in
between (all of them are in the JSON file); seconds that the loop waits for the copy of the state
and for `save`; and seconds of writing without any steps. With `--pinned` steps have one core and
the writer another, which tells whether steps wait for the writer or share cores with it. Nothing
else should run on the machine.
"""

import contextlib
import json
import os
import pathlib
import statistics
import tempfile
import time
from unittest import mock

from absl import app, flags
from paper_models import paper_config
from step_cases import caption_batch, first_state, make_parts

PARTS = flags.DEFINE_list("parts", ["mesh", "checkpoint"], "What to measure.")
MODEL = flags.DEFINE_string("model", "up_down", "Key of paper_models.FIELDS.")
SCALE = flags.DEFINE_integer("scale", 1, "Divides all sizes, for a quick try.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 7, "Pairs of steps; steps before each checkpoint.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Checkpoints.")
PINNED = flags.DEFINE_bool("pinned", False, "Steps on core 0, the writer on core 1 (Linux).")
PRUNER = flags.DEFINE_string("pruner", "supermask", "Pruner of the checkpoint's state.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")

IMAGES = 15


def timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Steps:
    """Training steps with their state, on a mesh of one device or by plain `jax.jit`."""

    def __init__(self, pruner_name, meshed):
        import jax

        from sparsecap_jax.training.objectives import words_to_pack
        from sparsecap_jax.training.sharding import Placement, make_mesh
        from sparsecap_jax.training.steps import make_train_step

        jit = jax.jit

        def unplaced(function, **options):
            placed = ("in_shardings", "out_shardings")
            return jit(function, **{k: v for k, v in options.items() if k not in placed})

        config = paper_config(MODEL.value, SCALE.value)
        objective, pruner, tx = make_parts(config, pruner_name)
        batch = caption_batch(config, IMAGES)
        words = words_to_pack(batch.token_mask)
        self.state = first_state(objective, pruner, tx)
        self.metrics = None
        self._inputs = jax.device_put(jax.tree.map(lambda leaf: leaf[None], batch))
        placement, shardings = Placement(make_mesh(1, IMAGES), (".*=largest",)), None
        if meshed:
            shardings = placement.shardings(self.state, self.state.params)
            self.state = jax.device_put(self.state, shardings)
        with contextlib.nullcontext() if meshed else mock.patch.object(jax, "jit", unplaced):
            step = make_train_step(objective, pruner, tx, placement.mesh, shardings=shardings)
        self._step = lambda state, inputs: step(state, inputs, words)

    def take(self):
        """Take one step and wait for it."""
        import jax

        self.state, self.metrics = self._step(self.state, self._inputs)
        jax.block_until_ready((self.state, self.metrics))


def mesh_part():
    plain, meshed = Steps("none", False), Steps("none", True)
    for steps in (plain, meshed):
        steps.take()
    pairs = []
    for number in range(REPEATS.value):
        order = (plain, meshed) if number % 2 else (meshed, plain)
        seconds = {steps: timed(steps.take) for steps in order}
        pairs.append((seconds[plain], seconds[meshed]))
    ratios = [b / a for a, b in pairs]
    fastest = [min(column) for column in zip(*pairs, strict=True)]
    return {"pairs": pairs, "median": statistics.median(ratios), "fastest": fastest}


def checkpoint_part():
    """Steps with and without a checkpoint being written, and what saving takes of the loop."""
    import jax

    from sparsecap_jax.runs.checkpoints import Checkpoints, snapshot
    from sparsecap_jax.training.steps import state_items

    steps, ours = Steps(PRUNER.value, True), threads()
    steps.take()
    found = {"bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state_items(steps.state)))}
    found |= {"copy": [], "save": [], "apart": [], "during": [], "written": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(Checkpoints(folder)) as checkpoints,
    ):

        def save():
            copies = []
            copy = timed(lambda: copies.append(jax.block_until_ready(snapshot(steps.state))))
            saved = timed(lambda: checkpoints.save(copies.pop(), score=None, data={}, info={}))
            return copy, saved

        save()
        start, used = time.perf_counter(), time.process_time()
        checkpoints.wait()
        found["alone"] = time.perf_counter() - start
        found["cpu"] = time.process_time() - used
        if PINNED.value:
            for thread in threads():
                os.sched_setaffinity(thread, {0 if thread in ours else 1})
        for _ in range(ROUNDS.value):
            found["apart"] += [timed(steps.take) for _ in range(REPEATS.value)]
            for key, seconds in zip(("copy", "save"), save(), strict=True):
                found[key].append(seconds)
            start, written = time.perf_counter(), checkpoints.directory / str(steps.state.step)
            during = []
            while not written.exists():
                during.append(timed(steps.take))
            found["written"].append(time.perf_counter() - start)
            found["during"] += during[:-1] or during  # the last one was alone in part
    apart, during = statistics.median(found["apart"]), statistics.median(found["during"])
    held = statistics.median(found["save"]) / apart
    return found | {"during / apart": during / apart, "save / step": held}


def threads():
    """Numbers of this process' threads."""
    return {int(entry.name) for entry in pathlib.Path("/proc/self/task").iterdir()}


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    parts = {"mesh": mesh_part, "checkpoint": checkpoint_part}
    found = {name: parts[name]() for name in PARTS.value}
    print(json.dumps(found))
    if OUTPUT.value:
        pathlib.Path(OUTPUT.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
