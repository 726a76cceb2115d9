"""Several processes at once that share the runs of a sweep."""

import os
import signal
import subprocess
from collections.abc import Sequence

from sparsecap_jax.errors import ConfigError, SparsecapError
from sparsecap_jax.stopping import Stopped


def run_several(count: int, command: Sequence[str]) -> None:
    """Run a command in so many processes, and wait for all of them.

    Process i sees GPU i alone, or the i-th that `CUDA_VISIBLE_DEVICES` lists; on other machines
    that variable has no effect. A signal to this process ends them, too.

    Raises:
        ConfigError: `CUDA_VISIBLE_DEVICES` lists fewer GPUs.
        SparsecapError: some have failed; raised when all have ended.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = listed.split(",") if listed else [str(number) for number in range(count)]
    if len(gpus) < count:
        raise ConfigError(
            f"--processes is {count}; expected at most {len(gpus)}, one for each GPU of "
            f"CUDA_VISIBLE_DEVICES={listed}"
        )
    children: list[subprocess.Popen] = []
    try:
        for gpu in gpus[:count]:
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
            # A session of its own: of a terminal's signals it has only those passed on below.
            child = subprocess.Popen(command, env=environment, start_new_session=True)
            children.append(child)
        codes = [child.wait() for child in children]
    except (Stopped, OSError):
        for child in children:
            child.send_signal(signal.SIGTERM)
        for child in children:
            child.wait()
        raise
    if failed := sum(code != 0 for code in codes):
        raise SparsecapError(f"{failed} of {count} processes failed; their messages are above")
