"""Report how sparse a finished run is, or collect any number of models in one table.

python launch/report.py runs/demo/supermask
python launch/report.py runs/demo runs/imported model.scap flickr8k-mini --output=report
python launch/report.py runs/up_down runs/ort --published

One finished run: a table of its tensors and a picture, in RUN/sparsity. Several runs, or --output:
table.csv, table.md and table.tex with scores, sparsity and sizes, and the charts of the papers.
Runs may be finished or not, model files, folders of results of the PyTorch reference, or folders
that hold any of these (docs/metrics.md).
"""

from absl import app, flags

from sparsecap_jax.commands.cli import run_main

OUTPUT = flags.DEFINE_string("output", None, "Folder for table and charts; by default report.")
PUBLISHED = flags.DEFINE_bool("published", False, "Draw the papers' results behind the charts.")


def main(words: list[str]) -> None:
    """Parse arguments and report."""
    if not words:
        raise app.UsageError("expected runs, model files, or folders that hold some")
    from sparsecap_jax.commands.report import report_runs

    report_runs(words, OUTPUT.value, published=PUBLISHED.value)


if __name__ == "__main__":
    run_main(main, words=True)
