"""Stopping on SIGTERM and SIGINT: what is done is kept, then one exception ends the program.

Inside `on_signals`, the first signal raises `Stopped`: at once, or, where a loop keeps its work, at
the loop's next safe point. The second one ends the process at once.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

CONTINUE = "run the same command to continue"
# The same command would drop what was saved since.
CONTINUE_LAST = "run the same command without --from_step to continue"
_DEFAULTS: dict[signal.Signals, Any] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}
_received: signal.Signals | None = None
_deferring = 0


class Stopped(SystemExit):
    """The program was asked to stop; its exit status is 128 plus the signal's number, as in shells.

    Args:
        number: the signal.
        place: where it stopped, such as " at step 7".
        advice: what the user may do next.
    """

    def __init__(self, number: signal.Signals, place: str = "", advice: str = ""):
        super().__init__(f"stopped{place} by {number.name}" + (f"; {advice}" if advice else ""))
        self.code = 128 + number


@contextlib.contextmanager
def on_signals(*, last: bool = False) -> Iterator[None]:
    """Catch SIGTERM and SIGINT in the main thread while the block runs; print why it stopped.

    Signals that are ignored (as under `nohup`) or have a handler already, such as that of a block
    around this one, are left alone.

    Args:
        last: whether nothing but the end of the program follows, which a signal then only hastens:
            libraries' callbacks at exit would print or swallow a KeyboardInterrupt.
    """
    global _received
    changed = [number for number, usual in _DEFAULTS.items() if signal.getsignal(number) is usual]
    if _received or not changed:  # a block around this one has them
        yield
        return

    alarm: tuple[Any, Any] | None = None

    def note(number: int, frame: Any) -> None:
        nonlocal alarm
        global _received
        _received = signal.Signals(number)
        for each in changed:
            signal.signal(each, signal.SIG_DFL)
        alarm = signal.setitimer(signal.ITIMER_REAL, 0), signal.signal(signal.SIGALRM, _stop)
        _stop(number, frame)

    for number in changed:
        signal.signal(number, note)
    try:
        yield
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        raise
    finally:
        if alarm:
            timer, handler = alarm
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, *timer)
        for number in changed:
            signal.signal(number, signal.SIG_DFL if last else _DEFAULTS[number])
        _received = None


def received() -> signal.Signals | None:
    """Return the signal that asked to stop, or None."""
    return _received


def check(place: str = "", advice: str = "") -> None:
    """Raise `Stopped` if a signal came; its arguments as there."""
    if _received:
        raise Stopped(_received, place, advice)


def _stop(number: int, frame: Any) -> None:
    """Raise `Stopped`, unless a loop is to do so; a compiled module that is loading would abort."""
    while frame and not frame.f_code.co_qualname.startswith("ExtensionFileLoader."):
        frame = frame.f_back
    if frame:
        again()
    elif not _deferring:
        check()


def again() -> None:
    """Raise `Stopped` in a moment: a callback of a library has swallowed it, or would."""
    signal.setitimer(signal.ITIMER_REAL, 0.1)


@contextlib.contextmanager
def deferred(advice: str = "") -> Iterator[None]:
    """Let signals wait for a `check` while the block runs, at the latest for the one at its end."""
    global _deferring
    check(advice=advice)
    _deferring += 1
    try:
        yield
    finally:
        _deferring -= 1
    if not _deferring:
        check(advice=advice)


def between(items: Iterable[Any], advice: str = CONTINUE) -> Iterator[Any]:
    """Yield `items`; a signal stops the loop over them between two items, and nowhere else."""
    with deferred(advice):
        for item in items:
            yield item
            check(advice=advice)


def follow_parent(*_: Any) -> None:
    """Leave signals to the parent process, and end when it does: for worker processes."""
    for number in _DEFAULTS:  # a terminal's Ctrl-C, or a scheduler's SIGTERM, reaches them as well
        signal.signal(number, signal.SIG_IGN)

    def wait() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
