"""Write a file whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import OutputError

__all__ = ["TEMPORARY", "atomic_file", "atomic_write"]

TEMPORARY = ".rdsr-*.tmp"
"""Names of temporary files. Each is locked (`flock`) while its process lives."""


@contextlib.contextmanager
def atomic_file(path: Path, before_commit: Callable[[BinaryIO], None] | None = None) -> Iterator[BinaryIO]:
    """A new file, open for reading and writing, that takes the name `path` when the block ends without an error.

    It has no name until then, where the file system can do that, so a killed process leaves nothing. It is flushed to the
    disk first. A missing folder is made. A link is followed. A file that is replaced hands on its mode. `before_commit` is
    called when the content is complete, before the file takes its name.

    If anything fails, `path` is as it was. Errors of the operating system in here become `OutputError`; the block's own
    errors reach the caller unchanged.
    """
    if "\0" in str(path):
        raise OutputError(f"cannot write {str(path)!r}: a name cannot hold a null character")
    temporary: Path | None = None
    with _named(path):
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        target.parent.mkdir(parents=True, exist_ok=True)
        # The temporary name does not contain the target's, which may already have the greatest possible length.
        name = target.parent / f".rdsr-{uuid.uuid4().hex[:12]}.tmp"
        handle, nameless = _new_file(target.parent, name)
        temporary = None if nameless else name
    file = os.fdopen(handle, "w+b")
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file
        with _named(path):
            file.flush()
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(handle, stat.S_IMODE(target.stat().st_mode))
            os.fsync(handle)
        if before_commit is not None:
            before_commit(file)
        with _named(path):
            if nameless:
                _give_name(handle, name)
                temporary = name
            os.replace(name, target)
            temporary = None
    finally:
        with contextlib.suppress(OSError):  # what is still in the buffer of a file that failed
            file.close()
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the operating system become `OutputError`, which names the file."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _new_file(folder: Path, name: Path) -> tuple[int, bool]:
    """(descriptor, whether it has no name)."""
    flags = os.O_RDWR | os.O_CLOEXEC
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # file systems that have no nameless files
            return os.open(folder, flags | os.O_TMPFILE, 0o666), True
    return os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o666), False  # the kernel applies the umask


def _give_name(handle: int, name: Path) -> None:
    folder = os.open(name.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # With descriptors of folders, Python calls linkat(2), which can follow the link that /proc shows.
        os.link(f"/proc/self/fd/{handle}", name.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def atomic_write(path: Path, content: bytes) -> None:
    """Write a whole file, see `atomic_file`. Raises `OutputError`."""
    with atomic_file(path) as file, _named(path):
        file.write(content)
