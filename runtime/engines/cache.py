"""The user's cache folder: what only saves time. Whatever is wrong with it, nothing but time is lost."""

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
"""Folder inside it for what is large and soon made anew; nothing but ours is there, and it is kept small."""
_MAX_BYTES = 256 * 2**20
"""Of what is compiled; the entries used longest ago go first."""
_DIGEST = hashlib.sha256().digest_size
_ABANDONED_SECONDS = 3600
"""Age at which a temporary file is nobody's any more."""


def cache_folder() -> Path:
    """RDSR_CACHE_DIR, else `rdsr` in the user's cache folder (XDG). Raises `RuntimeError` where there is no home folder."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rdsr"


def recall(name: str) -> bytes | None:
    """What was remembered under this name; None where there is nothing, or nothing whole."""
    try:
        path = cache_folder() / name
        content = read_regular(path, _MAX_BYTES)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return None
    digest, kept = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(kept).digest() != digest:
        logger.debug("%s in the cache is damaged and will be made anew", name)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return kept


def remember(name: str, content: bytes) -> None:
    """Keep it for later processes, if the disk lets us; what is compiled (`COMPILED/NAME`) makes room for itself."""
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
