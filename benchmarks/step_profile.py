r"""What a training step does besides matrix products: seconds of its operations by kind.

    python benchmarks/step_profile.py --cases=ort:none,ort:supermask

One step is traced after two others; events of the trace are joined with the compiled program,
whose fusions are sorted by what they contain. Operations run on several threads: `busy` adds them
up, and is more than the `wall` time of the step where they overlap. Results are in
docs/results/step_floors.md.
"""

import collections
import gzip
import json
import pathlib
import re
import sys
import tempfile
import time

import processes
from absl import app, flags
from accelerator_speed import compilations
from paper_models import paper_config, reward_texts
from step_cases import self_critical, teacher_forcing

CASES = flags.DEFINE_list("cases", ["up_down:none", "ort:none"], "MODEL:PRUNER or MODEL:scst.")
SCALE = flags.DEFINE_integer("scale", 1, "Divides all sizes, for a quick try.", lower_bound=1)
ONE = flags.DEFINE_string("one", None, "Used by the script itself: measure one case here.")

# Kinds by what a fusion contains, the first that fits.
KINDS = (
    ("products", ("dot(", "custom-call(")),
    ("random bits", ("shift-right-logical(", "rng-bit-generator(")),
    ("optimizer", ("sqrt(",)),
    ("exponentials", ("exponential(", "log(", "logistic(", "tanh(")),
    ("gather, scatter, sort", ("gather(", "scatter(", "sort(", "dynamic-slice(")),
    ("sums", ("reduce(",)),
    ("copies", ("copy(", "transpose(", "concatenate(", "pad(")),
)


def computations(text):
    """Bodies of the computations of a program in HLO text, by name."""
    found, name = {}, None
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+)[^=]*\{$", line)
        if head:
            name = head[1]
            found[name] = []
        elif name:
            found[name].append(line)
    return found


def kinds_of(text):
    """The kind of each instruction, by name."""
    bodies, kinds = computations(text), {}
    for body in bodies.values():
        for line in body:
            parts = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = .*?\s([\w\-]+)\(", line)
            if not parts:
                continue
            called = re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", line)
            whole = "\n".join(bodies.get(called[1], [])) if called and parts[2] != "while" else ""
            content = f"{line}\n{whole}"
            fitting = (kind for kind, marks in KINDS if any(mark in content for mark in marks))
            loops = parts[2] in ("while", "conditional", "call")
            kinds[parts[1]] = None if loops else next(fitting, "other element-wise")
    return kinds


def traced(step):
    """Events of a trace of one call: name and seconds."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            start = time.perf_counter()
            step()
            wall = time.perf_counter() - start
        (path,) = pathlib.Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return wall, [(event["name"], event["dur"] / 1e6) for event in events if "dur" in event]


def measure(case):
    """Print wall time and seconds by kind, as JSON."""
    import jax

    name, _, kind = case.partition(":")
    config = paper_config(name, SCALE.value)
    if kind == "scst":
        made = self_critical(config, reward_texts(config), 5, 15, 0, 1)
    else:
        made = teacher_forcing(config, 15, kind)
    state = made.state

    def step():
        nonlocal state
        state, metrics = made.step(state, *made.inputs)
        jax.block_until_ready((state, metrics))

    with compilations() as found:
        step()
    step()
    wall, events = traced(step)
    kinds, busy = kinds_of(found[-1].as_text()), collections.Counter()
    for event, seconds in events:
        if kinds.get(event):
            busy[kinds[event]] += seconds
    row = {"case": case, "wall": wall, "busy": sum(busy.values())}
    print(json.dumps(row | {"kinds": dict(busy.most_common())}))


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if ONE.value:
        measure(ONE.value)
        return
    for case in CASES.value:
        flag = f"--scale={SCALE.value}"
        row = processes.run_json([sys.executable, __file__, f"--one={case}", flag])
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)
