"""Import or export checkpoints of the PyTorch reference; nothing in them is executed.

python launch/convert.py --source=reference --input=CHECKPOINT.zip --output=runs/imported
python launch/convert.py --target=reference --input=runs/demo/supermask --output=exported \
    --form=sparse
"""

from absl import app, flags

from sparsecap_jax.commands.cli import run_main

FORMATS = ["run", "reference"]
SOURCE = flags.DEFINE_enum("source", None, FORMATS, "Format of the input.")
TARGET = flags.DEFINE_enum("target", None, FORMATS, "Format of the output.")
INPUT = flags.DEFINE_string(
    "input",
    None,
    "Run directory; or the reference's folder or zip: config.json, *.pth, tokenizer/.",
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write; it may not be in use.")
FORM = flags.DEFINE_enum(
    "form", "dense", ["dense", "sparse"], "Tensors of a reference checkpoint: dense or sparse COO."
)
MASKS = flags.DEFINE_enum(
    "masks",
    "applied",
    ["applied", "binary", "raw"],
    "Masks of a reference checkpoint: multiplied in and left out; zeros and ones; as trained.",
)


def main(argv: list[str]) -> None:
    """Parse flags and convert."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    source, target = SOURCE.value or "run", TARGET.value or "run"
    if (source == "reference") == (target == "reference"):
        raise app.UsageError("expected either --source=reference or --target=reference")
    if source == "reference":
        from sparsecap_jax.commands.import_reference import import_reference

        import_reference(INPUT.value, OUTPUT.value)
    else:
        from sparsecap_jax.commands.export_reference import export_reference

        export_reference(INPUT.value, OUTPUT.value, form=FORM.value, masks=MASKS.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["input", "output"])
    run_main(main)
