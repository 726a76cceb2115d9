r"""Prune a trained captioner at once, without any training.

sparsecap prune --checkpoint=runs/demo/dense --method=mag_blind --sparsity=0.5 \
    --output=pruned.scap
sparsecap prune --checkpoint=runs/demo/dense --method=sparsegpt --sparsity=0.5 \
    --batches=16 --output=runs/pruned
sparsecap prune --checkpoint=runs/demo/dense --method=wanda --sparsity=0.5 \
    --sparsity_type=2:4 --exclude=embed/embedding --output=runs/pruned

wanda and sparsegpt take the first batches of training, of the run's dataset unless flags name
another (docs/pruning.md). The output captions, is scored, and is trained on as any other run.
"""

from absl import flags

from sparsecap_jax.commands.cli import define_changes, refuse, run_main

MAGNITUDES, CALIBRATED = ["mag_blind", "mag_uniform", "mag_dist"], ["wanda", "sparsegpt"]
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run, model file or name.", required=True)
METHOD = flags.DEFINE_enum(
    "method",
    None,
    [*MAGNITUDES, *CALIBRATED],
    "Weights that go: smallest magnitudes of all, of each tensor, or after standardising; or layer "
    "by layer, from calibration batches.",
    required=True,
)
SPARSITY = flags.DEFINE_float(
    "sparsity", None, "Fraction of the prunable weights that goes.", required=True
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Folder, or model file (*.scap), to write.", short_name="out", required=True
)
OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace a model file, or a run without checkpoints."
)
SPARSITY_TYPE = flags.DEFINE_string(
    "sparsity_type", "unstructured", "Weights that go together, such as 2:4 along the inputs."
)
EXCLUDE = flags.DEFINE_multi_string("exclude", [], "Pattern of tensors that stay dense; repeated.")
BATCHES = flags.DEFINE_integer("batches", 8, "Calibration batches.", lower_bound=1)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Same as --config.data.dir.")
FEATURES = flags.DEFINE_string("features", None, "Same as --config.data.features.")
CHANGES = define_changes("--config.data.batch_size=32")


def main(words: list[str]) -> None:
    """Parse flags and prune."""
    if METHOD.value in MAGNITUDES:
        refuse([BATCHES, DATA_DIR, FEATURES, CHANGES], "with --method=wanda or sparsegpt only")
    shorthands = {"data.dir": DATA_DIR.value, "data.features": FEATURES.value}
    given = [f"{path}={value}" for path, value in shorthands.items() if value is not None]
    from sparsecap_jax.commands.prune import prune_captioner

    prune_captioner(
        CHECKPOINT.value,
        OUTPUT.value,
        METHOD.value,
        SPARSITY.value,
        sparsity_type=SPARSITY_TYPE.value,
        exclude=EXCLUDE.value,
        batches=BATCHES.value,
        changes=[*CHANGES.value, *given],
        overwrite=OVERWRITE.value,
    )


if __name__ == "__main__":
    run_main(main)
