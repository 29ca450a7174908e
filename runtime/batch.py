"""Many picture files in one go: what goes where is settled before the first one runs."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import EngineError, OutputError, PictureError, RdsrError
from .pictures.formats import PICTURE_SUFFIXES, check_output
from .results import FileResult
from .upscaler import Upscaler

__all__ = ["FilePlan", "plan_files", "upscale_files"]


@dataclasses.dataclass(frozen=True)
class FilePlan:
    """Inputs with their outputs."""

    files: tuple[tuple[Path, Path], ...]
    many: bool
    """Whether a folder or several files were asked for, rather than one file."""


def _expand(inputs: Sequence[str]) -> tuple[list[Path], bool]:
    """Picture files named by files, folders (their top level) and globs; and whether it is one plain file."""
    found: list[Path] = []
    single = len(inputs) == 1
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            pictures = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
            if not pictures:
                raise PictureError(f"the folder {path} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")
            found += pictures
            single = False
        elif path.exists():
            found.append(path)
        elif any(c in text for c in "*?["):
            matches = sorted(Path(m) for m in glob.glob(text, recursive=True))
            pictures = [p for p in matches if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file()]
            if not pictures:
                raise PictureError(f"no picture matches {text}")
            found += pictures
            single = False
        else:
            raise PictureError(f"cannot read {path}: No such file or directory")
    return list(dict.fromkeys(found)), single


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def plan_files(inputs: Sequence[str], output: Path) -> FilePlan:
    """Settle every output name; nothing is read or written yet.

    One file goes to `output` itself where that has a suffix, otherwise pictures keep their names in the folder
    `output`. Raises `PictureError` for inputs that are not there, `OutputError` for outputs that cannot be.
    """
    paths, single = _expand(inputs)
    if single and output.suffix and not output.is_dir():
        check_output(output)
        files = [(paths[0], output)]
    else:
        if output.exists() and not output.is_dir():
            raise OutputError(f"cannot write several pictures into {output}: it is a file, not a folder")
        if not single and output.suffix.lower() in PICTURE_SUFFIXES and not output.is_dir():
            raise OutputError(f"several pictures need a folder as output, not {output}")
        files = [(path, output / path.name) for path in paths]
    taken: dict[Path, Path] = {}
    inputs_on_disk = {_identity(path) for path in paths}
    for source, target in files:
        check_output(target)
        if target in taken:
            raise OutputError(f"{taken[target]} and {source} would both become {target}")
        taken[target] = source
        if target.exists() and _identity(target) in inputs_on_disk:
            raise OutputError(f"the output {target} is one of the inputs")
    for folder in {target.parent for _, target in files}:
        ancestor = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not ancestor.is_dir():
            raise OutputError(f"cannot write into {folder}: {ancestor} is not a folder")
        if not os.access(ancestor, os.W_OK):
            raise OutputError(f"cannot write into {folder}: permission denied for {ancestor}")
    return FilePlan(tuple(files), not single)


def upscale_files(
    upscaler: Upscaler, plan: FilePlan, progress: Callable[[], None] = lambda: None
) -> tuple[list[FileResult], list[tuple[Path, RdsrError]]]:
    """Run a plan: results, and (input, error) for the pictures that failed; one bad picture stops no other."""
    done: list[FileResult] = []
    failed: list[tuple[Path, RdsrError]] = []
    for source, target in plan.files:
        try:
            done.append(upscaler.file(source, target))
        except EngineError as error:  # says nothing of the picture by itself
            failed.append((source, EngineError(f"{source}: {error}")))
        except RdsrError as error:
            failed.append((source, error))
        progress()
    return done, failed
