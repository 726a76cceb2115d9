"""The standard error stream of libraries, held back where one line says the same.

XLA's client of the coordination service ends the process by `abort`, with a page of text, at the
moment when it loses the service. JAX offers no way to be told instead.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

_ENDINGS = (b"coordination_service", b"JAX distributed service")


class NativeErrors:
    """Passes on what libraries print, up to the text with which XLA ends the process.

    Python's own `sys.stderr` is not touched.

    Args:
        aborted: called in place of such an end.
    """

    def __init__(self, aborted: Callable[[], None]):
        self._aborted, self._held = aborted, b""
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
        """Give the stream back, with what was held back."""
        ctypes.CDLL(None).signal(signal.SIGABRT, None)  # the default
        os.dup2(self._real, 2)  # closes the only end that is written to
        self._thread.join()
        ours, sys.stderr = sys.stderr, self._usual
        ours.close()
        os.write(self._real, self._held)
        os.close(self._real)
        os.close(self._read)

    def _forward(self) -> None:
        while chunk := os.read(self._read, 2**16):
            if self._held or any(ending in chunk for ending in _ENDINGS):
                self._held += chunk
            else:
                os.write(self._real, chunk)

    def _on_abort(self, number: int) -> None:
        """End the process as `aborted` does, or as another library would."""
        os.dup2(self._real, 2)
        self._thread.join(1.0)
        if any(ending in self._held for ending in _ENDINGS):
            self._aborted()
        else:
            os.write(self._real, self._held)
        os._exit(128 + number)
