"""Report how sparse a finished run is: a table, a CSV file and a picture; or show captions.

python launch/report.py runs/demo/supermask
python launch/report.py --html=report.html runs/demo/dense runs/demo/supermask

--html writes one page with the captions of any number of runs, folders of results or files of
captions, next to images, references and scores (docs/explorer.md).
"""

from absl import app, flags

from sparsecap_jax.commands.cli import define_changes, run_main

HTML = flags.DEFINE_string("html", None, "Page of captions to write.")
REFERENCES = flags.DEFINE_string("references", "", "References of the page; else the dataset's.")
IMAGES = flags.DEFINE_string("images", "", "Folder of its pictures; else the dataset's.")
LINK_IMAGES = flags.DEFINE_bool("link_images", False, "Name pictures by path, without copies.")
GROUPS = flags.DEFINE_string("groups", "", "JSON file {image id: group} to filter by.")
CHANGES = define_changes("--config.data.dir=FOLDER")


def main(words: list[str]) -> None:
    """Parse arguments and report."""
    if HTML.value:
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
    if len(words) != 1:
        raise app.UsageError("expected one run directory")
    from sparsecap_jax.commands.report import report_run

    report_run(words[0])


if __name__ == "__main__":
    run_main(main, words=True)
