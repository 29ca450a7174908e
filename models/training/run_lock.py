"""One process at a time in a run folder, and what a killed one has left there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import TrainingError

__all__ = ["run_lock"]

_NAME = "run.lock"
_LEFT = (".*.tmp", "*.pt.tmp", "*.safetensors.tmp")
"""Names of half-written files, of this version and of earlier ones."""


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder, which is made if it is missing, and remove what a killed run has left half-written in it.

    The lock is the system's (`flock` on run.lock), so it ends with its process, however that ends. The process id in the
    file is for people. The file is removed at the end, and so is a folder that has stayed empty.

    `TrainingError` if another process holds the folder, or it cannot be written.
    """
    made = not folder.exists()
    try:
        file = _locked(folder)
    except OSError as error:
        raise TrainingError(f"cannot write the run folder {folder}: {error.strerror or error}") from error
    with file:
        for path in (path for pattern in _LEFT for path in folder.glob(pattern)):
            with contextlib.suppress(OSError):
                _remove_if_dead(path)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (folder / _NAME).unlink()
                if made:
                    folder.rmdir()


def _locked(folder: Path) -> BinaryIO:
    """The lock file, locked, with this process's id in it. Raises `TrainingError` or `OSError`."""
    path = folder / _NAME
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = file.read(20).decode("ascii", "replace").strip()
            file.close()
            raise TrainingError(f"another process{f' ({owner})' if owner else ''} is training in {folder}") from None
        except OSError:  # a file system without locks
            pass
        # The owner before us may have removed the file between our opening and our locking it.
        if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(file.fileno())):
            file.truncate(0)
            file.write(b"%d\n" % os.getpid())
            return file
        file.close()


def _remove_if_dead(path: Path) -> None:
    """Remove a temporary file that no process is writing: writers lock theirs (`rdsr.atomic`). Raises `OSError`."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    finally:
        os.close(handle)
