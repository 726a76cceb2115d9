"""Write the model card of a run: data, licence, scores, sparsity, failures, samples.

sparsecap card runs/flickr8k_95 --output=docs/flickr8k.md --data_dir=data/flickr8k_coco

Dev and test are captioned with the search of the run, the same for both, unless flags name another.
--config.data.licence=TEXT states the licence of the training data.
"""

from absl import app, flags

from sparsecap_jax.commands import search_flags
from sparsecap_jax.commands.cli import define_changes, run_main

OUTPUT = flags.DEFINE_string("output", None, "Page to write, Markdown.", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Same as --config.data.dir.")
CHANGES = define_changes("--config.data.name=coco")
SAMPLES = flags.DEFINE_integer("samples", 24, "Captions to show.", lower_bound=0)
search_flags.define()


def main(words: list[str]) -> None:
    """Parse flags and write the card."""
    if len(words) != 1:
        raise app.UsageError("expected one run")
    changes = [*CHANGES.value, *([f"data.dir={DATA_DIR.value}"] if DATA_DIR.value else [])]
    options = search_flags.given_options()
    from sparsecap_jax.commands.card import write_card

    write_card(words[0], OUTPUT.value, changes=changes, samples=SAMPLES.value, **options)


if __name__ == "__main__":
    run_main(main, words=True)
