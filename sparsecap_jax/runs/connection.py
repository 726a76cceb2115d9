"""Connection of several processes by `jax.distributed`, and its end: all end when one does.

Each process has a thread that writes a sign of life to the coordination service of the first
process and reads those of the others. A process that fails leaves its message there; one that is
killed leaves signs that no longer change, or, the first one, a service that no longer answers. The
others then print one line and end, wherever they wait.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax._src import distributed

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.runs import processes
from sparsecap_jax.runs.native_errors import NativeErrors
from sparsecap_jax.stopping import Stopped

TIMEOUT = 60
"""Seconds without a sign of life after which a process counts as dead."""
_ending = threading.Lock()
_ALIVE, _FAILED = "sparsecap/alive/", "sparsecap/failed/"
_ADVICE = "what is saved is kept, and the same command, with as many processes or others, continues"


@dataclasses.dataclass(frozen=True)
class Job:
    """The processes of one job, and which of them this is; the fields are those of the flags.

    Attributes:
        coordinator: HOST:PORT of the first process; "" to find all of them by the environment, as
            JAX does.
        num_processes: number of processes.
        process_id: number of this one, from 0.
        timeout: see `TIMEOUT`; starting may take five times as long.
    """

    coordinator: str = ""
    num_processes: int | None = None
    process_id: int | None = None
    timeout: int = TIMEOUT


def find_job(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = TIMEOUT,
    environment: Mapping[str, str] = os.environ,
) -> Job | None:
    """Return the job that this process belongs to; None where it is on its own.

    Args:
        coordinator: HOST:PORT of the first process, or "auto" to let JAX look everywhere.
        num_processes: number of processes; 1: this one is on its own.
        process_id: number of this one.
        timeout: see `Job`.
        environment: says whether SLURM, GKE or a TPU pod has started several processes.

    Raises:
        ConfigError: the three are not given together, or do not fit.
    """
    if num_processes == 1 and process_id in (None, 0):
        return None
    numbers = [num_processes is not None, process_id is not None]
    if coordinator == "auto" or not (coordinator or any(numbers)):
        if any(numbers):
            raise ConfigError("num_processes, process_id: expected none with coordinator 'auto'")
        several = coordinator == "auto" or started_by(environment)
        return Job(timeout=timeout) if several else None
    if not coordinator or num_processes is None or process_id is None:
        raise ConfigError("coordinator, num_processes, process_id: expected all three, or none")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"coordinator is {coordinator!r}; expected HOST:PORT of process 0")
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise ConfigError(f"process_id is {process_id}; expected 0 to {num_processes - 1}")
    return Job(coordinator, num_processes, process_id, timeout)


def started_by(environment: Mapping[str, str]) -> str:
    """Return what has started several processes, by its variables; "" where nothing did.

    Nothing is asked over the network: a plain run needs none.
    """
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environment for name in slurm):
        tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1")
        if tasks.isdecimal() and int(tasks) > 1:
            return "SLURM"
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts or environment.get("MEGASCALE_COORDINATOR_ADDRESS"):
        return "TPU pod"
    indexed = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
    if indexed and importlib.util.find_spec("kubernetes"):
        return "Kubernetes"
    return ""


def join_job(job: Job) -> "Connection":
    """Join the processes of a job.

    To be called before JAX has any devices. Where the others do not come, it ends the process.

    Raises:
        ConfigError: they cannot be connected.
    """
    with contextlib.suppress(AttributeError):  # an older JAX
        jax.config.update("jax_enable_preemption_service", False)  # signals are ours: `stopping`
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # XLA ends the process by itself, with a page of text, when its own timeouts are over.
    waiting = 5 * job.timeout
    late = threading.Timer(waiting, _end, [f"the other processes did not come in {waiting} s"])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            job.coordinator or None,
            job.num_processes,
            job.process_id,
            initialization_timeout=2 * waiting + 60,
            heartbeat_timeout_seconds=2 * job.timeout + 60,
            shutdown_timeout_seconds=job.timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the processes cannot be connected: {error}".splitlines()[0]) from error
    finally:
        late.cancel()
    connection = Connection(job.timeout)
    if not processes.is_first():  # the first one warns for all
        logging.getLogger("sparsecap_jax").setLevel(logging.ERROR)
    return connection


class Connection:
    """Membership in a job, for a `with` block: all processes end when one of them fails.

    A block that fails here ends the other processes, and one that fails there ends this one, in one
    line and within about `timeout` seconds. A process whose block has failed should end by
    `os._exit`: the usual end would wait for the others.

    Args:
        timeout: seconds without a sign of life after which a process counts as dead.
    """

    def __init__(self, timeout: float):
        state = distributed.global_state  # not `jax.process_index`, which waits for all devices
        self._client: Any = state.client
        self._me, self._count = state.process_id, state.num_processes
        self._timeout, self._period = timeout, min(1.0, timeout / 10)
        self._stopped = threading.Event()
        self._native = NativeErrors(self._lost)
        self._thread = threading.Thread(target=self._watch, name="processes", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or ends_together(error):
            processes.wait_for_all()  # signs of life continue until all are through
            self._stop()
            jax.distributed.shutdown()
            self._native.close()
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Tell the others that this process ends, unless it does so because another one has.

        An error of XLA is most likely a connection that another process left: the thread has the
        time to find that out, and ends this process. A lack of memory is its own.
        """
        if is_of_another(error):
            time.sleep(self._timeout + 3 * self._period)
        text = (str(error) or type(error).__name__).splitlines()[0]
        with contextlib.suppress(Exception):
            message = f"process {self._me}: {text:.500}"
            self._client.key_value_set(f"{_FAILED}{self._me}", message, allow_overwrite=True)
        self._stop()
        if self._me == 0:
            time.sleep(3 * self._period)  # the message is read from here
        self._native.close()

    def _stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        """Give signs of life, and look for those of the others, until the end."""
        seen = {process: ("", time.monotonic()) for process in range(self._count)}
        beat, heard = 0, time.monotonic()
        while not self._stopped.wait(self._period):
            beat += 1
            try:
                self._beat(beat, seen)
                heard = time.monotonic()
            except Exception:  # one call may fail on a busy network
                if time.monotonic() - heard > self._timeout:
                    self._lost()

    def _lost(self) -> None:
        """End the process, as the first one has."""
        _end(f"process 0 of {self._count} has ended; {_ADVICE}", self._stopped)

    def _beat(self, beat: int, seen: dict[int, tuple[str, float]]) -> None:
        """Give a sign, and end the process where another one has ended."""
        mine = f"{_ALIVE}{self._me}"
        self._client.key_value_set(mine, str(beat), allow_overwrite=True)
        for key, reason in self._client.key_value_dir_get(_FAILED):
            if key != f"{_FAILED}{self._me}":
                _end(reason, self._stopped)
        signs: dict[str, Any] = dict(self._client.key_value_dir_get(_ALIVE))
        now = time.monotonic()
        for process, (sign, last) in seen.items():
            newest = signs.get(f"{_ALIVE}{process}", sign)
            if newest != sign:
                seen[process] = newest, now
            elif now - last > self._timeout:
                silent = f"process {process} of {self._count} gave no sign for {self._timeout} s"
                _end(f"{silent}; {_ADVICE}", self._stopped)


def ends_together(error: BaseException) -> bool:
    """Return whether all processes end by the same signal, at the same step."""
    return isinstance(error, Stopped) and processes.agreed_to_stop()


def is_of_another(error: BaseException) -> bool:
    """Return whether an error may come from another process: one of XLA, but for lack of memory."""
    fault = isinstance(error, jax.errors.JaxRuntimeError)
    return fault and not str(error).startswith("RESOURCE_EXHAUSTED")


def _end(reason: str, unless: threading.Event | None = None) -> None:
    """Print why, and end the process at once: its main thread may wait for one that is gone."""
    if unless is not None and unless.is_set():
        return
    if _ending.acquire(blocking=False):  # another thread may be at it
        print(f"error: {reason}", file=sys.stderr, flush=True)
        os._exit(1)
    threading.Event().wait()
