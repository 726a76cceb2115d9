"""Score trained runs, or any captions against any references.

python launch/evaluate.py --checkpoint=runs/demo/supermask --split=test --beam_size=5
python launch/evaluate.py --checkpoint=runs/imported --data_dir=coco --attention
python launch/evaluate.py --checkpoint=runs/a --checkpoint=runs/b --step=last
python launch/evaluate.py --checkpoint=runs/a --checkpoint=runs/b --ensemble --output=scores
python launch/evaluate.py --captions=captions.json --references=references.json \
    --output=scores.json

The dataset is that of the run, unless flags name another: --data_dir, --features, or any
--config.data.FIELD=VALUE. Captions: COCO results, `[{"image_id", "caption"}]`. References: a COCO
annotation file, a Karpathy split, or `{image id: [captions]}`.
"""

from absl import app, flags

from sparsecap_jax.commands import search_flags
from sparsecap_jax.commands.cli import define_changes, run_main

CHECKPOINT = flags.DEFINE_multi_string(
    "checkpoint", [], "Run directory or name; repeated, or between commas, a row for each."
)
ENSEMBLE = flags.DEFINE_bool("ensemble", False, "Score all checkpoints as one; needs --output.")
STEP = flags.DEFINE_string("step", "best", "Weights: best, last, or the step of a checkpoint.")
SPLIT = flags.DEFINE_enum("split", "test", ["val", "test"], "Split of the dataset.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Same as --config.data.dir.")
FEATURES = flags.DEFINE_string("features", None, "Same as --config.data.features.")
CHANGES = define_changes("--config.data.name=coco")
ATTENTION = flags.DEFINE_bool("attention", False, "Write the regions' weights for each word.")
CAPTIONS = flags.DEFINE_string("captions", None, "Captions to score instead.")
REFERENCES = flags.DEFINE_string("references", None, "Their references.")
OUTPUT = flags.DEFINE_string("output", None, "Scores file; with --checkpoint, a folder.")
TOKENIZER = flags.DEFINE_enum(
    "tokenizer",
    "",
    ["", "auto", "java", "python", "unicode", "none"],
    "Tokenizer of the scores (docs/metrics.md); unicode for Chinese and Japanese.",
)
BACKEND = flags.DEFINE_enum(
    "backend", "xla", ["auto", "sparse", "xla"], "Runtime of the model (docs/sparse_runtime.md)."
)
search_flags.define()


def main(words: list[str]) -> None:
    """Parse flags and evaluate."""
    checkpoints = [name for value in CHECKPOINT.value for name in value.split(",") if name]
    if checkpoints:
        evaluate_checkpoints(checkpoints)
        return
    if not (CAPTIONS.value and REFERENCES.value):
        raise app.UsageError("expected --checkpoint, or --captions and --references")
    from sparsecap_jax.evaluation.metrics import evaluate_caption_files

    scores = evaluate_caption_files(
        CAPTIONS.value, REFERENCES.value, OUTPUT.value, tokenizer=TOKENIZER.value or "auto"
    )
    for name, value in scores.items():
        shown = f"{value:.4f}" if isinstance(value, float) else value
        print(f"{name:8s} {'not computed' if value is None else shown}")


def evaluate_checkpoints(checkpoints: list[str]) -> None:
    """Score runs on a split."""
    if CAPTIONS.value or REFERENCES.value:
        raise app.UsageError("expected --checkpoint, or --captions and --references; not both")
    if ENSEMBLE.value and (len(checkpoints) < 2 or not OUTPUT.value):
        raise app.UsageError("--ensemble needs several checkpoints, and a folder --output")
    shorthands = {"data.dir": DATA_DIR.value, "data.features": FEATURES.value}
    given = [f"{path}={value}" for path, value in shorthands.items() if value is not None]
    options = {
        "split": SPLIT.value,
        "step": int(STEP.value) if STEP.value.isdecimal() else STEP.value,
        "output": OUTPUT.value,
        "changes": [*CHANGES.value, *given],
        "attention": ATTENTION.value,
        "backend": BACKEND.value,
        "tokenizer": TOKENIZER.value,
        **search_flags.given_options(),
    }
    from sparsecap_jax.commands.evaluate import evaluate_run, evaluate_runs

    if len(checkpoints) > 1 and not ENSEMBLE.value:
        evaluate_runs(checkpoints, **options)
    else:
        evaluate_run(checkpoints if ENSEMBLE.value else checkpoints[0], **options)


if __name__ == "__main__":
    run_main(main)
