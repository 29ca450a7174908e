"""Open a user's file without blocking."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

__all__ = ["open_regular", "read_small", "reason_of"]


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened for reading; links are followed. `OSError` for all else: pipes block, devices never end."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:
        raise OSError(0, "its name holds a null character") from error
    file = os.fdopen(handle, "rb", buffering=0)  # a buffer would not notice who else moves the position
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise OSError(0, "it is no regular file")
    return file


def read_small(path: Path, limit: int = 2**20) -> bytes:
    """The content of a regular file of at most `limit` bytes; `OSError` for all else."""
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > limit:
            raise OSError(0, f"it has {size} bytes, more than {limit}")
        return file.read(limit)


def reason_of(error: OSError) -> str:
    """What the operating system, or `open_regular`, says about a file."""
    return error.strerror or str(error)
