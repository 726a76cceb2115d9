r"""Check and time everything on the accelerator that JAX finds, in one command of 8 minutes.

    python benchmarks/accelerator.py --output=accelerator.json

Needs no network and no data. Parts, of which `--parts` chooses:

    rates   matrix products and copies, which the other figures are compared with
    exact   random bits, mask draws and rewards against the CPU
    parity  log-probs, gradients and decodes of all models against the CPU, in float32 at highest
            precision, at JAX's default, and with bfloat16 products (accelerator_parity.py says the
            tolerances)
    train   teacher forcing, dense and with supermasks; 15 images, five captions each
    scst    self-critical steps of `--shapes`, images x samples
    decode  greedy search in `--batches`, and five beams in the middle one
    torch   dense teacher forcing in plain PyTorch, Up-Down and Soft-Attention, if it is installed

Each line is written to `--output` when it is known. Whatever no longer fits into `--minutes` is
skipped, and says so; the same command with the same `--output` measures it. `--scale=32` divides
all sizes, for a try on a CPU. The exit status is 1 where a check failed.

`MFU` is the FLOPs that the model cannot do without (model_costs.py), over time and the measured
rate of matrix products of that type. `floor` is the time that these FLOPs, or reading weights and
optimizer state, would take at the measured rates, as a share of the time taken.
"""

import functools
import importlib.util
import itertools
import json
import os
import pathlib
import sys
import threading

# Before JAX starts: memory is left for PyTorch, and the CPU stays at hand.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
if os.environ.get("JAX_PLATFORMS"):
    os.environ["JAX_PLATFORMS"] += ",cpu"

import accelerator_parity as checks
import accelerator_speed as speed
import processes
from absl import app, flags
from accelerator_record import TITLES, Record, Task
from paper_models import FIELDS, paper_config
from step_cases import CAPTIONS

PARTS = ["rates", "exact", "parity", "train", "scst", "decode", "torch"]
_PARTS = flags.DEFINE_list("parts", PARTS, "Parts to run.")
_MODELS = flags.DEFINE_list(
    "models",
    ["up_down", "ort", "soft_attention", "transformer", "acort"],
    "Models; the first two are timed before the others, and self-critically too.",
)
_DTYPES = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Types of matrix products.")
_PRUNERS = flags.DEFINE_list("pruners", ["none", "supermask"], "Pruners of teacher forcing.")
_SHAPES = flags.DEFINE_list("shapes", ["15x5", "5x60"], "Images x samples of SCST.")
_BATCHES = flags.DEFINE_list("batches", ["1", "50", "500"], "Batch sizes of decoding.")
_IMAGES = flags.DEFINE_integer("images", 15, "Images of a step of teacher forcing.")
_SCALE = flags.DEFINE_integer("scale", 1, "Divides all sizes, for a quick try.", lower_bound=1)
_MINUTES = flags.DEFINE_float("minutes", 8.0, "Time for everything.", lower_bound=0.0)
_OUTPUT = flags.DEFINE_string("output", "accelerator.json", "JSON file for the figures.")

TORCH_MODELS = ("up_down", "soft_attention")
MAIN = 2  # models whose speed is measured before anything of the others


def torch_task(name, dtype):
    """Run `torch_step.py` in a process of its own."""
    if importlib.util.find_spec("torch") is None:
        return {"skipped": "torch is not installed"}
    job = {"config": paper_config(name, _SCALE.value), "images": _IMAGES.value, "dtype": dtype}
    job |= {"captions": CAPTIONS, "seconds": speed.SECONDS}
    script = str(pathlib.Path(__file__).with_name("torch_step.py"))
    row = processes.run_json([sys.executable, script, json.dumps(job)])
    return row | {"per_second": _IMAGES.value / row["seconds"], "unit": "images"}


def speed_tasks(name):
    """Everything that is timed of one model."""
    scale = _SCALE.value
    for dtype, pruner in itertools.product(_DTYPES.value, _PRUNERS.value):
        run = functools.partial(speed.train, name, pruner, dtype, _IMAGES.value, scale)
        yield Task("train", f"{name} {pruner} {dtype}", run)
    middle = _BATCHES.value[len(_BATCHES.value) // 2]
    for dtype in _DTYPES.value:
        for batch, beam in [*((batch, 1) for batch in _BATCHES.value), (middle, 5)]:
            run = functools.partial(speed.decoding, name, dtype, int(batch), beam, scale)
            yield Task("decode", f"{name} batch {batch} beam {beam} {dtype}", run)
    if name not in _MODELS.value[:MAIN]:
        return
    for dtype, shape in itertools.product(_DTYPES.value, _SHAPES.value):
        images, samples = map(int, shape.split("x"))
        run = functools.partial(speed.scst, name, dtype, images, samples, scale)
        yield Task("scst", f"{name} {shape} {dtype}", run)


def plan():
    """All tasks, what matters most first."""
    scale, models = _SCALE.value, _MODELS.value
    yield Task("rates", "matmul FLOP/s, copy bytes/s", functools.partial(speed.rates, scale))
    masks = functools.partial(checks.mask_draws, max(1000, 4_000_000 // scale))
    yield Task("exact", "mask draws", masks)
    yield Task("exact", "rewards", functools.partial(checks.rewards, scale))
    known = [name for name in checks.MODELS if name.removesuffix("_gru") in models]

    def parity(precision):
        for name in known:
            run = functools.partial(checks.parity, name, precision, scale)
            yield Task("parity", f"{name} {precision}", run)

    yield from parity("highest")
    for name in models[:MAIN]:
        yield from speed_tasks(name)
    for name, dtype in itertools.product(TORCH_MODELS, _DTYPES.value):
        if name in models:
            yield Task("torch", f"{name} none {dtype}", functools.partial(torch_task, name, dtype))
    yield from parity("default")
    yield from parity("bfloat16")
    for name in models[MAIN:]:
        yield from speed_tasks(name)


def describe():
    """Device, versions and sizes: what figures depend on."""
    import jax

    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "memory_bytes": memory,
        "jax": jax.__version__,
        "scale": _SCALE.value,
        "images": _IMAGES.value,
    }


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if unknown := {*_PARTS.value} - {*PARTS} | {*_MODELS.value} - {*FIELDS}:
        raise app.UsageError(f"{', '.join(sorted(unknown))}: no part and no model")
    seconds = 60 * _MINUTES.value
    tasks = [task for task in plan() if task.part in _PARTS.value]
    record = Record(_OUTPUT.value, describe(), seconds)
    timer = threading.Timer(seconds, record.stop)
    timer.daemon = True
    timer.start()
    print(json.dumps(record.about))
    print("\n| " + " | ".join(TITLES) + " |\n|" + " --- |" * len(TITLES), flush=True)
    for task in tasks:
        record.take(task)
    timer.cancel()
    record.finish()
    sys.exit(record.status())


if __name__ == "__main__":
    app.run(main)
