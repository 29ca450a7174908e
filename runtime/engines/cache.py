"""The user's cache folder. It only saves time, so no fault of it is an error."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from pathlib import Path

from ...atomic import atomic_write
from ..errors import OutputError
from ..files import read_regular

__all__ = ["CACHE_VARIABLE", "COMPILED", "cache_folder", "recall", "remember"]

logger = logging.getLogger(__name__)
CACHE_VARIABLE = "RDSR_CACHE_DIR"
"""Environment variable that names the folder."""
COMPILED = "rdsr-compiled"
"""Folder inside it for compiled graphs, which are large and quickly made again. It holds only our files."""
_MAX_BYTES = 256 * 2**20
"""Size limit of the compiled graphs; the entries that were used longest ago are deleted first."""
_DIGEST = hashlib.sha256().digest_size
_ABANDONED_SECONDS = 3600
"""Age at which a temporary file is taken for abandoned."""


def cache_folder() -> Path:
    """RDSR_CACHE_DIR, else `rdsr` in the user's cache folder (XDG). Raises `RuntimeError` if there is no home folder."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rdsr"


def recall(name: str) -> bytes | None:
    """The content that was remembered under this name; None if there is none or it is damaged."""
    try:
        path = cache_folder() / name
        content = read_regular(path, _MAX_BYTES)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return None
    digest, kept = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(kept).digest() != digest:
        logger.debug("%s in the cache is damaged and will be made again", name)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return kept


def remember(name: str, content: bytes) -> None:
    """Keep `content` for later processes if the disk allows it. A compiled graph (`COMPILED/NAME`) displaces older ones."""
    if len(content) + _DIGEST > _MAX_BYTES:
        return
    try:
        path = cache_folder() / name
        atomic_write(path, hashlib.sha256(content).digest() + content)
        if path.parent.name == COMPILED:
            _prune(path.parent)
    except (OSError, OutputError, RuntimeError) as error:
        logger.debug("%s is not kept in the cache: %s", name, error)


def _prune(folder: Path) -> None:
    now = time.time()
    entries = []
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):  # another process may have deleted it
            if not entry.is_file(follow_symlinks=False):
                continue
            status = entry.stat(follow_symlinks=False)
            if entry.name.endswith(".tmp") and now - status.st_mtime > _ABANDONED_SECONDS:
                os.unlink(entry.path)
            else:
                entries.append((status.st_mtime, status.st_size, entry.path))
    total = 0
    for _, size, path in sorted(entries, reverse=True):
        total += size
        if total > _MAX_BYTES:
            with contextlib.suppress(OSError):
                os.unlink(path)
