"""`--profile` traces the steps it is asked for, and leaves training as it is."""

import gzip
import json

import pytest
from tiny_runs import constant_config, make_data

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.runs.loop import train
from sparsecap_jax.runs.profiling import StepTrace


def events(folder):
    (path,) = folder.rglob("*.trace.json.gz")
    with gzip.open(path) as file:
        return json.load(file)["traceEvents"]


def test_a_run_writes_a_trace_of_some_steps(tmp_path):
    make_data(tmp_path / "data")
    lines, folder = [], tmp_path / "profile"
    config = constant_config(tmp_path / "data", steps=8, eval_every=8)
    train(config, tmp_path / "traced", lines.append, trace=StepTrace(folder, 4, 3))
    assert lines.count(f"wrote a profile of 3 steps to {folder}") == 1
    calls = [e for e in events(folder) if e.get("name") == "PjitFunction(many)"]
    end, count = 0.0, 0
    for call in sorted(calls, key=lambda event: event["ts"]):
        count += call["ts"] >= end  # JAX notes a call of compiled code twice, one inside the other
        end = max(end, call["ts"] + call["dur"])
    assert count == 3
    late = StepTrace(folder, 8)
    train(config, tmp_path / "plain", lines.append, trace=late)
    assert lines.count("no profile: this command took 8 steps, the trace begins after 8") == 1
    logs = [(tmp_path / name / "train.csv").read_text().split() for name in ("traced", "plain")]
    traced, plain = ([row.rpartition(",")[0] for row in log] for log in logs)  # last: images/s
    assert traced == plain and len(plain) == 5


def test_a_run_that_ends_within_the_trace_keeps_what_there_is(tmp_path):
    trace = StepTrace(tmp_path / "profile", 1, 10)
    for _ in range(3):
        trace.before(())
        assert not trace.after(1, ())
    folder = tmp_path / "profile"
    assert trace.close() == f"the profile in {folder} ends early: this command took 3 steps"
    assert trace.close() == "" == StepTrace().close()
    assert events(folder)
    trace.before(())  # does not begin again
    assert not trace.after(100, ())


def test_a_run_that_ends_before_the_trace_says_so(tmp_path):
    trace = StepTrace(tmp_path / "profile", 10, 5)
    trace.before(())
    assert not trace.after(1, ())
    assert trace.close() == "no profile: this command took 1 step, the trace begins after 10"
    assert not [*(tmp_path / "profile").iterdir()]


def test_a_folder_that_cannot_be_made_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"profile: .*file/profile: Not a directory"):
        StepTrace(tmp_path / "file" / "profile")
