"""Train and score the many runs of an experiment; run the same command again to continue.

sparsecap sweep --sweep=toy_pruners --workdir=runs/toy_pruners
sparsecap sweep --sweep=toy_pruners --workdir=runs/toy_pruners --minutes=0    # only draw
sparsecap sweep --sweep=coco_up_down --data_dir=DIR --workdir=runs/up_down --processes=4
sparsecap sweep --config=configs/toy.py:supermask --set=pruner.sparsity=0.8,0.95 --seeds=3 \
    --workdir=runs/grid
sparsecap sweep --grid=grid.py --workdir=runs/grid

WORKDIR then holds a run directory for each run, `results.csv` and the sweep's tables and pictures.
The same command in several processes, on one machine or on several that share WORKDIR, shares the
runs; a run of a process that died is continued. Rows of docs/results/SWEEP.csv, or of --table, are
not run again: another machine continues from there. docs/papers.md lists the tables of the papers.
"""

import sys

from absl import app, flags

from sparsecap_jax.commands.cli import run_main

SWEEP = flags.DEFINE_string("sweep", None, "Name of the experiment.")
CONFIG = flags.DEFINE_string("config", None, "Config of a grid, as FILE.py:ARGUMENTS.")
SET = flags.DEFINE_multi_string(
    "set", [], "Values of a field to combine with those of others, as SECTION.FIELD=VALUE,VALUE."
)
GRID = flags.DEFINE_string(
    "grid", None, "Python file whose get_grid() lists dicts of fields; it is run, as configs are."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder to write to; a new one, or to continue.", required=True
)
SEEDS = flags.DEFINE_integer(
    "seeds", None, "Seeds for each setting, by default the sweep's.", lower_bound=1
)
ONLY = flags.DEFINE_string("only", "", "Pattern found in the names of the runs to take.")
MINUTES = flags.DEFINE_float("minutes", None, "Start no further run after so long.")
PROCESSES = flags.DEFINE_integer(
    "processes", 1, "Processes that share the runs; with GPUs, one for each.", lower_bound=1
)
TABLE = flags.DEFINE_string(
    "table", None, "Finished runs: a CSV file, by default docs/results/SWEEP.csv if it is there."
)
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of the dataset, where it lies elsewhere.")
_WAIT = 10.0  # seconds between looks at runs that other processes train


def main(words: list[str]) -> None:
    """Parse flags and run the sweep."""
    kinds = [SWEEP.value, GRID.value or CONFIG.value]
    if len([*filter(None, kinds)]) != 1 or (SET.value and (GRID.value or SWEEP.value)):
        raise app.UsageError("expected --sweep, --grid, or --config with --set")
    if PROCESSES.value > 1:
        from sparsecap_jax.experiments.several import run_several

        command = [sys.executable, __file__, *sys.argv[1:], "--processes=1"]
        return run_several(PROCESSES.value, command)
    from sparsecap_jax.experiments.grids import grid_sweep, load_grid, product
    from sparsecap_jax.experiments.sweep_runner import run_sweep
    from sparsecap_jax.experiments.sweeps import committed_table, load_sweep

    if SWEEP.value:
        sweep, known = load_sweep(SWEEP.value), committed_table(SWEEP.value)
    else:
        entries = load_grid(GRID.value) if GRID.value else product(SET.value)
        sweep, known = grid_sweep(entries, CONFIG.value or ""), None
    run_sweep(
        sweep,
        WORKDIR.value,
        seeds=SEEDS.value,
        only=ONLY.value,
        minutes=MINUTES.value,
        known=known if TABLE.value is None else TABLE.value,
        data_dir=DATA_DIR.value,
        wait=_WAIT,
    )


if __name__ == "__main__":
    run_main(main)
