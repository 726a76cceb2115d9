"""Seconds and peak memory of a training step, against the PyTorch reference where it is given.

Soft-Attention, which the reference does not have, is compared with torch_soft_attention.py.

python benchmarks/train_step.py --models=up_down,ort --pruners=supermask,none \
    --reference=DIR --reference_python=VENV/bin/python
python benchmarks/train_step.py --models=transformer,acort,soft_attention --pruners=none \
    --reference=DIR --reference_python=VENV/bin/python

Teacher forcing on 15 images x 5 captions of 9 to 18 tokens, 36 regions, 10,000 words, the papers'
sizes, dropout and optimizers. Each setting runs in a process of its own, so that its memory is its
own; the reference once with each of `--reference_threads`, the best counts. The fastest of
`--repeats` steps counts. Nothing else should run on the machine.
"""

import json
import pathlib
import resource
import sys
import time

import processes
from absl import app, flags
from paper_models import paper_config
from step_cases import CAPTIONS, TOTAL_STEPS, teacher_forcing

MODELS = flags.DEFINE_list("models", ["up_down", "ort"], "Keys of paper_models.FIELDS.")
PRUNERS = flags.DEFINE_list("pruners", ["supermask", "none"], "Pruners; the reference has these.")
SCALE = flags.DEFINE_integer("scale", 1, "Divides all sizes, for a quick try.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 15, "Images; each has five captions.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed steps of each; the fastest counts.")
DTYPE = flags.DEFINE_enum(
    "compute_dtype", "float32", ["float32", "bfloat16"], "Operands of our products."
)
REFERENCE = flags.DEFINE_string("reference", None, "Checkout of the PyTorch reference.")
PYTHON = flags.DEFINE_string("reference_python", "python", "Python that has torch.")
THREADS = flags.DEFINE_list("reference_threads", ["1", "2"], "Thread counts for the reference.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
ONE = flags.DEFINE_string("one", None, "Used by the script itself: time MODEL:PRUNER here.")


def time_here(name, pruner_name):
    """Print the seconds of the first and of the fastest later step, and the peak memory."""
    config, fields = paper_config(name, SCALE.value), {"compute_dtype": DTYPE.value}
    case = teacher_forcing(config, BATCH.value, pruner_name, **fields)
    state = case.state
    seconds = []
    for _ in range(REPEATS.value + 1):
        start = time.perf_counter()
        state, metrics = case.step(state, *case.inputs)
        loss = float(metrics["loss"])
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = {"seconds": min(seconds[1:]), "first": seconds[0], "gigabytes": peak, "loss": loss}
    print(json.dumps(found))


def time_ours(name, pruner):
    flags_ = [f"--scale={SCALE.value}", f"--batch={BATCH.value}", f"--repeats={REPEATS.value}"]
    flags_.append(f"--compute_dtype={DTYPE.value}")
    return processes.run_json([sys.executable, __file__, f"--one={name}:{pruner}", *flags_])


def time_reference(name, pruner):
    """The best of all thread counts; None where the reference has no such model."""
    if not REFERENCE.value or (name not in ("up_down", "ort") and pruner != "none"):
        return None
    config = paper_config(name, SCALE.value, pruned=pruner != "none")
    job = {"config": config, "scale": SCALE.value, "batch": BATCH.value, "name": name}
    job |= {"captions": CAPTIONS, "repeats": REPEATS.value, "total_steps": TOTAL_STEPS}
    return processes.run_reference(
        "reference_train.py", PYTHON.value, REFERENCE.value, job, THREADS.value
    )


def report(rows):
    titles = ("model", "pruner", "s/step", "GB", "reference s", "GB", "speed", "memory")
    print("\n| " + " | ".join(titles) + " |")
    print("|" + " --: |" * len(titles))
    for row in rows:
        ours, other = row["ours"], row["reference"]
        cells = [row["model"], row["pruner"], f"{ours['seconds']:.2f}", f"{ours['gigabytes']:.2f}"]
        if other:
            cells += [f"{other['seconds']:.2f}", f"{other['gigabytes']:.2f}"]
            cells += [f"{other['seconds'] / ours['seconds']:.2f}x"]
            cells += [f"{ours['gigabytes'] / other['gigabytes']:.2f}"]
        else:
            cells += [""] * 4
        print("| " + " | ".join(cells) + " |", flush=True)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if ONE.value:
        time_here(*ONE.value.split(":"))
        return
    rows = []
    for name in MODELS.value:
        for pruner in PRUNERS.value:
            row = {"model": name, "pruner": pruner, "ours": time_ours(name, pruner)}
            rows.append(row | {"reference": time_reference(name, pruner)})
            print(json.dumps(rows[-1]), flush=True)
    report(rows)
    if OUTPUT.value:
        pathlib.Path(OUTPUT.value).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    app.run(main)
