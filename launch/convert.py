r"""Convert runs, and checkpoints of the PyTorch reference; nothing in a file is executed.

python launch/convert.py --input=runs/demo/supermask --output=small.scap --weights=int8
python launch/convert.py --source=reference --input=CHECKPOINT.zip --output=runs/imported
python launch/convert.py --target=reference --input=runs/demo/supermask --output=exported \
    --form=sparse
"""

from absl import app, flags

from sparsecap_jax.commands.cli import refuse, run_main

FORMATS = ["run", "reference"]
SOURCE = flags.DEFINE_enum("source", None, FORMATS, "Format of the input.")
TARGET = flags.DEFINE_enum("target", None, FORMATS, "Format of the output.")
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
    "Masks of a reference checkpoint: multiplied in and left out; zeros and ones; as trained.",
)


def main(words: list[str]) -> None:
    """Parse flags and convert."""
    source, target = SOURCE.value or "run", TARGET.value or "run"
    if source == target == "reference":
        raise app.UsageError("expected a run as --source or as --target")
    if target == "reference":
        refuse([WEIGHTS], "without --target=reference only")
    else:
        refuse([FORM, MASKS], "with --target=reference only")
    from sparsecap_jax.commands.convert import convert_run, export_reference, import_reference

    if source == "reference":
        import_reference(INPUT.value, OUTPUT.value, weights=WEIGHTS.value)
    elif target == "reference":
        export_reference(INPUT.value, OUTPUT.value, form=FORM.value, masks=MASKS.value)
    else:
        convert_run(INPUT.value, OUTPUT.value, weights=WEIGHTS.value)


if __name__ == "__main__":
    run_main(main)
