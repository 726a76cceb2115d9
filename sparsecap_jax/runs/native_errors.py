"""The standard error stream of libraries, held back where one line says the same.

XLA's client of the coordination service ends the process by `abort`, with a page of text, at the
moment when it loses the service. JAX offers no way to be told instead.
"""

import ctypes
import os
import select
import signal
import sys
import threading
from collections.abc import Callable

_ENDINGS = (b"coordination_service", b"JAX distributed service")
_FATAL = b"Terminating process because the JAX distributed service"
_SECONDS = 1.0  # between the first line about the service and the fatal one


class NativeErrors:
    """Passes on what libraries print, up to the text with which XLA ends the process.

    Lines about the service are held back for a second, in which the fatal one may follow. Python's
    own `sys.stderr` is not touched.

    Args:
        aborted: called in place of such an end.
    """

    def __init__(self, aborted: Callable[[], None]):
        self._aborted, self._held, self._closed = aborted, b"", False
        sys.stderr.flush()
        self._real, self._usual = os.dup(2), sys.stderr
        self._read, write = os.pipe()
        os.dup2(write, 2)
        os.close(write)
        ours = os.dup(self._real)
        sys.stderr = os.fdopen(ours, "w", 1, encoding="utf-8", errors="backslashreplace")
        self._thread = threading.Thread(target=self._forward, name="stderr", daemon=True)
        self._thread.start()
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._on_abort)  # must stay alive
        ctypes.CDLL(None).signal(signal.SIGABRT, self._handler)

    def close(self) -> None:
        """Give the stream back, with what was held back.

        A child process that has inherited it may outlive this; what it prints is still passed on.
        """
        ctypes.CDLL(None).signal(signal.SIGABRT, None)  # the default
        self._closed = True
        os.dup2(self._real, 2)  # closes the only end that this process writes to
        self._thread.join(_SECONDS)
        ours, sys.stderr = sys.stderr, self._usual
        ours.close()
        self._release()
        if not self._thread.is_alive():
            os.close(self._real)
            os.close(self._read)

    def _forward(self) -> None:
        ready = select.poll()
        ready.register(self._read, select.POLLIN)
        while True:
            waits = self._held and _FATAL not in self._held
            if not ready.poll(1000 * _SECONDS if waits else None):
                self._release()
                continue
            if not (chunk := os.read(self._read, 2**16)):
                return
            ends = self._held or any(ending in chunk for ending in _ENDINGS)
            if ends and not self._closed:
                self._held += chunk
            else:
                os.write(self._real, chunk)

    def _release(self) -> None:
        """Print what was held back."""
        held, self._held = self._held, b""
        os.write(self._real, held)

    def _on_abort(self, number: int) -> None:
        """End the process as `aborted` does, or as another library would."""
        os.dup2(self._real, 2)
        self._thread.join(_SECONDS / 2)
        if any(ending in self._held for ending in _ENDINGS):
            self._aborted()
        else:
            self._release()
        os._exit(128 + number)
