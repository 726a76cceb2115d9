r"""Convert runs, and checkpoints of the PyTorch reference; nothing in a file is executed.

sparsecap convert --input=runs/demo/supermask --output=small.scap --weights=int8
sparsecap convert --input=runs/pruned --output=smaller.scap --compact
sparsecap convert --source=reference --input=CHECKPOINT.zip --output=runs/imported
sparsecap convert --target=reference --input=runs/demo/supermask --output=exported \
    --form=sparse
sparsecap convert --target=torch_prune --input=runs/demo/supermask --output=exported
sparsecap convert --target=safetensors --input=runs/demo/supermask --output=exported
"""

from absl import app, flags

from sparsecap_jax.commands.cli import refuse, run_main

TORCH = ["reference", "torch_prune", "safetensors"]
SOURCE = flags.DEFINE_enum("source", None, ["run", "reference"], "Format of the input.")
TARGET = flags.DEFINE_enum(
    "target",
    None,
    ["run", *TORCH],
    "Format of the output: a run; or for PyTorch, by the reference's names: its checkpoint, masks "
    "of torch.nn.utils.prune, or safetensors.",
)
INPUT = flags.DEFINE_string(
    "input",
    None,
    "Run directory, model file; or the reference's folder or zip: config.json, *.pth, tokenizer/.",
    required=True,
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Folder, or model file (*.scap), to write; it may not be in use.", required=True
)
WEIGHTS = flags.DEFINE_enum(
    "weights",
    "float32",
    ["float32", "float16", "int8", "npz", "npz_compact", "safetensors"],
    "Weights of a run: a model file with such values, or weights.npz or weights.safetensors.",
)
FORM = flags.DEFINE_enum(
    "form", "dense", ["dense", "sparse"], "Tensors of a reference checkpoint: dense or sparse COO."
)
MASKS = flags.DEFINE_enum(
    "masks",
    "applied",
    ["applied", "binary", "raw"],
    "Masks of a reference checkpoint, also as safetensors: multiplied in and left out; zeros and "
    "ones; as trained.",
)
COMPACT = flags.DEFINE_bool(
    "compact", False, "Take out the units of a run that pruning has left dead: a smaller model."
)
STEP = flags.DEFINE_string(
    "step", "best", "Weights of a run: best, last, or the step of a checkpoint."
)


def main(words: list[str]) -> None:
    """Parse flags and convert."""
    source, target = SOURCE.value or "run", TARGET.value or "run"
    if source == "reference" and target != "run":
        raise app.UsageError("expected a run as --source or as --target")
    if target != "run":
        refuse([WEIGHTS], "only with --target=run")
    if target != "run" or source != "run":
        refuse([COMPACT, STEP], "with a run as --source and as --target only")
    if target not in ("reference", "safetensors"):
        refuse([MASKS], "with --target=reference or safetensors only")
    if target != "reference":
        refuse([FORM], "with --target=reference only")
    from sparsecap_jax.commands.convert import convert_run, import_reference
    from sparsecap_jax.commands.reference_export import export_reference

    if source == "reference":
        import_reference(INPUT.value, OUTPUT.value, weights=WEIGHTS.value)
    elif target != "run":
        options = {"form": FORM.value, "masks": MASKS.value, "target": target}
        export_reference(INPUT.value, OUTPUT.value, **options)
    else:
        step = int(STEP.value) if STEP.value.isdecimal() else STEP.value
        options = {"weights": WEIGHTS.value, "compact": COMPACT.value, "step": step}
        convert_run(INPUT.value, OUTPUT.value, **options)


if __name__ == "__main__":
    run_main(main)
