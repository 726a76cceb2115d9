"""Report how sparse a finished run is, collect any number of models in a table, or show captions.

sparsecap report runs/demo/supermask
sparsecap report runs/demo runs/imported model.scap flickr8k-mini --output=report
sparsecap report runs/up_down runs/ort --published
sparsecap report --html=report.html runs/demo/dense runs/demo/supermask

One finished run: a table of its tensors and a picture, in RUN/sparsity. Several runs, or --output:
table.csv, table.md and table.tex with scores, sparsity and sizes, and the charts of the papers.
Runs may be finished or not, model files, folders of results of the PyTorch reference, or folders
that hold any of these (docs/reports.md). --html writes one page with the captions of any number of
runs, folders of results or files of captions, next to images, references and scores
(docs/explorer.md).
"""

from absl import app, flags

from sparsecap_jax.commands.cli import define_changes, refuse, run_main

HTML = flags.DEFINE_string("html", None, "Page of captions to write.")
REFERENCES = flags.DEFINE_string("references", "", "References of the page; else the dataset's.")
IMAGES = flags.DEFINE_string("images", "", "Folder of its pictures; else the dataset's.")
LINK_IMAGES = flags.DEFINE_bool("link_images", False, "Name pictures by path, without copies.")
GROUPS = flags.DEFINE_string("groups", "", "JSON file {image id: group} to filter by.")
CHANGES = define_changes("--config.data.dir=FOLDER")

OUTPUT = flags.DEFINE_string("output", None, "Folder for table and charts; by default report.")
PUBLISHED = flags.DEFINE_bool("published", False, "Draw the papers' results behind the charts.")


def main(words: list[str]) -> None:
    """Parse arguments and report."""
    if not words:
        raise app.UsageError("expected runs, model files, or folders that hold some")
    if HTML.value:
        refuse([OUTPUT, PUBLISHED], "without --html only")
        from sparsecap_jax.commands.explorer import write_explorer

        write_explorer(
            words,
            HTML.value,
            references=REFERENCES.value,
            images=IMAGES.value,
            link_images=LINK_IMAGES.value,
            groups=GROUPS.value,
            changes=CHANGES.value,
        )
        return
    refuse([REFERENCES, IMAGES, LINK_IMAGES, GROUPS, CHANGES], "with --html only")
    from sparsecap_jax.commands.report import report_runs

    report_runs(words, OUTPUT.value, published=PUBLISHED.value)


if __name__ == "__main__":
    run_main(main, words=True)
