"""The service in a process of its own: slow clients, early ends, signals, wrong flags."""

import contextlib
import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from service_cases import REPO, UNCLEAN
from service_process import Service, received, received_until

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.commands.serve import serve
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.photos.images import EXAMPLES

PHOTO = EXAMPLES / "cat.jpg"
HEAD = (
    b"POST /v1/caption HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    b"Content-Length: %d\r\n\r\n"
)


@pytest.fixture(scope="module")
def service():
    with Service("--upload_seconds=1.5") as service:
        yield service


def refused(answer, status, reason):
    """Check a raw answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert json.loads(body)["reason"] == reason
    assert not UNCLEAN.search(answer.decode())


def test_a_photo_gets_the_caption_of_the_captioner(service):
    status, body = service.ask("/v1/caption", PHOTO.read_bytes(), content_type="image/jpeg")
    (expected,) = Captioner.load("flickr8k").caption_photos(PHOTO)
    assert status == 200 and json.loads(body)["caption"] == expected.text


def test_it_answers_without_jax(service):
    maps = pathlib.Path(f"/proc/{service.process.pid}/maps").read_text()
    assert "numpy" in maps and "jaxlib" not in maps


def test_slow_bodies_and_slow_headers_end_in_time(service):
    start = time.monotonic()
    with service.connection() as body, service.connection() as head, service.connection() as none:
        body.sendall(HEAD % 100 + b"abc")
        head.sendall(HEAD[:40])
        refused(received(body), 408, "slow_upload")
        assert received(head) == received(none) == b""
    assert 1.5 <= time.monotonic() - start < 30


def test_headers_that_trickle_in_after_an_answer_end_in_time(service):
    with service.connection() as connection:
        start = time.monotonic()  # the service's clock begins before its answer is here
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert received_until(connection, b'"ok"}').startswith(b"HTTP/1.1 200 OK")
        connection.sendall(b"GET /hea")
        assert received(connection) == b""
    assert 1.5 <= time.monotonic() - start < 30


def test_a_body_that_ends_early_is_forgotten(service):
    for _ in range(3):
        with service.connection() as connection:
            connection.sendall(HEAD % 100 + b"abc")
    service.wait_for('sparsecap_refused_total{reason="incomplete_body"}', 3)
    assert service.metric("sparsecap_requests_working") == 0


def test_no_answer_to_what_is_no_http_says_more_than_that(service):
    for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / FTP/1.1\r\n\r\n"):
        with service.connection() as connection:
            connection.sendall(nonsense)
            assert received(connection).endswith(b"Invalid HTTP request received.")
    with service.connection() as connection:
        connection.sendall(b"GET /" + b"x" * 20_000)  # over 16 KiB of headers
        assert received(connection).startswith(b"HTTP/1.1 400 ")


def test_more_connections_than_allowed_are_turned_away():
    with contextlib.ExitStack() as opened:
        service = opened.enter_context(Service("--max_connections=3"))

        def connect(count):
            time.sleep(0.2)  # until the service has noticed what was closed
            return [opened.enter_context(service.connection()) for _ in range(count)]

        connect(2)
        assert service.ask("/healthz")[0] == 200  # the third
        connect(1)
        assert service.ask("/healthz") == (503, b"Service Unavailable")
        start = time.monotonic()
        *_, last = connect(9)
        assert received(last) == b""  # closed, though it has said nothing
        assert time.monotonic() - start < 5  # and not for being late


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_are_answered_before_the_end(number):
    photo = PHOTO.read_bytes()
    with Service() as service, service.connection() as connection, service.connection() as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert received_until(idle, b'"ok"}').startswith(b"HTTP/1.1 200 OK")
        connection.sendall(HEAD % len(photo) + photo[:1000])
        service.wait_for("sparsecap_requests_working", 1)
        service.process.send_signal(number)
        assert idle.recv(65536) == b""  # connections at rest are closed
        with pytest.raises(ConnectionRefusedError), service.connection():
            pass
        assert service.process.poll() is None
        connection.sendall(photo[1000:])
        answer = received(connection)
        output, errors = service.process.communicate(timeout=60)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK") and json.loads(body)["words"]
    assert (service.process.returncode, output) == (0, "stopped\n")
    assert "Traceback" not in errors


def test_a_port_that_is_taken_and_wrong_flags_are_one_line(service, tmp_path):
    commands = {
        (f"--port={service.port}",): f"error: cannot listen on 127.0.0.1 port {service.port}: Addr",
        ("--max_batch=0",): "error: limits.max_batch is 0; expected at least 1 and at most 1024",
        (f"--site={tmp_path}",): f"error: site: {tmp_path}/index.html: no such file; expected a fr",
    }
    for flags, expected in commands.items():
        command = [sys.executable, str(REPO / "launch/serve.py"), *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and done.stderr.startswith(expected), done.stderr
        assert done.stderr.count("\n") == 1


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    expected = r"the service needs starlette, .*: pip install 'sparsecap_jax\[serve\]'"
    with pytest.raises(ConfigError, match=expected):
        serve("flickr8k-mini")
