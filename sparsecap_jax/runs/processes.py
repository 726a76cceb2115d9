"""Several processes that work as one: what they agree on.

Devices exchange tensors; what the hosts have to agree on (sizes, signals, captions) goes through
the key-value store of JAX's coordination service, which belongs to the first process. A program
that is not connected (`connection.join_job`) is one process, and none of this costs it anything.

All functions but `count`, `index` and `is_first` must be called by all processes in the same order.
"""

import contextlib
import itertools
import json
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # Orbax uses it too: there is no public way to the store
from jax.sharding import Sharding

from sparsecap_jax import stopping
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.training.sharding import MeshConfig
from sparsecap_jax.types import PyTree

T = TypeVar("T")
_ROUND_MS = 1000  # of waiting, between which signals are handled; doubled for slow transfers
_LONGEST_MS = 60_000
_round = itertools.count()
_unread: list[int] = []  # rounds whose text of this process others may have to read
_stopping = False


def count() -> int:
    """Return the number of processes."""
    return jax.process_count()


def index() -> int:
    """Return the number of this process, from 0."""
    return jax.process_index()


def is_first() -> bool:
    """Return whether this process writes logs, summaries and results."""
    return index() == 0


def exchange(text: str, *, to_all: bool = True) -> list[str]:
    """Return the texts that the processes call this with, by their numbers.

    It waits for all; a process that dies ends the others, see `connection.Connection`.

    Args:
        text: that of this process.
        to_all: whether all need the texts; otherwise the first one gets them, and the others [],
            without waiting. To be followed by an exchange with all, which frees the texts.
    """
    if count() == 1:
        return [text]
    client: Any = distributed.global_state.client
    number = next(_round)
    client.key_value_set_bytes(_key(number, index()), text.encode())
    _unread.append(number)
    if not to_all and not is_first():
        return []
    texts = [_wait_for(client, _key(number, process)).decode() for process in range(count())]
    if to_all:  # all have read those of the rounds before, as they are in this one
        for earlier in _unread[:-1]:
            client.key_value_delete(_key(earlier, index()))
        del _unread[:-1]
    return texts


def wait_for_all() -> None:
    """Wait until all processes are here.

    Before the first run of a program with collectives: compiling takes some longer than others, and
    gloo connects them within 30 seconds or gives up.
    """
    exchange("")


def gather(value: T) -> list[T]:
    """Return the values, of JSON types, that the processes call this with."""
    return [value] if count() == 1 else list(map(json.loads, exchange(json.dumps(value))))


def gather_on_first(value: T) -> list[T]:
    """Return the values, of JSON types, of all processes in the first one; [] in the others.

    To be followed by something that all wait for, see `exchange`.
    """
    if count() == 1:
        return [value]
    return list(map(json.loads, exchange(json.dumps(value), to_all=False)))


def check_same(values: Mapping[str, Any], advice: str) -> None:
    """Check that all processes call this with the same values.

    Args:
        values: values of JSON types by the names that a message has for them.
        advice: what to do where they differ.

    Raises:
        ConfigError: they differ; it names which.
    """
    everywhere = gather(dict(values))  # as JSON has them: tuples are lists
    names = sorted({name for each in everywhere for name in each})
    first, *others = everywhere
    differing = [name for name in names if any(one.get(name) != first.get(name) for one in others)]
    if differing:
        raise ConfigError(f"the processes differ in {', '.join(differing)}; {advice}")


def largest(number: int) -> int:
    """Return the largest of the numbers that the processes call this with."""
    return max(gather(number))


def on_first(work: Callable[[], T]) -> T:
    """Return what `work` returns in the first process, of JSON types, while the others wait."""
    if is_first():
        value = work()
        exchange("" if count() == 1 else json.dumps(value))
        return value
    return json.loads(exchange("")[0])


@contextlib.contextmanager
def first_ahead() -> Iterator[None]:
    """Run a block in the first process, then in the others: what it makes of files is there."""
    if not is_first():
        exchange("")
    yield
    if is_first():
        exchange("")


def received_signal() -> signal.Signals | None:
    """Return the signal that asked any of the processes to stop; None where there is none."""
    global _stopping
    if count() == 1:
        return stopping.received()
    number = largest(stopping.received() or 0)
    _stopping = _stopping or bool(number)
    return signal.Signals(number) if number else None


def between(items: Iterable[T], advice: str = stopping.CONTINUE) -> Iterator[T]:
    """Yield `items`, equally many in all processes; a signal to any of them stops all of them.

    They stop between the same two items, as `stopping.between` does in one process.
    """
    with stopping.deferred(advice):
        for item in items:
            yield item
            if number := received_signal():
                raise stopping.Stopped(number, advice=advice)


def agreed_to_stop() -> bool:
    """Return whether `received_signal` has returned a signal, in all processes."""
    return _stopping


def deal_out(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield this process' parts of `items`, cut into parts of `size` that are dealt out in turn.

    All processes get equally many, the last ones empty where need be.
    """
    for start in range(0, len(items), size * count()):
        first = start + size * index()
        yield items[first : first + size]


def to_devices(tree: PyTree, sharding: Sharding) -> PyTree:
    """Put arrays on the devices of all processes.

    Args:
        tree: arrays of the host; of axes that are split, each process has its part.
        sharding: of the whole arrays.
    """
    if count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def placed(tree: PyTree, shardings: PyTree) -> PyTree:
    """Put arrays and keys, equal in all processes, where their shardings say."""
    if count() == 1:
        return jax.device_put(tree, shardings)

    def put(leaf: jax.Array, sharding: Sharding) -> jax.Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            implementation = jax.random.key_impl(leaf)
            data = put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=implementation)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)

    return jax.tree.map(put, tree, shardings)


def check_devices(devices: int, mesh: MeshConfig) -> None:
    """Refuse what several processes cannot do yet.

    Each takes part with all its devices, has whole images of a batch, and reads all weights where
    it captions or saves them.

    Raises:
        ConfigError: a field asks for something else.
    """
    if count() == 1:
        return
    if devices not in (0, jax.device_count()):
        raise ConfigError(
            f"config.train.devices is {devices}; expected 0 with {count()} processes: each takes "
            "part with all its devices"
        )
    if (mesh.model, mesh.sharding, mesh.rules) != (1, "replicated", ()):
        raise ConfigError(
            f"config.mesh: weights are split; expected model 1, 'replicated' and no rules with "
            f"{count()} processes, each of which holds all weights"
        )


def _key(number: int, process: int) -> str:
    return f"sparsecap/exchange/{number}/{process}"


def _wait_for(client: Any, key: str) -> bytes:
    milliseconds = _ROUND_MS
    while True:
        try:
            return client.blocking_key_value_get_bytes(key, milliseconds)
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("DEADLINE_EXCEEDED"):
                raise
        milliseconds = min(2 * milliseconds, _LONGEST_MS)
