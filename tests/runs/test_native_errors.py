"""What libraries print on the standard error stream while processes are connected."""

import subprocess
import sys

import pytest

SCRIPT = """
import os, subprocess, sys, time
from sparsecap_jax.runs.native_errors import NativeErrors
errors = NativeErrors(lambda: None)
child = subprocess.Popen(["sleep", "60"])  # it inherits the stream
try:
    os.write(2, b"plain\\n")
    time.sleep(0.2)
    os.write(2, b"coordination_service: an error\\n")
    start = time.monotonic()
    if sys.argv[1] == "close":
        errors.close()
        assert time.monotonic() - start < 20
        os.write(2, b"after\\n")
    else:
        time.sleep(3)
finally:
    child.kill()
os._exit(0)
"""


@pytest.mark.parametrize(("end", "last"), [("close", "after\n"), ("exit", "")])
def test_errors_that_end_nothing_are_printed(end, last):
    """In the end, whatever child processes do, or when no fatal one follows within a second."""
    command = [sys.executable, "-c", SCRIPT, end]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=True)
    assert done.stderr == f"plain\ncoordination_service: an error\n{last}"
