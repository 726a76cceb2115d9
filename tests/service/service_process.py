"""A service in a process of its own, and raw connections to it."""

import contextlib
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

REPO = pathlib.Path(__file__).parents[2]


class Service:
    """A running `launch/serve.py`.

    Attributes:
        process: its process.
        port: the port that it listens on.
    """

    def __init__(self, *flags, python=sys.executable):
        command = [python, str(REPO / "launch/serve.py"), "--port=0", *flags]
        environment = {**os.environ, "PYTHONPATH": str(REPO)}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()
        found = re.fullmatch(r"listening on http://127\.0\.0\.1:(\d+)\n", line)
        if not found:
            raise RuntimeError(f"{line}{self.process.communicate()[1]}")
        self.port = int(found[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """End the process if it still runs."""
        self.process.kill()
        self.process.communicate()

    @property
    def url(self):
        """Address of the service."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path, body=None, **headers):
        """Return status and body of an answer; underscores of headers are dashes."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as answer:
            with answer:
                return answer.code, answer.read()

    def metric(self, name):
        """Return the value of a metric."""
        text = self.ask("/metrics")[1].decode()
        return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])

    def wait_for(self, name, least, seconds=60):
        """Wait until a metric has reached a value."""
        deadline = time.monotonic() + seconds
        while self.metric(name) < least:
            assert time.monotonic() < deadline, f"{name} stays below {least}"
            time.sleep(0.01)

    @contextlib.contextmanager
    def connection(self):
        """Yield a socket."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            yield connection

    def stop(self, number):
        """Send a signal; return status, output and errors of the process once it has ended."""
        self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=60)
        return self.process.returncode, output, errors


def received(connection):
    """Return all that arrives until the other side closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def received_until(connection, end):
    """Return what arrives up to some bytes."""
    parts = b""
    while not parts.endswith(end):
        part = connection.recv(65536)
        assert part, f"closed after {parts!r}"
        parts += part
    return parts
