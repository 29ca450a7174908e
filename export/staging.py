"""Write a folder whole or not at all: under a temporary name beside the target, renamed when it is complete."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from .errors import ExportError, OutputExistsError

__all__ = ["check_new", "check_target", "publish", "remove_leftovers", "staging_folder"]

_SUFFIXES = {".onnx", ".xml", ".bin", ".json", ".safetensors"}
"""Of the files of a bundle."""


def check_target(target: Path, *, force: bool) -> None:
    """Raise `ExportError` if `target` cannot become a bundle folder, also where nothing can be written.

    `force` allows to replace a bundle, nothing else. Ask before the work: `publish` looks at the target's place again.
    """
    _check_place(target, force=force)
    with staging_folder(target):
        pass


def _check_place(target: Path, *, force: bool) -> None:
    """Raise `ExportError` if what lies at `target`, or its name, forbids a bundle there."""
    if not target.name or target.name in (".", ".."):
        raise ExportError(f"{target} cannot be the name of a new folder")
    if target.is_symlink() or target.exists():
        if not force:
            raise OutputExistsError(f"{target} exists already; choose another name, or replace it with --force")
        if target.is_symlink() or not _is_bundle(target):
            raise OutputExistsError(f"{target} exists and is not just a bundle, so it is not replaced")


def check_new(target: Path) -> None:
    """Raise `OutputExistsError` if there is something in the place of a folder that never replaces another."""
    if os.path.lexists(target):
        raise OutputExistsError(f"{target} exists already, and nothing replaces a model repository: choose another name")


def _is_bundle(folder: Path) -> bool:
    """Whether a folder holds a bundle, damaged or not, and nothing else."""
    try:
        content = json.loads((folder / "manifest.json").read_bytes())
        listed = {*content["files"], "manifest.json"}
        return "schema" in content and {entry.name for entry in folder.iterdir()} <= listed
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextlib.contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A temporary folder in the nearest ancestor of the target that exists. It is removed at the end, unless published."""
    ancestor = _ancestor(target)
    if not ancestor.is_dir():
        raise ExportError(f"cannot write there: {ancestor} is not a folder")
    folder, lock = _hidden(target, ancestor, ".tmp"), None
    try:
        lock = _make_locked(folder)
        yield folder
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _hidden(target: Path, parent: Path, suffix: str) -> Path:
    """A name of 64 random bits for a folder beside the target. Known before there is a folder, it can be cleaned up after
    Ctrl-C at any moment."""
    return parent / f".{target.name[:80]}.{secrets.token_hex(8)}{suffix}"


def _make_locked(folder: Path) -> int:
    """The descriptor of a new folder, which is locked (`flock`) as long as the descriptor is open, so while we live."""
    while True:
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise ExportError(f"cannot write in {folder.parent}: {error.strerror}") from error
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.is_dir():  # nobody has taken it for a leftover before it was locked
            return handle
        os.close(handle)


def _ancestor(target: Path) -> Path:
    return next(path for path in target.absolute().parents if path.exists())


def remove_leftovers(target: Path) -> None:
    """Remove what killed exports to `target` have left beside it; a bundle that one had moved aside goes back to its place.

    Only folders that nobody has locked, and that hold nothing but a bundle's files.
    """
    name = re.compile(re.escape(f".{target.name[:80]}.") + r"[a-z0-9_]{8,16}\.(tmp|old)")
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(_ancestor(target))):
            if name.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _remove_if_dead(Path(entry.path), target)


def _remove_if_dead(folder: Path, target: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a living export holds the lock: this raises `OSError`
        previous = folder / "previous"
        if folder.suffix == ".tmp":
            ours = _holds_staged_files(folder)
        else:
            ours = not os.listdir(folder) or (os.listdir(folder) == [previous.name] and _is_bundle(previous))
            if ours and previous.exists() and not os.path.lexists(target):
                previous.rename(target)
        if ours:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def _holds_staged_files(folder: Path) -> bool:
    """Whether a folder holds nothing but regular files with the suffixes of a bundle's files."""
    entries = list(os.scandir(folder))
    return all(each.is_file(follow_symlinks=False) and Path(each.name).suffix in _SUFFIXES for each in entries)


def publish(folder: Path, target: Path, *, force: bool) -> None:
    """Rename a staged folder to its target. Under `force`, the old bundle is removed only once the new one is in place."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    _check_place(target, force=force)
    if not target.exists():
        folder.rename(target)
        return
    aside, lock = _hidden(target, target.parent, ".old"), None
    previous = aside / "previous"
    try:
        lock = _make_locked(aside)
        target.rename(previous)
        folder.rename(target)
    finally:
        if previous.exists() and not target.exists():  # after Ctrl-C, too, the previous bundle goes back first
            previous.rename(target)
        if not (previous.exists() and folder.exists()):  # else the target's place was taken: the previous one stays aside
            shutil.rmtree(aside, ignore_errors=True)
        if lock is not None:
            os.close(lock)
