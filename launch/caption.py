r"""Caption photos, or the images whose features lie in a folder.

sparsecap caption --example
sparsecap caption photo.jpg more/ "others/**/*.webp" --output=captions.json
sparsecap caption --checkpoint=runs/demo/supermask --features=DIR --beam_size=5 \
    --output=captions.jsonl

Photos are files, folders or patterns (docs/photos.md); they are captioned by the checkpoint
`flickr8k` of the package where no other is given. --example takes three photos that come with
the package. DIR is a file or folder of features of any
format of docs/data.md. Several run directories between commas make an ensemble. With an output, run
the same command again to continue; one that is finished is replaced with --overwrite alone.
"""

from absl import app, flags

from sparsecap_jax.commands import search_flags
from sparsecap_jax.commands.cli import refuse, run_main

CHECKPOINT = flags.DEFINE_list("checkpoint", None, "Run directories, model files, or names.")
EXAMPLE = flags.DEFINE_bool("example", False, "Caption three photos of the package.")
FEATURES = flags.DEFINE_string("features", None, "File or folder of features (docs/data.md).")
IMAGE_SIZES = flags.DEFINE_string("image_sizes", "", "Image sizes, for boxes in pixels.")
OUTPUT = flags.DEFINE_string("output", None, "File to write, .jsonl or .json.")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images at a time, by default 50, or 16 photos.", lower_bound=1
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an output that is finished.")
STRICT = flags.DEFINE_bool("strict", False, "Stop at the first photo that cannot be read.")
CANDIDATES = flags.DEFINE_bool("candidates", False, "Write all captions of the search as well.")
ATTENTION = flags.DEFINE_bool("attention", False, "Write the regions' weights for each word.")
BACKEND = flags.DEFINE_enum(
    "backend", "auto", ["auto", "sparse", "xla"], "Runtime of the model (docs/sparse_runtime.md)."
)
search_flags.define()


def main(words: list[str]) -> None:
    """Parse flags and caption."""
    photos, options = words, search_flags.given_options()
    if EXAMPLE.value:
        from sparsecap_jax.photos.images import EXAMPLES

        photos = [*photos, EXAMPLES]
    if bool(photos) == bool(FEATURES.value):
        raise app.UsageError("expected photos, --example or --features")
    if not OUTPUT.value:
        refuse([CANDIDATES, ATTENTION, OVERWRITE], "with --output only")
    refuse([IMAGE_SIZES] if photos else [STRICT], "with --features" if photos else "with photos")
    options |= {"candidates": CANDIDATES.value, "attention": ATTENTION.value}
    options |= {"backend": BACKEND.value, "overwrite": OVERWRITE.value}
    if BATCH_SIZE.value:
        options["batch_size"] = BATCH_SIZE.value
    from sparsecap_jax.commands.caption import caption_folder, caption_photos

    if photos:
        checkpoint = CHECKPOINT.value or ["flickr8k"]
        caption_photos(checkpoint, photos, OUTPUT.value, strict=STRICT.value, **options)
        return
    if not (CHECKPOINT.value and OUTPUT.value):
        raise app.UsageError("--features needs --checkpoint and --output")
    options["image_sizes"] = IMAGE_SIZES.value
    caption_folder(CHECKPOINT.value, FEATURES.value, OUTPUT.value, **options)


if __name__ == "__main__":
    run_main(main, words=True)
