"""Locks on what is being written, and what a killed writer left."""

import contextlib
import fcntl
import glob
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator
from typing import IO

from sparsecap_jax.errors import InUseError
from sparsecap_jax.files import named_errors, open_own


def remove_strays(folder: str | os.PathLike, *names: str) -> None:
    """Remove temporary files and folders that writing `names` left in `folder` when killed.

    To be called with the lock of what is written; names may be patterns.
    """
    for path in (path for name in names for path in pathlib.Path(folder).glob(f".{name}.????????")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: str | os.PathLike, *, folder: bool = True) -> Iterator[None]:
    """Keep other processes from writing to `path` while the block runs.

    The lock belongs to an open file, `PATH/.lock` or `.NAME.lock` next to a file: it ends with the
    process, however that ends. Where the file system has no locks, there is none. Temporary files
    that a killed process left of a file are removed.

    Args:
        path: folder or file, which need not exist.
        folder: whether it is a folder.

    Raises:
        InUseError: another process has it; the message says which.
        SparsecapError: the lock is no regular file.
    """
    path = pathlib.Path(path)
    lock = path / ".lock" if folder else path.with_name(f".{path.name}.lock")
    missing = [parent for parent in lock.parents if not parent.exists()]
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _open_locked(lock, path) as file:
            try:
                with contextlib.suppress(OSError):  # on a full disk it holds without a name
                    os.truncate(file.fileno(), 0)
                    os.write(
                        file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode()
                    )
                if not folder:
                    remove_strays(path.parent, glob.escape(path.name))
                yield
            finally:
                lock.unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):  # stays where it holds anything
            for parent in missing:
                parent.rmdir()


def _open_locked(lock: pathlib.Path, path: pathlib.Path) -> IO:
    while True:
        with named_errors(path):
            file = open_own(lock)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read(200).decode(errors="replace") or "another process"
            raise InUseError(
                f"{path}: {holder} is writing to it; expected to be the only one"
            ) from None
        except OSError:
            return file
        with contextlib.suppress(FileNotFoundError):  # removed by its last holder
            if os.path.samestat(os.fstat(file.fileno()), lock.lstat()):
                return file
        file.close()
