"""Checkpoints of a run: saved atomically, restored exactly, checked against corruption.

`WORKDIR/checkpoints/STEP/` holds the parts of a state as separate items (params, masks, extras,
optimizer) and a JSON item `meta`. The last step is always kept, and the best one: the highest score
among those that have one.
"""

import contextlib
import logging
import os
import pathlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.pruning.step import TrainState
from sparsecap_jax.runs import processes
from sparsecap_jax.runs.checkpoint_items import (
    MisfitError,
    crc32,
    crc32_of_json,
    plain_item,
    read_item,
    read_meta,
)
from sparsecap_jax.runs.checkpoint_manager import item_handlers, open_manager
from sparsecap_jax.training.steps import state_items
from sparsecap_jax.types import PyTree

ITEMS = ("params", "masks", "extras", "optimizer")
_NICENESS = 10


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
        workdir: the run directory.
        read_only: whether only to read; nothing is created then.

    Attributes:
        corrupt: steps whose score could not be read; they are kept.

    Raises:
        CheckpointError: `read_only`, and there is no checkpoint; or metadata are corrupt.
    """

    def __init__(self, workdir: str | pathlib.Path, *, read_only: bool = False):
        self.directory = pathlib.Path(workdir).resolve() / "checkpoints"
        if read_only and not self.directory.is_dir():
            raise CheckpointError(f"{self.directory}: no checkpoints there")
        handlers = item_handlers(ITEMS)
        self._handlers = handlers  # used alone for reading: the manager reads all items' metadata
        self._scores: dict[int, float | None] = {}
        self.corrupt: set[int] = set()
        self._writes = not read_only
        self._executor = futures.ThreadPoolExecutor(1, initializer=_give_way)
        self._written: futures.Future | None = None
        self._writer = 0
        if not read_only:
            with processes.first_ahead():
                self.directory.mkdir(parents=True, exist_ok=True)
        self._manager = open_manager(self.directory, handlers, self._kept, read_only)
        if read_only and not self.steps():
            self._manager.close()
            raise CheckpointError(f"{self.directory}: no finished checkpoint there")

    def _kept(self, steps: Sequence[int]) -> set[int | None]:
        """Return the steps that stay: last, best, and corrupt ones, for the user to judge."""
        return {max(steps, default=None), self.best_step(steps), *self.corrupt}

    def steps(self) -> Sequence[int]:
        """Steps that have a finished checkpoint, ascending."""
        self._join()
        return sorted(self._manager.all_steps())

    def last_step(self) -> int | None:
        """The newest step, or None."""
        return max(self.steps(), default=None)

    def newest(self) -> int:
        """The newest step; a CheckpointError where there is none."""
        step = self.last_step()
        if step is None:
            raise CheckpointError(f"{self.directory}: no finished checkpoint there")
        return step

    def best_step(self, steps: Sequence[int] | None = None) -> int | None:
        """The earliest of the steps (by default all) of the highest score; None if none has one."""
        steps = self.steps() if steps is None else steps
        scores = {step: self.score(step) for step in sorted(steps)}
        scored = {step: score for step, score in scores.items() if score is not None}
        return max(scored, key=scored.__getitem__, default=None)

    def score(self, step: int) -> float | None:
        """Score of a step; None where it was saved without one, or is corrupt (with a warning)."""
        if step not in self._scores:
            try:
                self._scores[step] = self.meta(step)["score"]
            except CheckpointError as error:
                self._scores[step] = None
                if (self.directory / str(step)).exists():  # else a run that trains removed it
                    logging.getLogger(__name__).warning("%s", error)
                    self.corrupt.add(step)
        return self._scores[step]

    def save(
        self, state: TrainState, *, score: float | None, data: Any, info: Mapping[str, Any]
    ) -> None:
        """Save the whole state in the background (see `wait`).

        What fails there is raised by the next call that waits, this method among them.

        Args:
            state: the training state; its arrays must stay as they are, see `snapshot`.
            score: ranks it as best; None where it may not be the best.
            data: state of the data iterator, JSON-serialisable.
            info: further entries of `meta`, JSON-serialisable.
        """
        self._join()
        step, info = int(state.step), {**info}
        self._scores[step] = score
        if jax.process_count() > 1:  # all of them meet while they save, in the same order
            self._write(state, score, data, info)
        else:
            self._written = self._executor.submit(self._write_whole, state, score, data, info)

    def _write_whole(self, *args: Any) -> None:
        self._writer = threading.get_ident()
        self._write(*args)
        self._manager.wait_until_finished()

    def _write(
        self, state: TrainState, score: float | None, data: Any, info: dict[str, Any]
    ) -> None:
        items = {name: tree for name, tree in state_items(state).items() if jax.tree.leaves(tree)}
        trees = {name: plain_item(name, tree) for name, tree in items.items()}
        meta = {
            **info,
            "step": int(state.step),
            "score": score,
            "rng": np.asarray(jax.random.key_data(state.rng)).tolist(),
            "data": data,
            "crc32": {name: crc32(tree) for name, tree in trees.items()},
        }
        meta["crc32"]["meta"] = crc32_of_json(meta)
        items = {name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()}
        args = ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items)
        self._manager.save(meta["step"], args=args)

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict]:
        """Restore a whole state, bit for bit, and the meta data it was saved with.

        Args:
            like: a state of the same shapes and shardings (its values are not read).
            step: None for the last.

        Raises:
            CheckpointError: it is missing or corrupt, or its shapes differ from `like`.
        """
        step = self.newest() if step is None else step
        meta, items = self.meta(step), state_items(like)
        with self._hinting(step):
            for name, tree in items.items():
                if jax.tree.leaves(tree):
                    plain = self._read(step, name, plain_item(name, tree), meta)
                    items[name] = jax.tree.unflatten(
                        jax.tree.structure(tree), jax.tree.leaves(plain)
                    )
            with self._naming(step, "meta"):
                count = jax.numpy.asarray(meta["step"], jax.numpy.int32)
                rng = jax.random.wrap_key_data(jax.numpy.asarray(meta["rng"], jax.numpy.uint32))
        prune = like.prune.replace(masks=items["masks"], extras=items["extras"])
        return TrainState(count, items["params"], prune, items["optimizer"], rng), meta

    def restore_variables(self, step: int, expected: PyTree | None = None) -> dict[str, PyTree]:
        """Restore `{"params": ..., "masks": ...}` of a step as numpy arrays.

        Args:
            step: the step.
            expected: params whose paths and shapes it must have.

        Raises:
            CheckpointError: it is missing, corrupt, or of another model, or has over `MAX_WEIGHTS`
                weights.
        """
        meta, variables = self.meta(step), {}
        with self._hinting(step):
            for name in ("params", "masks"):
                stored = name == "params" or name in meta["crc32"]
                variables[name] = self._read(step, name, None, meta, expected) if stored else {}
                expected = variables["params"]  # masks have the shapes of their weights
        return variables

    def meta(self, step: int | None) -> dict[str, Any]:
        """Return the JSON part of a checkpoint.

        Raises:
            CheckpointError: it is missing or corrupt.
        """
        if step is None or step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"{self.directory}: no finished checkpoint of step {step}; there are: {there}"
            )
        with self._hinting(step):
            return self._read_meta(step)

    def hint(self, step: int) -> str:
        """Say how to continue without a step's checkpoint."""
        for other in reversed(self.steps()):
            if other != step and self._is_intact(other):
                do = (
                    f"continue from it (--from_step={other} of sparsecap train, --step={other} of "
                    "sparsecap evaluate)"
                    if other < step
                    else f"remove {self.directory / str(step)} to do without that of step {step}"
                )
                return f"; the checkpoint of step {other} is intact: {do}"
        return "; no other checkpoint is intact"

    def drop_after(self, step: int) -> None:
        """Remove the checkpoints of later steps."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def wait(self) -> None:
        """Block until everything saved so far is on disk."""
        self._join()
        self._manager.wait_until_finished()

    def check(self) -> None:
        """Raise what failed in the background so far; what is still being written is left to it."""
        if self._written is None:  # several processes write by the manager's own thread
            self._manager.check_for_errors()
        elif self._written.done():
            self._join()

    def _join(self) -> None:
        """Wait for what is written in the background, and raise what failed there."""
        if self._written and threading.get_ident() != self._writer:
            written, self._written = self._written, None
            written.result()

    def close(self) -> None:
        """Finish writing and release the directory; what could not be written is removed."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()
            self._manager.close()
            if self._writes and processes.is_first():
                self._remove_partial()

    def _remove_partial(self) -> None:
        """Remove half-written checkpoints; after one writer has failed, others may still write."""
        for _ in range(50):
            partial = list(self.directory.glob("*.orbax-checkpoint-tmp"))
            if not partial:
                return
            for folder in partial:
                shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.1)

    def _is_intact(self, step: int) -> bool:
        """Return whether all items of a step are as they were saved, and finite."""
        try:
            meta = self._read_meta(step)
            for name in {*ITEMS} & {*meta["crc32"]}:
                self._read(step, name, None, meta)
        except CheckpointError:
            return False
        return True

    def _read_meta(self, step: int) -> dict[str, Any]:
        with self._naming(step, "meta"):
            return read_meta(self.directory / str(step) / "meta", self._handlers["meta"])

    def _read(
        self,
        step: int,
        name: str,
        like: PyTree | None,
        meta: Mapping,
        expected: PyTree | None = None,
    ) -> PyTree:
        """Read an item, see `read_item`."""
        path, handler = self.directory / str(step) / name, self._handlers[name]
        with self._naming(step, name):
            return read_item(path, handler, meta["crc32"].get(name), like, expected)

    @contextlib.contextmanager
    def _naming(self, step: int, name: str) -> Iterator[None]:
        """Turn any error of reading an item into one that names it."""
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise what they like
            path, reason = self.directory / str(step) / name, str(error).strip() or repr(error)
            raise CheckpointError(
                f"{path}: corrupt or of another model: {reason.splitlines()[0][:200]}"
            ) from error

    @contextlib.contextmanager
    def _hinting(self, step: int) -> Iterator[None]:
        """Let errors say how to continue."""
        try:
            yield
        except CheckpointError as error:
            hint = "" if isinstance(error.__cause__, MisfitError) else self.hint(step)
            raise CheckpointError(f"{error}{hint}") from error


def _give_way() -> None:
    """Let this thread, and those that it starts, have the cores that training steps leave."""
    if sys.platform == "linux":  # elsewhere priorities are those of whole processes
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness, 19))


@jax.jit
def snapshot(state: TrainState) -> TrainState:
    """Copy a state on its devices, for `Checkpoints.save` to read while the state is trained on."""
    return jax.tree.map(jax.numpy.copy, state)
