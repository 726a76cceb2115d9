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
    required=True,
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Folder to write; it may not be in use.", required=True
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
    if (source == "reference") == (target == "reference"):
        raise app.UsageError("expected either --source=reference or --target=reference")
    from sparsecap_jax.commands.convert import export_reference, import_reference

    if source == "reference":
        import_reference(INPUT.value, OUTPUT.value)
    else:
        export_reference(INPUT.value, OUTPUT.value, form=FORM.value, masks=MASKS.value)


if __name__ == "__main__":
    run_main(main)
