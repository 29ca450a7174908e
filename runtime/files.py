"""Read untrusted files without following links or blocking, and write strict JSON."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

__all__ = ["digest_regular", "dump_json", "open_regular", "read_regular"]

_CHUNK = 2**20


@contextlib.contextmanager
def open_regular(path: Path, limit: int) -> Iterator[IO[bytes]]:
    """Open a regular file of at most `limit` bytes. Raises `OSError`, also for links, devices and larger files."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if path.is_symlink():
        raise OSError(0, "it is a link")
    handle = os.open(path, flags)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is not a regular file")
        if status.st_size > limit:
            raise OSError(0, f"it has {status.st_size} bytes, more than {limit}")
        yield file


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Raises `OSError` like `open_regular`."""
    with open_regular(path, limit) as file:
        content = file.read(limit + 1)
    if len(content) > limit:  # it has grown meanwhile
        raise OSError(0, f"it has more than {limit} bytes")
    return content


def digest_regular(path: Path, size: int) -> str | None:
    """sha256 of a regular file of `size` bytes, read in small parts; None if it has fewer. Raises `OSError`."""
    digest, left = hashlib.sha256(), size
    with open_regular(path, size) as file:
        if os.fstat(file.fileno()).st_size != size:
            return None
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
    return None if left else digest.hexdigest()


def dump_json(content: Any) -> str:
    """Indented JSON with a final newline. Infinity and NaN become null, because JSON does not have them."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(content), indent=2, default=str, allow_nan=False) + "\n"
