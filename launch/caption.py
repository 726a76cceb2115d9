"""Caption the images whose features lie in a folder.

python launch/caption.py --checkpoint=runs/demo/supermask --features=DIR --beam_size=5 \
    --output=captions.json

DIR holds `cocobu_att/ID.npy` and, by need of the model, `cocobu_fc/` and `cocobu_box_relative/`.
"""

from absl import app, flags

from sparsecap_jax.cli import run_main

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run directory of a trained model.")
FEATURES = flags.DEFINE_string("features", None, "Folder that holds cocobu_att/ (or bu/).")
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
BEAM_SIZE = flags.DEFINE_integer("beam_size", 5, "Beams; 1 is greedy search.", lower_bound=1)
LENGTH_PENALTY = flags.DEFINE_string("length_penalty", "", "wu_<alpha> or avg_0.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 50, "Images decoded at a time.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Parse flags and caption."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    from sparsecap_jax.caption import caption_folder

    caption_folder(
        CHECKPOINT.value,
        FEATURES.value,
        OUTPUT.value,
        beam_size=BEAM_SIZE.value,
        length_penalty=LENGTH_PENALTY.value,
        batch_size=BATCH_SIZE.value,
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint", "features", "output"])
    run_main(main)
