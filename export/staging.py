"""Write a folder whole or not at all: under a temporary name beside the target, renamed when it is complete."""

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
    """Raise `ExportError` if `target` cannot become a bundle folder. `force` allows to replace a bundle, nothing else."""
    if not target.name or target.name in (".", ".."):
        raise ExportError(f"{target} cannot be the name of a new folder")
    if target.is_symlink() or target.exists():
        if not force:
            raise OutputExistsError(f"{target} exists already; choose another name, or replace it with --force")
        if target.is_symlink() or not _is_bundle(target):
            raise OutputExistsError(f"{target} exists and is not just a bundle, so it is not replaced")


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
    ancestor = next(path for path in target.absolute().parents if path.exists())
    if not ancestor.is_dir():
        raise ExportError(f"cannot write there: {ancestor} is not a folder")
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
    """Rename a staged folder to its target. Under `force`, the old bundle is removed only once the new one is in place."""
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
    except BaseException:  # after Ctrl-C, too, the previous bundle goes back first
        if (aside / "previous").exists() and not target.exists():
            (aside / "previous").rename(target)
        if not (aside / "previous").exists():
            aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)
