r"""Score trained runs, or any captions against any references.

sparsecap evaluate --checkpoint=runs/demo/supermask --split=test --beam_size=5
sparsecap evaluate --checkpoint=runs/imported --data_dir=coco --attention
sparsecap evaluate --checkpoint=runs/a --checkpoint=runs/b --step=last
sparsecap evaluate --checkpoint=runs/a --checkpoint=runs/b --ensemble --output=scores
sparsecap evaluate --captions=captions.json --references=references.json \
    --output=scores.json
sparsecap evaluate --caption_sets=samples.jsonl --references=references.json
sparsecap evaluate --compare runs/a runs/b captions.json --output=comparison

The dataset is that of the run, unless flags name another: --data_dir, --features, or any
--config.data.FIELD=VALUE. Captions: COCO results, `[{"image_id", "caption"}]`. References: a COCO
annotation file, a Karpathy split, or `{image id: [captions]}`. --compare takes runs, folders of
results and files of captions; seeds of one recipe (`.../seed_0`) are pooled.
"""

from absl import app, flags

from sparsecap_jax.commands import process_flags, search_flags
from sparsecap_jax.commands.cli import define_changes, refuse, run_main

CHECKPOINT = flags.DEFINE_multi_string(
    "checkpoint",
    [],
    "Run, model file or name; repeated, or between commas, a row for each.",
)
ENSEMBLE = flags.DEFINE_bool("ensemble", False, "Score all checkpoints as one; needs --output.")
STEP = flags.DEFINE_string("step", "best", "Weights: best, last, or the step of a checkpoint.")
SPLIT = flags.DEFINE_enum("split", "test", ["val", "test"], "Split of the dataset.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Same as --config.data.dir.")
FEATURES = flags.DEFINE_string("features", None, "Same as --config.data.features.")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Same as --config.data.eval_batch_size.", lower_bound=1
)
CHANGES = define_changes("--config.data.name=coco")
ATTENTION = flags.DEFINE_bool(
    "attention",
    None,
    "Write the regions' weights for each word; by default where they are there.",
)
CAPTIONS = flags.DEFINE_string("captions", None, "Captions to score instead.")
REFERENCES = flags.DEFINE_string("references", None, "Their references.")
OUTPUT = flags.DEFINE_string("output", None, "Scores file; with --checkpoint, a folder.")
TOKENIZER = flags.DEFINE_enum(
    "tokenizer",
    "",
    ["", "auto", "java", "python", "unicode", "none"],
    "Tokenizer of the scores (docs/metrics.md); unicode for Chinese and Japanese.",
)
COMPARE = flags.DEFINE_multi_string(
    "compare", [], "Runs, folders or files of captions to compare; others may follow it."
)
GROUPS = flags.DEFINE_string("groups", "", "JSON file {image id: group}: scores of each group.")
CIDER_DF = flags.DEFINE_string(
    "cider_df",
    "",
    "CIDEr's document frequencies, of `sparsecap prepare_data df`; else of the references.",
)
SPICE_JARS = flags.DEFINE_string("spice_jars", "", "Folder of CoreNLP's jars, for SPICE.")
CAPTION_SETS = flags.DEFINE_string(
    "caption_sets", None, "File of several captions an image: reports how much they differ."
)
TRAINING = flags.DEFINE_string("training", "", "Training captions: counts copies in --captions.")
BACKEND = flags.DEFINE_enum(
    "backend", "xla", ["auto", "sparse", "xla"], "Runtime of the model (docs/sparse_runtime.md)."
)
search_flags.define()
OF_RUNS = (ENSEMBLE, STEP, SPLIT, DATA_DIR, FEATURES, BATCH_SIZE, CHANGES, ATTENTION, BACKEND)


def main(words: list[str]) -> None:
    """Parse flags and evaluate."""
    if COMPARE.value:
        compare([*COMPARE.value, *words])
        return
    if words:
        raise app.UsageError(f"unexpected arguments: {' '.join(words)}")
    checkpoints = [name for value in CHECKPOINT.value for name in value.split(",") if name]
    if checkpoints:
        evaluate_checkpoints(checkpoints)
        return
    of_search = [flags.FLAGS[name] for name in search_flags.OPTIONS]
    refuse([*OF_RUNS, *of_search, *process_flags.ALL], "with --checkpoint only")
    if CAPTION_SETS.value and REFERENCES.value:
        of_captions = [CAPTIONS, GROUPS, CIDER_DF, SPICE_JARS, TRAINING]
        refuse(of_captions, "without --caption_sets only")
        from sparsecap_jax.evaluation.metrics import evaluate_caption_sets

        paths = CAPTION_SETS.value, REFERENCES.value, OUTPUT.value
        figures = evaluate_caption_sets(*paths, tokenizer=TOKENIZER.value or "auto")
        for name, value in figures.items():
            print(f"{name:10s} {value:.4g}")
        return
    if not (CAPTIONS.value and REFERENCES.value):
        raise app.UsageError("expected --checkpoint, or --captions and --references")
    from sparsecap_jax.evaluation.metrics import (
        ALL_METRICS,
        evaluate_caption_files,
        more_lines,
    )

    scores = evaluate_caption_files(
        CAPTIONS.value,
        REFERENCES.value,
        OUTPUT.value,
        tokenizer=TOKENIZER.value or "auto",
        training=TRAINING.value,
        **_extras(),
    )
    for name in [name for name in scores if name in (*ALL_METRICS, "images")]:
        value = scores[name]
        shown = f"{value:.4f}" if isinstance(value, float) else value
        print(f"{name:8s} {'not computed' if value is None else shown}")
    print(*more_lines(scores), sep="\n")


def _extras() -> dict[str, str]:
    """Return options of scores that runs and files share."""
    values = (CIDER_DF.value, SPICE_JARS.value, GROUPS.value)
    return dict(zip(("document_frequency", "spice_jars", "groups"), values, strict=True))


def _run_options() -> dict[str, object]:
    """Return options of the evaluation of runs."""
    shorthands = {"data.dir": DATA_DIR.value, "data.features": FEATURES.value}
    shorthands["data.eval_batch_size"] = BATCH_SIZE.value
    given = [f"{path}={value}" for path, value in shorthands.items() if value is not None]
    return {
        "split": SPLIT.value,
        "step": int(STEP.value) if STEP.value.isdecimal() else STEP.value,
        "changes": [*CHANGES.value, *given],
        "attention": ATTENTION.value,
        "backend": BACKEND.value,
        "tokenizer": TOKENIZER.value,
        **search_flags.given_options(),
    }


def compare(sources: list[str]) -> None:
    """Compare captions of runs, folders and files."""
    if CHECKPOINT.value or CAPTIONS.value:
        raise app.UsageError("expected --compare, --checkpoint or --captions; one of them")
    refused = [ENSEMBLE, ATTENTION, GROUPS, TRAINING, CAPTION_SETS, *process_flags.ALL]
    refuse(refused, "without --compare only")
    from sparsecap_jax.commands.compare import compare_captions

    compare_captions(
        sources, references=REFERENCES.value, output=OUTPUT.value, **_run_options(), **_extras()
    )


def evaluate_checkpoints(checkpoints: list[str]) -> None:
    """Score runs on a split."""
    if CAPTIONS.value or REFERENCES.value:
        raise app.UsageError("expected --checkpoint, or --captions and --references; not both")
    refuse([CAPTION_SETS, TRAINING], "without --checkpoint only")
    if ENSEMBLE.value and (len(checkpoints) < 2 or not OUTPUT.value):
        raise app.UsageError("--ensemble needs several checkpoints, and a folder --output")
    options = {"output": OUTPUT.value, **_run_options(), **_extras()}
    from sparsecap_jax.commands.evaluate import evaluate_run
    from sparsecap_jax.commands.evaluate_table import evaluate_runs

    with process_flags.connected():
        if len(checkpoints) > 1 and not ENSEMBLE.value:
            evaluate_runs(checkpoints, **options)
        else:
            evaluate_run(checkpoints if ENSEMBLE.value else checkpoints[0], **options)


if __name__ == "__main__":
    run_main(main, words=True)
