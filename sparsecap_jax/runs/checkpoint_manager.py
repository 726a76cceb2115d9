"""Orbax's manager as `Checkpoints` needs it: its items, what it keeps, how processes wait."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.runs import processes
from sparsecap_jax.runs.checkpoint_items import check_sizes


def item_handlers(items: Sequence[str]) -> dict[str, Any]:
    """Return handlers of the items of a checkpoint: trees, and the JSON item `meta`."""
    options = _together()
    trees = {name: ocp.PyTreeCheckpointHandler(multiprocessing_options=options) for name in items}
    return {**trees, "meta": ocp.JsonCheckpointHandler()}


def open_manager(
    directory: pathlib.Path,
    handlers: Mapping[str, Any],
    kept: Callable[[Sequence[int]], Collection[int | None]],
    read_only: bool,
) -> ocp.CheckpointManager:
    """Open the manager of a folder of checkpoints.

    Args:
        directory: the folder, which exists.
        handlers: see `item_handlers`.
        kept: of ascending steps, those that stay when another one is saved.
        read_only: whether only to read.

    Raises:
        CheckpointError: metadata are corrupt.
    """
    options = ocp.CheckpointManagerOptions(
        preservation_policy=_Keep(kept),
        read_only=read_only,
        create=False,
        cleanup_tmp_directories=not read_only,
        multiprocessing_options=_together(),
    )
    try:
        with contextlib.suppress(FileNotFoundError):  # a run that trains removes steps
            check_sizes(directory.glob("*/*"))
        return ocp.CheckpointManager(
            directory, options=options, item_names=tuple(handlers), item_handlers=dict(handlers)
        )
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        reason = str(error).strip() or repr(error)
        raise CheckpointError(
            f"{directory}/*/_CHECKPOINT_METADATA: one is corrupt: {reason.splitlines()[0][:200]}"
        ) from error


def _together() -> ocp.options.MultiprocessingOptions:
    """Return options by which several processes wait for each other without their devices.

    By default Orbax waits by collectives, which have no time limit and queue with training steps.
    """
    several = processes.count() > 1
    members = set(range(processes.count())) if several else None
    return ocp.options.MultiprocessingOptions(active_processes=members)


@dataclasses.dataclass(frozen=True)
class _Keep(checkpoint_managers.PreservationPolicy):
    kept: Callable[[Sequence[int]], Collection[int | None]]

    def should_preserve(self, checkpoints, *, context) -> Sequence[bool]:
        """Decide for each checkpoint, oldest first, whether it stays."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = self.kept(steps)
        return [step in kept for step in steps]
