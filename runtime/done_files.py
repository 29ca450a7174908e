"""The record of finished files, beside the outputs of a job: what an interrupted job need not do again."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..atomic import TEMPORARY
from .errors import OutputError
from .inputs import reason_of

__all__ = ["RECORD_NAME", "DoneFiles", "file_digest", "remove_leftovers"]

RECORD_NAME = ".rdsr-done.jsonl"


def file_digest(path: Path) -> str:
    """sha256 of a regular file's content, in hexadecimal digits. Raises `OSError`, also for what is no regular file."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "it is no regular file")
        return hashlib.file_digest(file, "sha256").hexdigest()


class DoneFiles:
    """The record of one output folder: a JSON object in each line of a hidden file. Safe to use from many threads.

    A line is appended by one write and flushed to the disk before its output gets its final name. So a process that is
    killed at any moment has recorded everything that it finished. An output counts as done if it has the recorded digest:
    one that was recorded, but did not get its name, does not.
    """

    def __init__(self, folder: Path) -> None:
        """`folder`: that of the outputs. It need not exist before the first line is written."""
        self._folder = folder
        self.path = folder / RECORD_NAME
        self._lock = threading.Lock()
        self._entries: dict[str, list[dict[str, Any]]] = {}

    def can_be_written(self) -> bool:
        """Whether lines can be appended. A missing file, or folder, is made when the first line is."""
        try:
            with self._opened(os.O_RDWR | os.O_APPEND):
                return True
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def read(self) -> None:
        """Read what earlier jobs have recorded. Lines that are truncated or foreign count for nothing.

        Raises `OutputError` if there is something that cannot be read.
        """
        try:
            with self._opened(os.O_RDONLY) as handle, os.fdopen(handle, "rb", closefd=False) as file:
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot read {self.path}: {reason_of(error)}") from error
        for line in lines:
            entry: Any = None
            with contextlib.suppress(ValueError, RecursionError):
                entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("output"), str) and isinstance(entry.get("files"), dict):
                self._entries.setdefault(entry["output"], []).append(entry)

    def has(self, output: Path, source: Path, made_by: Mapping[str, Any]) -> bool:
        """Whether `source`, as it is now, was made into `output` in this way, and all files of the result are whole."""
        entries = [e for e in self._entries.get(self._name(output), ()) if e.get("made_by") == made_by and e["files"]]
        entries = [e for e in entries if all(os.path.lexists(self._folder / name) for name in e["files"])]
        try:
            digest = file_digest(source) if entries else ""
            return any(entry.get("input_sha256") == digest and self._whole(entry["files"]) for entry in entries)
        except (OSError, ValueError):  # the picture itself will say what is wrong
            return False

    def _whole(self, files: Mapping[str, Any]) -> bool:
        return all(file_digest(self._folder / name) == digest for name, digest in files.items())

    def add(self, output: Path, input_digest: str, made_by: Mapping[str, Any], files: Mapping[Path, str]) -> None:
        """Record that an input became `output`. `files`: what was written for it, each with its digest; usually `output`.

        Raises `OutputError` if the line cannot be written.
        """
        entry = {
            "output": self._name(output),
            "input_sha256": input_digest,
            "made_by": made_by,
            "files": {self._name(path): digest for path, digest in files.items()},
        }
        # Names that are no Unicode become escapes, and come back as they were.
        line = json.dumps(entry).encode("ascii") + b"\n"
        try:
            with self._lock, self._opened(os.O_RDWR | os.O_APPEND | os.O_CREAT) as handle:
                size = os.fstat(handle).st_size
                if size and os.pread(handle, 1, size - 1) != b"\n":
                    line = b"\n" + line  # a process was killed, or a disk was full, in the middle of the last line
                if os.write(handle, line) != len(line):
                    raise OutputError(f"cannot write {self.path}: the disk is full")
                os.fsync(handle)
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot write {self.path}: {reason_of(error)}") from error

    @contextlib.contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        """Descriptor of the record. Raises `OSError`, also for links and for what is no regular file."""
        handle = os.open(self.path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(0, "it is no regular file")
            yield handle
        finally:
            os.close(handle)

    def _name(self, path: Path) -> str:
        return os.path.relpath(path, self._folder)


def remove_leftovers(folders: Iterable[Path], before: float) -> None:
    """Remove temporary files of killed runs: those older than `before` (seconds since 1970) that nobody has locked."""
    for folder in folders:
        with contextlib.suppress(OSError):
            for path in list(folder.glob(TEMPORARY)):
                with contextlib.suppress(OSError):
                    _remove_if_dead(path, before)


def _remove_if_dead(path: Path, before: float) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if stat.S_ISREG(status.st_mode) and status.st_mtime < before:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a running writer holds the lock: this raises `OSError`
            os.unlink(path)
    finally:
        os.close(handle)
