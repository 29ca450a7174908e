"""Reading untrusted files without following or blocking, writing files whole or not at all, and strict JSON."""

from __future__ import annotations

import json
import math
import os
import stat
import uuid
from pathlib import Path
from typing import Any

from .errors import OutputError

__all__ = ["atomic_write", "dump_json", "read_regular"]


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; links, pipes and devices are refused.

    Raises `OSError`, also (with a message of its own) for what is not a regular file or is larger.
    """
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
        return file.read()


def dump_json(content: Any) -> str:
    """Indented JSON with a final newline; infinity and NaN, which JSON does not have, become null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(content), indent=2, default=str, allow_nan=False) + "\n"


def atomic_write(path: Path, content: bytes) -> None:
    """Write to a temporary name in the same folder and rename. Raises `OutputError`; nothing partial stays."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex[:12]
        candidate = path.parent / f".{name}.tmp"  # not with the target's name, which may be as long as names can be
        handle = os.open(candidate, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # the kernel applies the umask
        temporary = candidate
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
        temporary = None
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
