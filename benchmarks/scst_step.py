"""Self-critical training: seconds and peak memory of a step, and the scorers alone.

python benchmarks/scst_step.py --shapes=15x5 --reference=DIR --reference_python=VENV/bin/python
python benchmarks/scst_step.py --shapes=5x60 --micro_batch=50 \
    --reference=DIR --reference_python=VENV/bin/python
python benchmarks/scst_step.py --models= --scorer --reference=DIR --reference_python=VENV/bin/python

A step: random samples, CIDEr-D + BLEU-4 against five references each, leave-one-out baseline,
gradient, Adam; frozen masks, the papers' sizes, 36 regions, 10,000 words. Weights are random; the
bias of EOS is raised so that captions end at every word with probability 1/12: 9.5 tokens on
average, 18 at most. Each setting runs in a process of its own, ours twice: one that compiles, and
one that finds the compiled step in JAX's cache, as every later start does, whose time and memory
count. The reference runs once with each of `--reference_threads`, the best counts. The fastest of
`--repeats` counts. Nothing else should run.
"""

import json
import os
import resource
import sys
import tempfile
import time

import processes
from absl import app, flags
from paper_models import MAX_LENGTH, paper_config, reward_texts
from step_cases import END, make_rewards, self_critical

MODELS = flags.DEFINE_list("models", ["up_down", "ort"], "Models, keys of paper_models.FIELDS.")
SHAPES = flags.DEFINE_list("shapes", ["15x5", "5x60"], "Images x samples.")
SCORER = flags.DEFINE_bool("scorer", False, "Time the scorers alone, on 75 and 3,000 captions.")
MICRO = flags.DEFINE_integer("micro_batch", 75, "See ScstConfig.")
BUCKETS = flags.DEFINE_integer("length_buckets", 4, "See ScstConfig.")
SCALE = flags.DEFINE_integer("scale", 1, "Divides all sizes, for a quick try.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed steps of each; the fastest counts.")
REFERENCE = flags.DEFINE_string("reference", None, "Checkout of the PyTorch reference.")
PYTHON = flags.DEFINE_string("reference_python", "python", "Python that has torch.")
THREADS = flags.DEFINE_list("reference_threads", ["2"], "Thread counts for the reference.")
ONE = flags.DEFINE_string("one", None, "Used by the script itself: MODEL:IMAGESxSAMPLES here.")


def time_here(name, images, samples):
    """Print the seconds of the first and of the fastest later step, and the peak memory."""
    config = paper_config(name, SCALE.value) | {"drop_prob_lm": 0.1, "drop_prob_src": 0.1}
    texts = reward_texts(config)
    case = self_critical(config, texts, images, samples, MICRO.value, BUCKETS.value)
    state = case.state
    seconds = []
    for _ in range(REPEATS.value + 1):
        start = time.perf_counter()
        state, metrics = case.step(state, *case.inputs)
        length = float(metrics["length"])
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = {"seconds": min(seconds[1:]), "first": seconds[0], "gigabytes": peak}
    print(json.dumps(found | {"length": length, "gap": float(metrics["log_prob_gap"])}))


def time_scorers(images):
    """Milliseconds of the host's and the device's scorer, five captions an image."""
    import jax
    import numpy as np

    from sparsecap_jax.scst.document_frequency import count_documents
    from sparsecap_jax.scst.scorers import HostScorer

    config = paper_config("up_down")
    texts = reward_texts(config)
    captions = [texts[i + images] for i in range(images)]
    host = HostScorer(count_documents(texts), texts)
    rewards = make_rewards(texts, config["vocab_size"])
    tokens = np.zeros((images, 5, MAX_LENGTH), np.int32)
    lengths = np.zeros((images, 5), np.int32)
    for image, row in enumerate(captions):
        for number, text in enumerate(row):
            ids = [int(word[1:]) for word in text.split()]
            tokens[image, number, : len(ids)], lengths[image, number] = ids, len(ids)
    some = np.arange(images)
    known = jax.device_put(rewards.gather(some))
    given = jax.device_put((rewards.resources, known, tokens, lengths))
    compiled = jax.jit(rewards)
    found = {}
    for name, call in (
        ("host", lambda: host.score_texts(captions, some)),
        ("device", lambda: jax.block_until_ready(compiled(*given))),
    ):
        call()
        found[name] = 1000 * min(timed(call) for _ in range(REPEATS.value))
    by_host = rewards.weights.combine(np, *host.score_texts(captions, some))
    np.testing.assert_allclose(compiled(*given), by_host, rtol=1e-4, atol=1e-6)
    return found


def timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def run_ours(name, shape):
    """Measure in a fresh process with the step compiled before, and tell what compiling takes."""
    own = [f"--{flag.name}={flag.value}" for flag in (SCALE, MICRO, BUCKETS)]
    command = [sys.executable, __file__, f"--one={name}:{shape}", *own]
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
        compiling = processes.run_json([*command, "--repeats=1"], env)
        found = processes.run_json([*command, f"--repeats={REPEATS.value}"], env)
    compiling = {"seconds": compiling["first"], "gigabytes": compiling["gigabytes"]}
    return found | {"compiling": compiling}


def run_reference(job):
    """The best of all thread counts; None without a checkout."""
    if not REFERENCE.value:
        return None
    return processes.run_reference(
        "reference_scst.py", PYTHON.value, REFERENCE.value, job, THREADS.value
    )


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if ONE.value:
        name, shape = ONE.value.split(":")
        time_here(name, *map(int, shape.split("x")))
        return
    for name in filter(None, MODELS.value):
        for shape in SHAPES.value:
            ours = run_ours(name, shape)
            config = paper_config(name, SCALE.value, pruned=True)
            job = {"config": config | {"prune_type": "mask_freeze"}, "end": END}
            job |= {"shape": shape.split("x"), "repeats": REPEATS.value}
            report(name, shape, ours, run_reference(job))
    for images in (15, 600) if SCORER.value else ():
        found = time_scorers(images)
        other = run_reference({"scorer": images, "repeats": REPEATS.value})
        found |= {"reference": 1000 * other["seconds"]} if other else {}
        print(json.dumps({"captions": 5 * images, "milliseconds": found}), flush=True)


def report(name, shape, ours, other):
    row = {"model": name, "shape": shape, "ours": ours, "reference": other}
    if other:
        row["speed"] = other["seconds"] / ours["seconds"]
        row["memory"] = ours["gigabytes"] / other["gigabytes"]
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)
