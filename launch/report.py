"""Report how sparse a finished run is: a table, a CSV file and a picture.

python launch/report.py runs/demo/supermask
"""

from absl import app

from sparsecap_jax.commands.cli import run_main


def main(words: list[str]) -> None:
    """Parse arguments and report."""
    if len(words) != 1:
        raise app.UsageError("expected one run directory")
    from sparsecap_jax.commands.report import report_run

    report_run(words[0])


if __name__ == "__main__":
    run_main(main, words=True)
