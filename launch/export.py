"""Write a captioner as ONNX, StableHLO or a web page, a folder that runs without this package.

sparsecap export --checkpoint=flickr8k-mini --format=onnx --output=exported
sparsecap export --checkpoint=runs/demo/supermask --format=stablehlo --output=exported
sparsecap export --checkpoint=flickr8k-mini --format=web --output=site

Flags of a search change that of the run, and with --search replace it (docs/search_options.md).
docs/export.md and docs/web.md say more.
"""

from absl import flags

from sparsecap_jax.commands import search_flags
from sparsecap_jax.commands.cli import run_main

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run, model file or name.", required=True)
FORMAT = flags.DEFINE_enum("format", "onnx", ["onnx", "stablehlo", "web"], "Format.")
OUTPUT = flags.DEFINE_string("output", None, "New or empty folder to write.", required=True)
FORMS = ["float32", "float16", "int8"]
WEIGHTS = flags.DEFINE_enum("weights", "float32", FORMS, "Values of the weights in ONNX.")
SPARSE = flags.DEFINE_bool("sparse", False, "Pruned weights as sparse initialisers of ONNX.")
EXTRACTOR = flags.DEFINE_enum(
    "extractor", "float16", ["", *FORMS], "Values of the extractor in ONNX; empty: leave it out."
)
ONNXRUNTIME_WEB = flags.DEFINE_string("onnxruntime_web", "", "Web: folder of the npm package.")
search_flags.define()


def main(words: list[str]) -> None:
    """Parse flags and export."""
    options = search_flags.given_options()
    from sparsecap_jax.commands.export import export

    flags_of = {"weights": WEIGHTS.value, "sparse": SPARSE.value, "extractor": EXTRACTOR.value}
    flags_of["onnxruntime_web"] = ONNXRUNTIME_WEB.value
    export(CHECKPOINT.value, OUTPUT.value, FORMAT.value, **flags_of, **options)


if __name__ == "__main__":
    run_main(main)
