"""A run never loses or poisons its work: values that are not finite, damaged files, logs."""

import contextlib
import shutil
import struct
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from test_checkpoints import state_at
from tiny_runs import constant_config, make_data

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.files import read_csv
from sparsecap_jax.runs.checkpoints import Checkpoints
from sparsecap_jax.runs.config import default_config
from sparsecap_jax.runs.finite import FiniteWatch, NonFiniteError
from sparsecap_jax.runs.logs import Logs
from sparsecap_jax.runs.loop import train
from sparsecap_jax.runs.run import Run, prepare_run
from sparsecap_jax.training.objectives import CrossEntropy


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("scenes") / "toy")


def config(data, **train):
    """A dense run of 8 steps at a constant rate, with a checkpoint every second."""
    return constant_config(data, **{"steps": 8, "eval_every": 2, "log_every": 4, **train})


@pytest.fixture
def poisoned(monkeypatch):
    """Steps whose loss is NaN, counted from 1."""
    steps, plain = [], CrossEntropy.loss

    def loss(self, params, inputs, step, *rest):
        value, metrics = plain(self, params, inputs, step, *rest)
        return jnp.where(jnp.isin(step + 1, jnp.array(steps)), jnp.nan, value), metrics

    monkeypatch.setattr(CrossEntropy, "loss", loss)
    return steps


def images_of(data, workdir, step):
    """Ids of the images of a step, read from a fresh iterator."""
    run = prepare_run(config(data), workdir, None, [].append)
    with contextlib.closing(run.train_iterator()) as iterator:
        batch = [next(iterator) for _ in range(step)][-1]
    return [run.dataset.splits["train"][i].image_id for i in batch.index]


def last(workdir):
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        step = checkpoints.last_step()
        return step, checkpoints.restore_variables(step)["params"], checkpoints.meta(step)


def test_a_run_stops_at_its_first_bad_step_or_skips_it(data, poisoned, tmp_path):
    poisoned += [5, 9]
    images = ", ".join(map(str, images_of(data, tmp_path / "other", 5)))
    said = f"step 5: the loss is nan on images {images}"
    with pytest.raises(NonFiniteError, match=rf"^{said}; nothing of it is saved, .*of step 4;"):
        train(config(data), tmp_path / "run", [].append)
    assert last(tmp_path / "run")[0] == 4
    lines = []
    train(config(data, skip_nonfinite=1), tmp_path / "run", lines.append)
    assert f"{said}; skipped (1 of 1)" in lines
    step, params, meta = last(tmp_path / "run")
    assert (step, meta["skipped"]) == (8, 1)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))
    rows = read_csv(tmp_path / "run/train.csv")
    assert [(row["step"], row["skipped"]) for row in rows] == [("4", ""), ("8", "1")]
    with pytest.raises(NonFiniteError, match=r"^step 9: .*; 1 steps were skipped before; .*step 8"):
        train(config(data, skip_nonfinite=1, steps=10), tmp_path / "run", [].append)


def make_watch(last_step):
    checkpoints = mock.Mock(spec=Checkpoints)
    checkpoints.last_step.return_value = last_step
    return FiniteWatch(mock.Mock(spec=Run), checkpoints, 0)


@pytest.mark.parametrize("item", ["params", "masks", "optimizer"])
def test_nothing_that_is_not_finite_is_saved(item):
    watch = make_watch(4)
    state = state_at(6)
    watch.check(6, state)
    trees = {"params": state.params, "masks": state.prune.masks, "optimizer": state.opt_state}
    leaves, structure = jax.tree.flatten(trees[item])
    place = [leaf.dtype == jnp.float32 and leaf.ndim == 2 for leaf in leaves].index(True)
    leaves[place] = leaves[place].at[2, 1].set(-jnp.inf)
    bad = structure.unflatten(leaves)
    changes = {"params": {"params": bad}, "optimizer": {"opt_state": bad}}
    masked = state.replace(prune=state.prune.replace(masks=bad))
    state = masked if item == "masks" else state.replace(**changes[item])
    with pytest.raises(NonFiniteError, match=rf"^step 6: {item}/.*a/kernel is not .* of step 4;"):
        watch.check(6, state)


def test_an_infinite_validation_loss_is_not_saved():
    watch = make_watch(None)
    watch.check_validation(2, {"loss": 1.5})
    expected = "^step 2: the validation loss is inf; nothing is saved; try "
    with pytest.raises(NonFiniteError, match=expected):
        watch.check_validation(2, {"loss": np.inf})


def test_a_damaged_run_continues_from_an_intact_step(data, tmp_path):
    workdir = tmp_path / "run"
    train(config(data, steps=4), workdir, [].append)
    train(config(data), workdir, [].append)
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        intact = checkpoints.best_step()
    step, params, _ = last(workdir)
    assert intact < step == 8
    size = (workdir / "model.scap").stat().st_size
    (workdir / ".model.scap.a1_b2c3d").write_bytes(b"half")
    (workdir / ".tokenizer.a1_b2c3d").mkdir()
    (workdir / ".keep").touch()
    shutil.rmtree(workdir / "checkpoints/8/params/d")
    with pytest.raises(CheckpointError, match=f"8/params: .*--from_step={intact} of sparsecap"):
        train(config(data), workdir, [].append)
    assert (workdir / "model.scap").stat().st_size == size
    assert {path.name for path in workdir.glob(".*")} == {".keep"}
    with pytest.raises(CheckpointError, match=r"no finished checkpoint of step 7; there are: "):
        train(config(data), workdir, [].append, from_step=7)
    train(config(data), workdir, [].append, from_step=intact)
    jax.tree.map(np.testing.assert_array_equal, last(workdir)[1], params)


def run_at(workdir):
    """A run that has what logs need."""
    run = mock.Mock(spec=Run, workdir=workdir, config=default_config())
    run.configure_mock(total_steps=8, steps_per_epoch=2)
    return run


def test_damaged_rows_are_left_out(tmp_path, caplog):
    head, rows = "step,loss\r\n", ["2,0.5\r\n", "4,1e-05\r\n", "6,nan\r\n", "8,\r\n"]
    damaged = ["\0\0\0\r\n", "5\r\n", "5,0.4,1\r\n", "5,0.4.1\r\n", "x,0.4\r\n", "7,0.2"]
    text = head + "".join([*damaged[:3], *rows, *damaged[3:]])
    (tmp_path / "train.csv").write_bytes(text.encode() + b"\xff")
    (tmp_path / "mine.csv").write_text("not,ours\n")
    Logs(run_at(tmp_path), 6).close()
    assert (tmp_path / "train.csv").read_bytes().decode() == head + "".join(rows[:3])
    assert "train.csv: 6 damaged rows left out" in caplog.text
    assert (tmp_path / "mine.csv").read_text() == "not,ours\n"
    (tmp_path / "train.csv").write_bytes(b"")
    Logs(run_at(tmp_path), 6).close()


def test_points_before_a_checkpoint_survive_a_kill(tmp_path):
    logs = Logs(run_at(tmp_path), 4)
    logs.write("validation", 6, {"loss": 0.25})
    logs.flush()
    (path,) = (tmp_path / "tensorboard").iterdir()
    content, events = path.read_bytes(), []  # as a kill would leave it
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    assert [event.step for event in events] == [0, 5, 6]
    assert events[1].session_log.status == 1  # START: points from step 5 on are void
    assert events[2].summary.value[0].tag == "validation/loss"
    assert events[2].summary.value[0].simple_value == 0.25
    logs.close()
