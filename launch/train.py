"""Train a captioner, dense or pruned; run the same command again to continue.

sparsecap train --config=configs/toy.py:supermask --workdir=runs/toy_supermask --score_test
sparsecap train --config=configs/toy.py:supermask --config.train.steps=500 --print_config

Several processes train as one where each gets the same command, see docs/several_machines.md.
"""

from absl import app, flags

from sparsecap_jax.commands import process_flags
from sparsecap_jax.commands.cli import ConfigFlag, run_main

CONFIG = ConfigFlag()
WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; a new one, or one to continue.")
FROM_STEP = flags.DEFINE_integer(
    "from_step",
    None,
    "Step of the checkpoint to continue from, by default the last; later ones are dropped. If "
    "stopped, run the same command without --from_step to continue.",
    lower_bound=0,
)
SKIP_NONFINITE = flags.DEFINE_integer(
    "skip_nonfinite",
    None,
    "Batches to leave out at most whose loss or gradients are not finite; short for "
    "--config.train.skip_nonfinite.",
    lower_bound=0,
)
SCORE_TEST = flags.DEFINE_bool(
    "score_test", False, "Score the test split in the end, as `sparsecap evaluate` does."
)
PROFILE = flags.DEFINE_string(
    "profile", "", "Folder for a trace of some steps, see docs/accelerators.md."
)
PROFILE_START = flags.DEFINE_integer(
    "profile_start", 10, "Steps of this command before the trace; the first compile.", lower_bound=0
)
PROFILE_STEPS = flags.DEFINE_integer("profile_steps", 5, "Steps to trace.", lower_bound=1)
PRINT_CONFIG = flags.DEFINE_bool(
    "print_config", False, "Print every field and where its value comes from, and do nothing else."
)


def main(words: list[str]) -> None:
    """Parse flags and train."""
    skips = [] if SKIP_NONFINITE.value is None else [f"train.skip_nonfinite={SKIP_NONFINITE.value}"]
    config, describe = CONFIG.read(skips)
    if PRINT_CONFIG.value:
        print("\n".join(describe()))
        return
    if not WORKDIR.value:
        raise app.UsageError("--workdir is missing; expected a run directory")
    from sparsecap_jax.runs.loop import train
    from sparsecap_jax.runs.profiling import StepTrace

    trace = StepTrace(PROFILE.value, PROFILE_START.value, PROFILE_STEPS.value)
    with process_flags.connected():
        train(config, WORKDIR.value, from_step=FROM_STEP.value, trace=trace)
        if SCORE_TEST.value:
            from sparsecap_jax.commands.evaluate import evaluate_run

            evaluate_run(WORKDIR.value)


if __name__ == "__main__":
    run_main(main)
