"""Which processes belong to a job, by flags and environment; how work is dealt out."""

import pytest

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.runs import processes
from sparsecap_jax.runs.connection import Job, find_job, started_by

SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "a,b",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
}


@pytest.mark.parametrize(
    ("environment", "found"),
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
def test_the_environment_shows_who_started_several_processes(environment, found):
    assert started_by(environment) == found
    expected = Job(timeout=60) if found else None
    assert find_job(environment=environment) == expected


def test_flags_name_a_job_or_none():
    assert find_job("a:1", 2, 1, 9, {}) == Job("a:1", 2, 1, 9)
    assert find_job("auto", environment={}) == Job()
    assert find_job("a:1", 1, 0, environment={}) is None
    assert find_job(num_processes=1, environment=SLURM) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a:1", 2), "expected all three, or none"),
        (("", 2, 1), "expected all three, or none"),
        (("auto", 2, 1), "expected none with coordinator 'auto'"),
        (("a", 2, 1), "coordinator is 'a'; expected HOST:PORT"),
        (("a:99999", 2, 1), "coordinator is 'a:99999'; expected HOST:PORT"),
        (("a:1", 2, 2), "process_id is 2; expected 0 to 1"),
    ],
)
def test_flags_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        find_job(*given, environment={})


def test_parts_are_dealt_out_in_turn(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    parts = []
    for number in range(3):
        monkeypatch.setattr(processes, "index", lambda number=number: number)
        parts.append([list(part) for part in processes.own_parts(range(10), 2)])
    assert parts == [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], []]]


def test_one_process_agrees_with_itself():
    assert processes.gather([1, "a"]) == [[1, "a"]]
    assert processes.largest(3) == 3
    assert processes.on_first(lambda: {1: 2}) == {1: 2}
    assert processes.exchange("a") == ["a"]
    with processes.first_ahead():
        assert processes.is_first()
