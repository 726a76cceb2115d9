"""Time of the metrics along with pycocoevalcap's, in turns on the same captions.

python benchmarks/metrics.py --captions=captions.json --references=references.json --rounds=3

Each turn is a process of its own; its time runs from captions in memory to all scores, imports and
start of Java included. CPU time is that of Python and Java together. All scores of all images are
compared, and have to be equal to the last digit. `--fast` leaves out METEOR. Wall time means
something where nothing else runs; `taskset -c 0,1` for two cores.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

CAPTIONS = flags.DEFINE_string("captions", None, "COCO results.", required=True)
REFERENCES = flags.DEFINE_string("references", None, "References.", required=True)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each.", lower_bound=1)
FAST = flags.DEFINE_bool("fast", False, "BLEU, ROUGE-L and CIDEr alone.")
TURN = flags.DEFINE_string("turn", None, "Internal: what a turn runs.")
RESULT = flags.DEFINE_string("result", None, "Internal: its file.")


def ours(captions, references):
    """Scores of this package, and of each image."""
    from sparsecap_jax.evaluation.metrics import FAST_METRICS, METRICS, score_captions

    metrics = FAST_METRICS if FAST.value else METRICS
    scores = score_captions(captions, references, metrics, per_image=True)
    return scores, list(scores.pop("per_image").values())


def toolkit(captions, references):
    """Scores of pycocoevalcap, and of each image."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    judges = tokenizer.tokenize({k: [{"caption": t} for t in v] for k, v in references.items()})
    results = tokenizer.tokenize({k: [{"caption": t}] for k, t in captions.items()})
    scores, each = {}, [{} for _ in captions]
    bleus = [f"Bleu_{n}" for n in range(1, 5)]
    scorers = [(Bleu(4), bleus), (Rouge(), "ROUGE_L"), (Cider(), "CIDEr")]
    for scorer, names in scorers if FAST.value else [*scorers, (Meteor(), "METEOR")]:
        total, rows = scorer.compute_score(judges, results)
        columns = zip(names, total, rows, strict=True) if names == bleus else [(names, total, rows)]
        for name, number, column in columns:
            scores[name] = float(number)
            for row, value in zip(each, column, strict=True):
                row[name] = float(value)
    return scores, each


def turn() -> None:
    """Score once, in a process of its own, and write times and scores."""
    from sparsecap_jax.evaluation.caption_files import load_captions, load_references

    captions = load_captions(CAPTIONS.value)
    references = load_references(REFERENCES.value)
    references = {key: references[key] for key in captions}
    start, cpu = time.perf_counter(), sum(os.times()[:4])
    scores, each = {"ours": ours, "toolkit": toolkit}[TURN.value](captions, references)
    result = {"seconds": [time.perf_counter() - start, sum(os.times()[:4]) - cpu]}
    result |= {"scores": scores, "each": each}
    pathlib.Path(RESULT.value).write_text(json.dumps(result), encoding="utf-8")


def main(_) -> None:
    """Take turns and print times, their ratio, and whether the scores are equal."""
    if TURN.value:
        turn()
        return
    seconds, results = {"toolkit": [], "ours": []}, {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS.value):
            for name, times in seconds.items():
                path = pathlib.Path(folder, name)
                command = [sys.executable, *sys.argv, f"--turn={name}", f"--result={path}"]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                result = json.loads(path.read_text(encoding="utf-8"))
                times.append(result.pop("seconds"))
                results[name] = result
                print("{:8s} {:6.2f} s, {:6.2f} s of CPU".format(name, *times[-1]), flush=True)
    for at, kind in enumerate(("wall time", "CPU time")):
        medians = {name: statistics.median(t[at] for t in ts) for name, ts in seconds.items()}
        one, two = medians["ours"], medians["toolkit"]
        print(f"median {kind}: {one:.2f} s, pycocoevalcap {two:.2f} s, ratio {one / two:.2f}")
    ours_, theirs = results["ours"], results["toolkit"]
    same = all(ours_["scores"][k] == v for k, v in theirs["scores"].items())
    rows = zip(ours_["each"], theirs["each"], strict=True)
    same = same and all(one[k] == v for one, other in rows for k, v in other.items())
    print("scores, all images: " + ("equal to the last digit" if same else "NOT equal"))
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    app.run(main)
