"""Files: locks between processes, and one line for what the system refuses."""

import errno
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys

import pytest

from sparsecap_jax.arrays import ArrayFile, read_npy
from sparsecap_jax.errors import DataError, InUseError, SparsecapError
from sparsecap_jax.files import (
    named_errors,
    new_folder,
    read_json,
    system_fault,
    write_atomically,
    write_json,
)
from sparsecap_jax.locks import locked, remove_strays
from sparsecap_jax.photos.images import open_photo
from sparsecap_jax.torch_files import load_torch_file

HOLD = (
    "import sys; from sparsecap_jax.locks import locked\n"
    "with locked(sys.argv[1], folder=bool(int(sys.argv[2]))):\n"
    "    print('locked', flush=True); sys.stdin.read()\n"
)


def hold(path, folder=True):
    """A process that holds a lock until its input ends."""
    command = [sys.executable, "-c", HOLD, str(path), str(int(folder))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    return process


@pytest.mark.parametrize("folder", [True, False])
def test_one_process_at_a_time(tmp_path, folder):
    path = tmp_path / "new" / "output"
    with hold(path, folder) as process:
        message = f"{path}: process {process.pid} on {socket.gethostname()} is writing to it"
        with pytest.raises(SparsecapError, match=f"^{message}; "), locked(path, folder=folder):
            pytest.fail("two at a time")
        with locked(path.with_name("other"), folder=folder):
            pass
        process.communicate("")
    assert process.returncode == 0 and not any(tmp_path.iterdir())
    with locked(path, folder=folder):
        assert path.parent.is_dir()


def test_a_killed_process_leaves_no_lock(tmp_path):
    with hold(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path), pytest.raises(SparsecapError, match="writing"), locked(tmp_path):
        pytest.fail("two at a time")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("name", ["link", "dangling", "pipe", "folder"])
def test_a_lock_that_is_no_file_of_ours_is_left_alone(tmp_path, folder, name):
    secret, lock = tmp_path / "secret", tmp_path / (".lock" if folder else ".out.lock")
    secret.write_text("keep")
    {
        "link": lambda: lock.symlink_to(secret),
        "dangling": lambda: lock.symlink_to(tmp_path / "new"),
        "pipe": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
    }[name]()
    kind = "a symbolic link" if lock.is_symlink() else "no regular file"
    message = f"^{lock}: {kind}; expected a file of its own, or none$"
    path = tmp_path if folder else tmp_path / "out"
    with pytest.raises(SparsecapError, match=message), locked(path, folder=folder):
        pytest.fail("locked")
    assert secret.read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == [lock.name, "secret"]


def test_a_lock_of_other_bytes_is_held_all_the_same(tmp_path):
    with locked(tmp_path):
        (tmp_path / ".lock").write_bytes(b"\xff\xfe")
        message = f"^{tmp_path}: \ufffd\ufffd is writing to it; expected to be the only one$"
        with pytest.raises(InUseError, match=message), locked(tmp_path):
            pytest.fail("two at a time")


def test_strays_of_a_killed_process_go_with_the_next_lock(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "kept").write_text("")
    (tmp_path / ".a[1].json.abcd1234").write_text("")
    (tmp_path / ".a[1].json.wxyz1234").mkdir()
    (tmp_path / ".a[1].json.link1234").symlink_to(other)
    (tmp_path / ".a1.json.abcd1234").write_text("")
    with locked(tmp_path / "a[1].json", folder=False):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a1.json.abcd1234", "other"]
    remove_strays(tmp_path, "*.json")
    assert [path.name for path in tmp_path.rglob("*")] == ["other", "kept"]


def test_a_full_disk_leaves_no_lock(tmp_path):
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, usual[1]))
    try:
        with locked(tmp_path / "x"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_no_fault(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path):
        pass


def fault_of(function, *arguments):
    with pytest.raises(OSError) as raised:
        function(*arguments)
    return system_fault(raised.value)


def test_what_cannot_be_written_is_named_with_the_reason(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert fault_of(write_json, file / "x.json", {}) == f"{file}: Not a directory"
    assert fault_of(write_json, file / "a" / "x.json", {}) == f"{file / 'a'}: Not a directory"
    assert fault_of(write_json, tmp_path, {}) == f"{tmp_path}: Is a directory"
    long = tmp_path / ("a" * 300)
    assert fault_of(write_json, long, {}) == f"{long}: File name too long"
    assert fault_of(write_json, "/proc/x.json", {}) == "/proc/x.json: No such file or directory"
    lock = locked("/proc/x.json", folder=False)
    assert fault_of(lock.__enter__) == "/proc/x.json: No such file or directory"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, mode):
    path, large = tmp_path / "x", "a" * 100_000
    path.write_text("before")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, usual[1]))
    try:
        with pytest.raises(OSError) as raised, write_atomically(path, mode) as file:
            file.write(large if mode == "w" else large.encode())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert system_fault(raised.value) == f"{path}: File too large"
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_faults_that_libraries_report_in_their_own_way():
    folder = "/runs/a/checkpoints/4.orbax-checkpoint-tmp/masks.orbax-checkpoint-tmp/d/4bd1"
    text = f'RESOURCE_EXHAUSTED: Failed writing: "{folder}": Failed to write: '
    error = ValueError(f"{text}No space left on device [os_error_code='28']")
    assert system_fault(error) == "/runs/a/checkpoints/4: No space left on device"
    outer = RuntimeError("in a thread")
    outer.__cause__ = error
    assert system_fault(outer) == "/runs/a/checkpoints/4: No space left on device"
    assert system_fault(ValueError("a bug")) is None
    assert system_fault(KeyError(pathlib.Path("No"))) is None


def test_a_library_that_cannot_write_names_no_file(tmp_path):
    with pytest.raises(OSError) as raised, named_errors(tmp_path / "x"):
        raise RuntimeError("RESOURCE_EXHAUSTED: write() failed: No space left on device")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "x"))
    with pytest.raises(DataError, match="other: Perm"), named_errors(tmp_path / "x"):
        raise DataError("other: Permission denied")


def test_a_fault_within_a_new_folder_names_the_folder_itself(tmp_path):
    path = tmp_path / "exported"
    with pytest.raises(DataError) as raised, new_folder(path) as folder:
        raise DataError(f"{folder / 'model.pth'}: cannot be written: No space left on device")
    assert str(raised.value) == f"{path}/model.pth: cannot be written: No space left on device"
    assert not list(tmp_path.iterdir())


def test_only_regular_files_are_read(tmp_path):
    """A pipe would wait for its writer, and `/dev/zero` has no end."""
    os.mkfifo(tmp_path / "42.npy")
    (tmp_path / "photo.png").symlink_to("/dev/zero")
    readers = (read_json, read_npy, ArrayFile, load_torch_file, open_photo)
    for read in readers:
        for path in tmp_path.iterdir():
            with pytest.raises(SparsecapError, match=f"{path.name}: .*"):
                read(path)
    with pytest.raises(DataError, match="file: 3 bytes; expected JSON of at most 2"):
        (tmp_path / "file").write_bytes(b"123")
        read_json(tmp_path / "file", max_bytes=2)
