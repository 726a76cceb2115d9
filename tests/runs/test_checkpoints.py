"""Checkpoints: exact restoration, which ones are kept, and what corruption gives."""

import contextlib
import gc
import itertools
import os
import pathlib
import shutil
import sys
import threading
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.pruning import make_pruner
from sparsecap_jax.pruning.step import sparse_step
from sparsecap_jax.runs import checkpoints as checkpoints_module
from sparsecap_jax.runs.checkpoint_items import check_shapes
from sparsecap_jax.runs.checkpoints import Checkpoints, snapshot
from sparsecap_jax.runs.directory import load_raw_variables
from sparsecap_jax.training.sharding import Placement, make_mesh


def state_at(step, pruner="supermask", width=3):
    params = {
        "a": {"kernel": jax.random.normal(jax.random.key(step), (4, width)), "bias": jnp.ones(2)}
    }
    pruner = make_pruner({"name": pruner}, total_steps=10)
    train_step = sparse_step(pruner, optax.adam(1e-2), lambda params, batch, rng: 0.0)
    state = train_step.init(jax.random.key(7 + step), params)
    return state.replace(step=jnp.asarray(step, jnp.int32))


def comparable(state):
    return jax.tree.leaves(state.replace(rng=jax.random.key_data(state.rng)))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Five checkpoints, the second and the fourth of the highest score, the third of none."""
    path = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(path)
    for step, score in ((1, 0.5), (2, 0.7), (3, None), (4, 0.7), (5, 0.1)):
        data = {"step": step}
        checkpoints.save(state_at(step), score=score, data=data, info={"note": f"n{step}"})
    checkpoints.close()
    return path


def test_the_last_and_the_earliest_best_are_kept(directory):
    checkpoints = Checkpoints(directory, read_only=True)
    assert checkpoints.steps() == [2, 5]
    assert (checkpoints.best_step(), checkpoints.last_step()) == (2, 5)
    assert checkpoints.score(5) == 0.1
    checkpoints.close()


def test_a_state_comes_back_bit_for_bit(directory):
    checkpoints = Checkpoints(directory, read_only=True)
    for step in (5, 2):
        restored, meta = checkpoints.restore(state_at(0), step)
        assert jax.tree.structure(restored) == jax.tree.structure(state_at(step))
        for ours, theirs in zip(comparable(restored), comparable(state_at(step)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert meta["data"] == {"step": step}
        assert meta["note"] == f"n{step}"
    checkpoints.close()


def test_variables_come_back_without_a_model(directory):
    checkpoints = Checkpoints(directory, read_only=True)
    variables = checkpoints.restore_variables(2)
    np.testing.assert_array_equal(
        variables["params"]["a"]["kernel"], state_at(2).params["a"]["kernel"]
    )
    assert np.all(variables["masks"]["a"]["kernel"] == 5.0)
    checkpoints.close()


def test_a_run_without_masks_has_none(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_at(1, "none"), score=None, data={}, info={})
    checkpoints.wait()
    assert checkpoints.restore_variables(1)["masks"] == {}
    assert checkpoints.best_step() is None
    checkpoints.close()


def test_another_shape_is_an_error(directory):
    checkpoints = Checkpoints(directory, read_only=True)
    expected = r"checkpoints/5/params: .*kernel.* has shape \(4, 3\), expected \(4, 4\)$"
    with pytest.raises(CheckpointError, match=expected):
        checkpoints.restore(state_at(0, width=4))
    checkpoints.close()


def test_what_is_not_there_is_an_error(directory, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoints there"):
        Checkpoints(tmp_path, read_only=True)
    checkpoints = Checkpoints(directory, read_only=True)
    with pytest.raises(CheckpointError, match=r"checkpoint of step 3; there are: 2, 5$"):
        checkpoints.restore_variables(3)
    checkpoints.close()


FILES = (
    "masks/_METADATA",
    "masks/manifest.ocdbt",
    "optimizer/manifest.ocdbt",
    "params/d/*",
    "meta/*",
)


@pytest.mark.parametrize(
    ("file", "damage"),
    [*itertools.product(FILES, ("zeros", "half", "gone")), ("masks/array_metadatas/*", "half")],
)
def test_damage_is_named_with_a_way_to_continue(directory, tmp_path, file, damage, capfd):
    shutil.copytree(directory, tmp_path / "run")
    path = max((tmp_path / "run/checkpoints/5").glob(file), key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    half = content[: len(content) // 2]
    path.unlink() if damage == "gone" else path.write_bytes(
        half if damage == "half" else half + bytes(len(content) - len(half))
    )
    item = file.partition("/")[0]
    expected = rf"checkpoints/5/{item}: corrupt .*; the checkpoint of step 2 is intact: continue "
    expected += r"from it \(--from_step=2 of sparsecap train, --step=2 of sparsecap evaluate\)$"
    with contextlib.closing(Checkpoints(tmp_path / "run")) as checkpoints:
        with pytest.raises(CheckpointError, match=expected):
            checkpoints.restore(state_at(0))
        restored, _ = checkpoints.restore(state_at(0), 2)
        np.testing.assert_array_equal(restored.params["a"]["bias"], state_at(2).params["a"]["bias"])
        checkpoints.drop_after(2)
        assert checkpoints.steps() == [2]
    gc.collect()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("read_only", [True, False])
def test_damaged_metadata_of_a_step_are_named(directory, tmp_path, read_only):
    shutil.copytree(directory, tmp_path / "run")
    metadata = tmp_path / "run/checkpoints/5/_CHECKPOINT_METADATA"
    metadata.write_text('{"performance_metrics": []}')
    with pytest.raises(CheckpointError, match=r"/_CHECKPOINT_METADATA: one is corrupt: .* 'list'"):
        Checkpoints(tmp_path / "run", read_only=read_only)


def test_descriptions_of_any_size_are_not_read(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "run")
    os.truncate(tmp_path / "run/checkpoints/5/params/_sharding", 3 * 2**30)
    expected = r"5/params: corrupt.*: _sharding has 3221225472 bytes"
    with (
        contextlib.closing(Checkpoints(tmp_path / "run")) as checkpoints,
        pytest.raises(CheckpointError, match=expected),
    ):
        checkpoints.restore_variables(5)


def refuse_to_restore(*args, **options):
    pytest.fail("the arrays were read")


def test_another_shape_is_found_before_the_arrays_are_read(directory, monkeypatch):
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        params = checkpoints.restore_variables(5, state_at(0).params)["params"]
        monkeypatch.setattr(checkpoints._handlers["params"], "restore", refuse_to_restore)
        expected = r"5/params: .*: a/kernel has shape \(4, 3\), expected \(4, 4\)$"
        with pytest.raises(CheckpointError, match=expected):
            checkpoints.restore_variables(5, state_at(0, width=4).params)
        params["b"] = params["a"]
        with pytest.raises(CheckpointError, match=r"5/params: .*: b/bias is missing$"):
            load_raw_variables(directory, 5, params)


def test_masks_of_other_shapes_than_their_weights_are_not_read(tmp_path, monkeypatch):
    state = state_at(1)
    state.prune.masks["a"]["kernel"] = jnp.zeros((4, 2**20))
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state, score=None, data={}, info={})
        checkpoints.wait()
        monkeypatch.setattr(checkpoints._handlers["masks"], "restore", refuse_to_restore)
        expected = r"1/masks: .*: a/kernel has shape \(4, 1048576\), expected \(4, 3\)$"
        with pytest.raises(CheckpointError, match=expected):
            checkpoints.restore_variables(1)


def test_a_checkpoint_does_not_inflate_without_limit(tmp_path, monkeypatch):
    # The limit is lowered: a file of 5 MB may well hold 2^28 zeros.
    monkeypatch.setattr("sparsecap_jax.runs.checkpoint_items.MAX_WEIGHTS", 13)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state_at(1), score=None, data={}, info={})
        checkpoints.wait()
        monkeypatch.setattr(checkpoints._handlers["params"], "restore", refuse_to_restore)
        expected = r"1/params: .*: 14 numbers; expected at most 13$"  # 4 x 3 and 2
        for params in (None, state_at(0).params):
            with pytest.raises(CheckpointError, match=expected):
                checkpoints.restore_variables(1, params)


def test_pieces_beyond_the_shape_are_not_read():
    storage = ocp.metadata.value.StorageMetadata
    leaves = {
        size: ocp.metadata.value.ArrayMetadata(
            name="w",
            directory=None,
            shape=(3,),
            sharding=None,
            dtype=np.float32,
            storage=storage((size,), (3,)),
        )
        for size in (3, 2**30)
    }
    check_shapes({"w": leaves[3]}, None)
    with pytest.raises(ValueError, match=r"^w has shape \(3,\) in pieces of \(1073741824,\)$"):
        check_shapes({"w": leaves[2**30]}, None)


def test_a_step_that_vanishes_while_it_is_looked_at(directory, tmp_path, monkeypatch):
    """As when a run that trains removes it."""
    shutil.copytree(directory, tmp_path / "run")
    doomed, stat = tmp_path / "run/checkpoints/2", pathlib.Path.stat

    def stat_once(path, **options):
        status = stat(path, **options)
        if doomed in path.parents:
            shutil.rmtree(doomed)
        return status

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "stat", stat_once)
        checkpoints = Checkpoints(tmp_path / "run", read_only=True)
    assert checkpoints.steps() == [5]
    checkpoints.close()


def test_a_step_that_vanishes_before_it_is_read(directory, tmp_path, monkeypatch, caplog):
    """The best one that is left is read in its place."""
    shutil.copytree(directory, tmp_path / "run")
    restore = Checkpoints.restore_variables

    def remove_and_restore(self, step, expected=None):
        shutil.rmtree(tmp_path / "run/checkpoints/2", ignore_errors=True)
        return restore(self, step, expected)

    monkeypatch.setattr(Checkpoints, "restore_variables", remove_and_restore)
    variables = load_raw_variables(tmp_path / "run")
    np.testing.assert_array_equal(
        variables["params"]["a"]["kernel"], state_at(5).params["a"]["kernel"]
    )
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 2; there are 5$"):
        load_raw_variables(tmp_path / "run", 2)
    assert "corrupt" not in caplog.text


def test_damage_of_the_best_does_not_stop_training(directory, tmp_path, caplog):
    shutil.copytree(directory, tmp_path / "run")
    (tmp_path / "run/checkpoints/2/meta/metadata").write_text("{}")
    with contextlib.closing(Checkpoints(tmp_path / "run")) as checkpoints:
        assert checkpoints.best_step() == 5
        checkpoints.save(state_at(6), score=0.0, data={}, info={})
        checkpoints.wait()
        assert checkpoints.last_step() == 6
        assert "checkpoints/2/meta: corrupt" in caplog.text
        expected = r"2/meta: .*; the checkpoint of step 6 is intact: remove .*/2 to do without"
        with pytest.raises(CheckpointError, match=expected):
            checkpoints.restore_variables(2)


@pytest.mark.parametrize("field", ['"rng": [0, 12', '"crc32": {"params": '])
def test_one_digit_of_meta_is_damage(directory, tmp_path, field):
    shutil.copytree(directory, tmp_path / "run")
    path = tmp_path / "run/checkpoints/5/meta/metadata"
    text = path.read_text()
    assert text.count(field) == 1
    path.write_text(text.replace(field, field + "1"))
    checkpoints = Checkpoints(tmp_path / "run", read_only=True)
    with pytest.raises(CheckpointError, match=r"5/meta: corrupt .*its checksum differs"):
        checkpoints.restore(state_at(0))
    checkpoints.close()


def test_a_mask_that_is_not_finite_is_not_restored(tmp_path):
    poisoned = state_at(2)
    poisoned.prune.masks["a"]["kernel"] = poisoned.prune.masks["a"]["kernel"].at[1, 2].set(jnp.nan)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state_at(1), score=0.5, data={}, info={})
        checkpoints.save(poisoned, score=0.4, data={}, info={})
        checkpoints.wait()
        expected = r"2/masks: .*a/kernel is not finite; the checkpoint of step 1 is intact: con"
        with pytest.raises(CheckpointError, match=expected):
            checkpoints.restore(state_at(0))
        with pytest.raises(CheckpointError, match=expected):
            checkpoints.restore_variables(2)


def test_saving_waits_for_no_checksum_and_reports_what_failed(tmp_path, monkeypatch):
    """The state may be overwritten meanwhile, as a step that is donated its buffers does."""
    go, plain = threading.Event(), checkpoints_module.crc32

    def slow(tree):
        assert go.wait(60)
        return plain(tree)

    monkeypatch.setattr(checkpoints_module, "crc32", slow)
    checkpoints, state = Checkpoints(tmp_path), state_at(1)
    expected = [np.array(leaf) for leaf in comparable(state)]
    checkpoints.save(snapshot(state), score=0.5, data={}, info={})  # returns before `go`
    doubled = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree), donate_argnums=0)
    jax.block_until_ready(doubled(state.params))
    assert not (tmp_path / "checkpoints/1").exists()
    go.set()
    assert checkpoints.steps() == [1]
    for ours, theirs in zip(comparable(checkpoints.restore(state_at(0))[0]), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)

    def fail(tree):
        raise OSError("no space")

    monkeypatch.setattr(checkpoints_module, "crc32", fail)
    checkpoints.save(state_at(2), score=0.5, data={}, info={})
    with pytest.raises(OSError, match="no space"):
        checkpoints.wait()
    checkpoints.save(state_at(3), score=0.5, data={}, info={})
    futures.wait([checkpoints._written])
    with pytest.raises(OSError, match="no space"):
        checkpoints.check()  # a step later, so that the next state is saved
    monkeypatch.setattr(checkpoints_module, "crc32", plain)
    checkpoints.save(state_at(4), score=0.5, data={}, info={})
    checkpoints.wait()
    checkpoints.check()
    checkpoints.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "4"}


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
def test_the_writer_gives_way_to_training_steps(tmp_path, monkeypatch):
    found = []

    def checksum(tree):
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return 0

    monkeypatch.setattr(checkpoints_module, "crc32", checksum)
    ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state_at(1), score=None, data={}, info={})
    assert {*found} == {min(ours + 10, 19)}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == ours


def test_checkpoints_move_between_meshes(tmp_path):
    """Written in eight parts, read in other parts and whole, and the other way round."""
    state = state_at(3, width=8)
    placements = [
        Placement(make_mesh(8, 8), ("a/kernel=-,data",)),
        Placement(make_mesh(8, 8, 2), ("a/kernel=data,model",)),
        Placement(make_mesh(1, 8)),
    ]
    for number, (ours, theirs) in enumerate(itertools.permutations(placements, 2)):
        placed = jax.device_put(state, ours.shardings(state, state.params))
        expected = theirs.shardings(state, state.params)
        like = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, expected
        )
        with contextlib.closing(Checkpoints(tmp_path / str(number))) as checkpoints:
            checkpoints.save(placed, score=None, data={}, info={})
            restored, _ = checkpoints.restore(like)
        for leaf, plain in zip(comparable(restored), comparable(state), strict=True):
            np.testing.assert_array_equal(leaf, plain)
        kernel = restored.params["a"]["kernel"]
        assert kernel.sharding == expected.params["a"]["kernel"]
        assert restored.prune.masks["a"]["kernel"].sharding == kernel.sharding
