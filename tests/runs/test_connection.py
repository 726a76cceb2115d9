"""Which processes belong to a job, by flags and environment; how work is dealt out."""

import types

import jax
import pytest

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.runs import connection, processes
from sparsecap_jax.runs.connection import Job, find_job, is_of_another, started_by
from sparsecap_jax.training.sharding import MeshConfig

SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "a,b",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
}


@pytest.mark.parametrize(
    ("environment", "starter"),
    [
        ({}, ""),
        (SLURM, "SLURM"),
        ({**SLURM, "SLURM_NTASKS": "1"}, ""),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, ""),  # `srun -n 1` within a job of two tasks
        ({key: value for key, value in SLURM.items() if key != "SLURM_STEP_NODELIST"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU pod"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, ""),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a:1"}, "TPU pod"),
        ({"KUBERNETES_SERVICE_HOST": "a"}, ""),
    ],
)
def test_the_environment_shows_who_started_several_processes(environment, starter):
    assert started_by(environment) == starter
    expected = Job(timeout=60) if starter else None
    assert find_job(environment=environment) == expected


def test_flags_name_a_job_or_none():
    assert find_job("a:1", 2, 1, 9, {}) == Job("a:1", 2, 1, 9)
    assert find_job("auto", environment={}) == Job()
    assert find_job("a:1", 1, 0, environment={}) is None
    assert find_job(num_processes=1, environment=SLURM) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("a:1", 2), "expected all three, or none"),
        (("", 2, 1), "expected all three, or none"),
        (("auto", 2, 1), "expected none with coordinator 'auto'"),
        (("a", 2, 1), "coordinator is 'a'; expected HOST:PORT"),
        (("a:99999", 2, 1), "coordinator is 'a:99999'; expected HOST:PORT"),
        (("a:1", 2, 2), "process_id is 2; expected 0 to 1"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        find_job(*flags, environment={})


def test_parts_are_dealt_out_in_turn(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    parts = []
    for number in range(3):
        monkeypatch.setattr(processes, "index", lambda number=number: number)
        parts.append([list(part) for part in processes.deal_out(range(10), 2)])
    assert parts == [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], []]]


def test_one_process_agrees_with_itself():
    assert processes.gather([1, "a"]) == [[1, "a"]]
    assert processes.largest(3) == 3
    assert processes.on_first(lambda: {1: 2}) == {1: 2}
    assert processes.exchange("a") == ["a"]
    with processes.first_ahead():
        assert processes.is_first()


def test_processes_name_what_they_differ_in(monkeypatch):
    first = {"config.seed": 1, "config.data.dir": "a", "--from_step": None}
    second = {"config.seed": 2, "config.data.dir": "a", "--from_step": 4}
    monkeypatch.setattr(processes, "gather", lambda value: [first, second])
    for values in (first, second):
        with pytest.raises(ConfigError, match=r"in --from_step, config\.seed; run the same$"):
            processes.check_same(values, "run the same")
    monkeypatch.setattr(processes, "gather", lambda value: [first, first])
    processes.check_same(first, "run the same")


def test_the_first_process_is_lost_when_it_is_silent_for_the_timeout(monkeypatch):
    """One call that fails, on a busy network, ends nothing."""
    clock, lost = [0], []

    def wait(period):
        clock[0] += period
        return bool(lost)

    def beat(number, seen):
        if number not in (1, 2, 5):
            raise RuntimeError("UNAVAILABLE")

    watch = object.__new__(connection.Connection)
    watch._count, watch._timeout, watch._period = 1, 10, 1
    watch._stopped = types.SimpleNamespace(wait=wait)
    watch._beat, watch._lost = beat, lambda: lost.append(clock[0])
    monkeypatch.setattr(connection, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    watch._watch()
    assert lost == [5 + 10 + 1]


def test_a_lack_of_memory_is_no_error_of_another_process():
    error = jax.errors.JaxRuntimeError
    assert is_of_another(error("INTERNAL: connection closed by peer"))
    assert not is_of_another(error("RESOURCE_EXHAUSTED: out of memory"))
    assert not is_of_another(ValueError("INTERNAL"))


def test_a_slow_transfer_gets_more_time_each_time():
    deadlines = []

    def get(key, milliseconds):
        deadlines.append(milliseconds)
        if len(deadlines) < 9:
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: later")
        return b"text"

    client = types.SimpleNamespace(blocking_key_value_get_bytes=get)
    assert processes._wait_for(client, "key") == b"text"
    expected = [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000]
    assert deadlines == expected


def test_several_processes_refuse_split_weights(monkeypatch):
    processes.check_devices(3, MeshConfig(model=2, sharding="fsdp"))
    monkeypatch.setattr(processes, "count", lambda: 2)
    processes.check_devices(0, MeshConfig())
    for fields in ({"model": 2}, {"sharding": "fsdp"}, {"rules": ("logits/kernel=-,model",)}):
        with pytest.raises(ConfigError, match=r"config\.mesh: weights are split; .* 2 processes"):
            processes.check_devices(0, MeshConfig(**fields))
    with pytest.raises(ConfigError, match=r"config\.train\.devices is 3; expected 0 with 2"):
        processes.check_devices(3, MeshConfig())
