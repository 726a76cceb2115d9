"""Train and score the many runs of an experiment; run the same command again to continue.

python launch/sweep.py --sweep=toy_pruners --workdir=runs/toy_pruners
python launch/sweep.py --sweep=toy_pruners --workdir=runs/toy_pruners --minutes=0    # only draw

WORKDIR then holds a run directory for each run, `results.csv` and the sweep's pictures. Rows of
docs/results/SWEEP.csv, or of --table, are not run again: another machine continues from there.
"""

from absl import flags

from sparsecap_jax.commands.cli import run_main

SWEEP = flags.DEFINE_string("sweep", None, "Name of the experiment.", required=True)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder to write to; a new one, or to continue.", required=True
)
SEEDS = flags.DEFINE_integer(
    "seeds", None, "Seeds for each setting, by default the sweep's.", lower_bound=1
)
ONLY = flags.DEFINE_string("only", "", "Pattern found in the names of the runs to take.")
MINUTES = flags.DEFINE_float("minutes", None, "Start no further run after so long.")
TABLE = flags.DEFINE_string(
    "table", None, "Finished runs: a CSV file, by default docs/results/SWEEP.csv if it is there."
)
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of the dataset, where it lies elsewhere.")


def main(words: list[str]) -> None:
    """Parse flags and run the sweep."""
    from sparsecap_jax.experiments.sweeps import committed_table, load_sweep, run_sweep

    sweep = load_sweep(SWEEP.value)
    run_sweep(
        sweep,
        WORKDIR.value,
        seeds=SEEDS.value,
        only=ONLY.value,
        minutes=MINUTES.value,
        known=committed_table(SWEEP.value) if TABLE.value is None else TABLE.value,
        data_dir=DATA_DIR.value,
    )


if __name__ == "__main__":
    run_main(main)
