"""Score a trained run, or any captions against any references.

python launch/evaluate.py --checkpoint=runs/demo/supermask --split=test --beam_size=5
python launch/evaluate.py --captions=captions.json --references=references.json \
    --output=scores.json

Captions: COCO results, `[{"image_id", "caption"}]`. References: a COCO annotation file, a Karpathy
split, or `{image id: [captions]}`.
"""

from absl import app, flags

from sparsecap_jax.commands import search_flags
from sparsecap_jax.commands.cli import run_main

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run directory to evaluate.")
SPLIT = flags.DEFINE_enum("split", "test", ["val", "test"], "Split of its dataset.")
CAPTIONS = flags.DEFINE_string("captions", None, "Captions to score instead.")
REFERENCES = flags.DEFINE_string("references", None, "Their references.")
OUTPUT = flags.DEFINE_string("output", None, "Scores file; with --checkpoint, a folder.")
search_flags.define()


def main(words: list[str]) -> None:
    """Parse flags and evaluate."""
    if CHECKPOINT.value:
        from sparsecap_jax.commands.evaluate import evaluate_run

        evaluate_run(
            CHECKPOINT.value, split=SPLIT.value, output=OUTPUT.value, **search_flags.given_options()
        )
        return
    if not (CAPTIONS.value and REFERENCES.value):
        raise app.UsageError("expected --checkpoint, or --captions and --references")
    from sparsecap_jax.evaluation.metrics import evaluate_caption_files

    scores = evaluate_caption_files(CAPTIONS.value, REFERENCES.value, OUTPUT.value)
    for name, value in scores.items():
        shown = f"{value:.4f}" if isinstance(value, float) else value
        print(f"{name:8s} {'not computed' if value is None else shown}")


if __name__ == "__main__":
    run_main(main)
