"""Import a checkpoint of the PyTorch reference; nothing in it is executed.

python launch/convert.py --source=reference --input=CHECKPOINT.zip --output=runs/imported
"""

from absl import app, flags

from sparsecap_jax.cli import run_main

SOURCE = flags.DEFINE_enum("source", "reference", ["reference"], "Format of the input.")
INPUT = flags.DEFINE_string("input", None, "Folder or zip: config.json, *.pth, tokenizer/.")
OUTPUT = flags.DEFINE_string("output", None, "Run directory to write.")


def main(argv: list[str]) -> None:
    """Parse flags and convert."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    from sparsecap_jax.interop.convert import import_reference

    import_reference(INPUT.value, OUTPUT.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["input", "output"])
    run_main(main)
