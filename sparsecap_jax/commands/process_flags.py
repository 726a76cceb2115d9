"""Flags of several processes that work as one, shared by training and evaluation."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

from absl import flags

from sparsecap_jax.commands.cli import errors_in_one_line

_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "HOST:PORT of process 0, for several processes (docs/several_machines.md); auto: JAX asks "
    "around. Under SLURM, GKE and on TPU pods that their variables show, nothing is needed.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Number of processes; 1: a run of its own.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Number of this process, from 0.", lower_bound=0
)
_TIMEOUT = flags.DEFINE_integer(
    "process_timeout",
    60,
    "Seconds without a sign of life after which a process counts as dead, and the others end.",
    lower_bound=1,
)

ALL = (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID, _TIMEOUT)


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Connect the processes of a job while the block runs, as flags or the environment say.

    A process that fails prints why, and ends at once: the orderly end waits for the others.
    """
    from sparsecap_jax.runs.connection import ends_together, find_job, join_job

    job = find_job(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _TIMEOUT.value)
    if job is None:
        yield
        return
    try:
        with join_job(job):
            yield
    except BaseException as error:
        if not ends_together(error):
            _end_at_once(error)
        raise


def _end_at_once(error: BaseException) -> None:
    """Print an error as it would be at the end of a program, and end it."""
    status = 1
    try:
        with errors_in_one_line():
            raise error
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        else:
            status = ended.code or 0
            print(error, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
