"""Checkpoints of a run: saved atomically, restored exactly, checked against corruption.

`WORKDIR/checkpoints/STEP/` holds the parts of a state as separate items (params, masks, extras,
optimizer) and a JSON item `meta`. The last step is always kept, and the best one: the highest score
among those that have one.
"""

import dataclasses
import pathlib
import shutil
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.pruning.step import TrainState
from sparsecap_jax.runs.weights import misfits
from sparsecap_jax.types import PyTree

_META = {"step", "score", "rng", "data", "crc32"}
ITEMS = ("params", "masks", "extras", "optimizer")


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
        workdir: the run directory.
        read_only: whether only to read; nothing is created then.

    Raises:
        CheckpointError: `read_only`, and there is no checkpoint.
    """

    def __init__(self, workdir: str | pathlib.Path, *, read_only: bool = False):
        self.directory = pathlib.Path(workdir).resolve() / "checkpoints"
        if read_only and not self.directory.is_dir():
            raise CheckpointError(f"{self.directory}: no checkpoints there")
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_KeepBestAndLast(self),
            read_only=read_only,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
        )
        handlers = {name: ocp.PyTreeCheckpointHandler() for name in ITEMS}
        handlers["meta"] = ocp.JsonCheckpointHandler()
        self._scores: dict[int, float | None] = {}
        self._writes = not read_only
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_names=tuple(handlers), item_handlers=handlers
        )
        if read_only and not self.steps():
            raise CheckpointError(f"{self.directory}: no finished checkpoint there")

    def steps(self) -> Sequence[int]:
        """Steps that have a finished checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def last_step(self) -> int | None:
        """The newest step, or None."""
        return max(self.steps(), default=None)

    def best_step(self, steps: Sequence[int] | None = None) -> int | None:
        """The earliest of the steps (by default all) of the highest score; None if none has one."""
        steps = self.steps() if steps is None else steps
        scored = [step for step in sorted(steps) if self.score(step) is not None]
        return max(scored, key=self.score, default=None)

    def score(self, step: int) -> float | None:
        """Score of a step, or None where it was saved without one."""
        if step not in self._scores:
            self._scores[step] = self.meta(step)["score"]
        return self._scores[step]

    def save(
        self, state: TrainState, *, score: float | None, data: Any, info: Mapping[str, Any]
    ) -> None:
        """Save the whole state; returns before all of it is on disk (see `wait`).

        Args:
            state: the training state.
            score: ranks it as best; None where it may not be the best.
            data: state of the data iterator, JSON-serialisable.
            info: further entries of `meta`, JSON-serialisable.
        """
        trees = {name: _plain(name, t) for name, t in _items(state).items() if jax.tree.leaves(t)}
        meta = {
            **info,
            "step": int(state.step),
            "score": score,
            "rng": np.asarray(jax.random.key_data(state.rng)).tolist(),
            "data": data,
            "crc32": {name: _crc32(tree) for name, tree in trees.items()},
        }
        items = {name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()}
        args = ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items)
        self._scores[int(state.step)] = score
        self._manager.save(int(state.step), args=args)

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict]:
        """Restore a whole state, bit for bit, and the meta data it was saved with.

        Args:
            like: a state of the same shapes and shardings (its values are not read).
            step: None for the last.

        Raises:
            CheckpointError: it is missing or corrupt, or its shapes differ from `like`.
        """
        step = self.last_step() if step is None else step
        meta = self.meta(step)
        items = _items(like)
        for name, tree in items.items():
            if jax.tree.leaves(tree):
                plain = self._restore_item(step, name, _plain(name, tree), meta)
                items[name] = jax.tree.structure(tree).unflatten(jax.tree.leaves(plain))
        count = jax.numpy.asarray(meta["step"], jax.numpy.int32)
        rng = jax.random.wrap_key_data(np.asarray(meta["rng"], np.uint32))
        prune = like.prune.replace(masks=items["masks"], extras=items["extras"])
        return TrainState(count, items["params"], prune, items["optimizer"], rng), meta

    def restore_variables(self, step: int) -> dict[str, PyTree]:
        """Restore `{"params": ..., "masks": ...}` of a step as numpy arrays; errors as `meta`."""
        meta = self.meta(step)
        return {
            name: self._restore_item(step, name, None, meta) if name in meta["crc32"] else {}
            for name in ("params", "masks")
        }

    def meta(self, step: int | None) -> dict[str, Any]:
        """Return the JSON part of a checkpoint.

        Raises:
            CheckpointError: it is missing or corrupt.
        """
        if step is None or step not in self.steps():
            raise CheckpointError(f"{self.directory}: no finished checkpoint of step {step}")
        try:
            args = ocp.args.Composite(meta=ocp.args.JsonRestore())
            meta = self._manager.restore(step, args=args).meta
        except (ValueError, OSError, KeyError) as error:
            raise self._corrupt(step, "meta", error) from error
        if not isinstance(meta, dict) or not meta.keys() >= _META:
            raise self._corrupt(step, "meta", "fields are missing")
        return meta

    def wait(self) -> None:
        """Block until everything saved so far is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish writing and release the directory; what could not be written is removed."""
        try:
            self.wait()
        finally:
            self._manager.close()
            for partial in self.directory.glob("*.orbax-checkpoint-tmp") if self._writes else ():
                shutil.rmtree(partial, ignore_errors=True)

    def _restore_item(self, step: int, name: str, like: PyTree | None, meta: Mapping) -> PyTree:
        try:
            saved = self._manager.item_metadata(step)[name]
            saved = getattr(saved, "tree", saved)  # metadata in place of the arrays
            as_numpy, item = ocp.RestoreArgs(restore_type=np.ndarray), None
            restore_args = jax.tree.map(lambda _: as_numpy, saved)
            if like is not None:
                for fault in misfits(saved, like).values():
                    raise ValueError(fault)
                item = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
                restore_args = ocp.checkpoint_utils.construct_restore_args(like)
            args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args)
            tree = self._manager.restore(step, args=ocp.args.Composite(**{name: args}))[name]
            if _crc32(tree) != meta["crc32"].get(name):
                raise ValueError("its checksum differs from the one saved with it")
        except (ValueError, OSError, KeyError, TypeError) as error:
            raise self._corrupt(step, name, error) from error
        return tree

    def _corrupt(self, step: int, name: str, why: Any) -> CheckpointError:
        reason = str(why).strip().splitlines()[0][:200] if str(why).strip() else repr(why)
        path = self.directory / str(step) / name
        return CheckpointError(f"{path}: corrupt or of another model: {reason}")


@dataclasses.dataclass(frozen=True)
class _KeepBestAndLast(checkpoint_managers.PreservationPolicy):
    checkpoints: Checkpoints

    def should_preserve(self, checkpoints, *, context) -> Sequence[bool]:
        """Decide for each checkpoint, oldest first, whether it stays."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        keep = {max(steps, default=None), self.checkpoints.best_step(steps)}
        return [step in keep for step in steps]


def _items(state: TrainState) -> dict[str, PyTree]:
    trees = (state.params, state.prune.masks, state.prune.extras, state.opt_state)
    return dict(zip(ITEMS, trees, strict=True))


def _plain(name: str, tree: PyTree) -> dict[str, Any]:
    """Return params and masks unchanged, other trees as dicts by leaf number."""
    if name in ("params", "masks"):
        return tree
    return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def _crc32(tree: PyTree) -> int:
    total = 0
    for leaf in jax.tree.leaves(tree):
        total = zlib.crc32(np.ascontiguousarray(leaf), total)
    return total
