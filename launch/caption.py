"""Caption the images whose features lie in a folder; run the same command again to continue.

python launch/caption.py --checkpoint=runs/demo/supermask --features=DIR --beam_size=5 \
    --output=captions.jsonl

DIR holds `cocobu_att/ID.npy` and, by need of the model, `cocobu_fc/` and `cocobu_box_relative/`.
Several run directories between commas make an ensemble.
"""

from absl import app, flags

from sparsecap_jax import search_flags
from sparsecap_jax.cli import run_main

CHECKPOINT = flags.DEFINE_list("checkpoint", None, "Run directories of trained models.")
FEATURES = flags.DEFINE_string("features", None, "Folder that holds cocobu_att/ (or bu/).")
OUTPUT = flags.DEFINE_string("output", None, "File to write, .jsonl or .json.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 50, "Images decoded at a time.", lower_bound=1)
CANDIDATES = flags.DEFINE_bool("candidates", False, "Write all captions of the search as well.")
ATTENTION = flags.DEFINE_bool("attention", False, "Write the regions' weights for each word.")
search_flags.define()
flags.adopt_module_key_flags(search_flags)


def main(argv: list[str]) -> None:
    """Parse flags and caption."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    from sparsecap_jax.caption import caption_folder

    caption_folder(
        CHECKPOINT.value,
        FEATURES.value,
        OUTPUT.value,
        batch_size=BATCH_SIZE.value,
        candidates=CANDIDATES.value,
        attention=ATTENTION.value,
        **search_flags.given_options(),
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint", "features", "output"])
    run_main(main)
