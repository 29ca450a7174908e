"""Write a file whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from .errors import OutputError

__all__ = ["atomic_write"]


def atomic_write(path: Path, content: bytes) -> None:
    """Write to a temporary name in the same folder, flush it to the disk, and rename it to `path`.

    A missing folder is made. If it fails, it raises `OutputError`, leaves nothing partial, and `path` is as it was.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The temporary name does not contain the target's, which may already have the greatest possible length.
        candidate = path.parent / f".{uuid.uuid4().hex[:12]}.tmp"
        handle = os.open(candidate, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # the kernel applies the umask
        temporary = candidate
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
