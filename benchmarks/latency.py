"""How long one waits for a caption: a command's first, and those of a loaded model.

    python benchmarks/latency.py --output=latency.json

Commands run with nothing cached but files of the disk, sparse runtime and XLA in turn. Captions
from features run on the sparse runtime in a process for each search: the first `--captions` that it
makes, and as many after `--later` others, by when small models have changed their kernels
(sparsecap_jax/sparse/matrices.py). Photos are those of the package. Nothing else should run on the
machine. Results are in docs/results/sparse_runtime.md.
"""

import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import processes
from absl import app, flags

CHECKPOINT = flags.DEFINE_string("checkpoint", "flickr8k", "Run, model file, or name.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Runs of each command.", lower_bound=1)
CAPTIONS = flags.DEFINE_integer("captions", 24, "Captions timed in each state.", lower_bound=1)
LATER = flags.DEFINE_integer("later", 100, "Captions in between.", lower_bound=0)
OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
ONE = flags.DEFINE_string("one", None, "Used by the script itself: a search, as JSON.")

CAPTION = pathlib.Path(__file__).parents[1] / "launch/caption.py"
SEARCHES = {
    "greedy": {"search": "greedy"},
    "three beams": {"search": "beam", "beam_size": 3},
    "five beams": {"search": "beam", "beam_size": 5},
    "its own search": {},
    "its own search, 20 beams, consensus of 100": {"beam_size": 20, "consensus": 100},
}


def time_commands():
    """Seconds and CPU seconds of the runs of each command, by turns."""
    from sparsecap_jax.photos.images import EXAMPLES

    photo = str(min(EXAMPLES.glob("*.jpg")))
    commands = {
        "sparse runtime, one photo": [photo, "--backend=sparse"],
        "sparse runtime, three photos": ["--example", "--backend=sparse"],
        "XLA, one photo": [photo, "--backend=xla"],
    }
    found = {name: [] for name in commands}
    for _ in range(REPEATS.value):
        for name, words in commands.items():
            found[name].append(_timed([str(CAPTION), *words, f"--checkpoint={CHECKPOINT.value}"]))
    return found


def _timed(words):
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "NUMBA_CACHE_DIR": cache}
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, *words], env=env, check=True, capture_output=True)
        seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu": cpu}


def time_captions(search):
    """Print the milliseconds of captions, first ones and later ones."""
    from sparsecap_jax.captioner import Captioner
    from sparsecap_jax.photos.extractors import open_for
    from sparsecap_jax.photos.images import EXAMPLES

    captioner = Captioner.load(CHECKPOINT.value, backend="sparse")
    photos = [open_for(captioner.extractor, path) for path in sorted(EXAMPLES.glob("*.jpg"))]
    images = [image.features for image in captioner.extractor(photos)]
    if "search" not in search:  # as photos are captioned
        search = {**captioner.search, **search}

    def captions(count):
        found = []
        for number in range(count):
            start = time.perf_counter()
            captioner.caption(images[number % len(images)], **search)
            found.append(1e3 * (time.perf_counter() - start))
        return found

    captions(1)
    first = captions(CAPTIONS.value)
    captions(LATER.value)
    print(json.dumps({"first": first, "later": captions(CAPTIONS.value)}))


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if ONE.value:
        time_captions(json.loads(ONE.value))
        return
    found = {"commands": time_commands(), "captions": {}}
    print("| command | s | CPU s |\n| --- | --: | --: |")
    for name, runs in found["commands"].items():
        spans = [
            f"{min(values):.2f} to {max(values):.2f}"
            for values in ([run[key] for run in runs] for key in ("seconds", "cpu"))
        ]
        print(f"| {name} | {spans[0]} | {spans[1]} |")
    print("\n| search | first captions, ms | later ones, ms |\n| --- | --: | --: |")
    for name, search in SEARCHES.items():
        words = [
            f"--{flag}={flags.FLAGS[flag].value}" for flag in ("checkpoint", "captions", "later")
        ]
        one = processes.run_json([sys.executable, __file__, f"--one={json.dumps(search)}", *words])
        found["captions"][name] = one
        print(f"| {name} | {statistics.median(one['first']):.1f} | ", end="")
        print(f"{statistics.median(one['later']):.1f} |", flush=True)
    if OUTPUT.value:
        pathlib.Path(OUTPUT.value).write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
