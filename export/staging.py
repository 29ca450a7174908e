"""Writing a folder whole or not at all: a temporary name beside the target, renamed when complete."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import ExportError, OutputExistsError

__all__ = ["check_target", "publish", "staging_folder"]


def check_target(target: Path, *, force: bool) -> None:
    """Raise where `target` cannot become a bundle folder. `force` allows replacing a bundle, nothing else."""
    if not target.name or target.name in (".", ".."):
        raise ExportError(f"{target} is no name for a new folder")
    if target.is_symlink() or target.exists():
        if not force:
            raise OutputExistsError(f"{target} exists already; choose another name or replace it with --force")
        if target.is_symlink() or not _is_bundle(target):
            raise OutputExistsError(f"{target} exists and is no bundle (or holds more than one), so it is not replaced")


def _is_bundle(folder: Path) -> bool:
    """Whether a folder holds a bundle, damaged or not, and nothing besides."""
    try:
        content = json.loads((folder / "manifest.json").read_bytes())
        listed = {*content["files"], "manifest.json"}
        return "schema" in content and {entry.name for entry in folder.iterdir()} <= listed
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _nearest_folder(path: Path) -> Path:
    """The closest ancestor that exists; `ExportError` where it is no folder."""
    while not path.exists():
        path = path.parent
    if not path.is_dir():
        raise ExportError(f"cannot write there: {path} is not a folder")
    return path


@contextlib.contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A temporary folder on the target's file system, removed on the way out unless it was published."""
    ancestor = _nearest_folder(target.absolute().parent)
    try:
        folder = Path(tempfile.mkdtemp(dir=ancestor, prefix=f".{target.name[:80]}.", suffix=".tmp"))
    except OSError as error:
        raise ExportError(f"cannot write in {ancestor}: {error.strerror}") from error
    try:
        yield folder
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, target: Path, *, force: bool) -> None:
    """Rename a staged folder to its target; what stood there (under `force`) goes only once the new one is in place."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    check_target(target, force=force)
    if not target.exists():
        folder.rename(target)
        return
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:80]}.", suffix=".old"))
    try:
        target.rename(aside / "previous")
        folder.rename(target)
    except BaseException:  # Ctrl-C as well: the previous bundle goes back before anything else happens
        if (aside / "previous").exists() and not target.exists():
            (aside / "previous").rename(target)
        if not (aside / "previous").exists():
            aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)
