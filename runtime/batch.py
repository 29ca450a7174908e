"""Upscale many picture files in one go. Every output name is settled before the first file runs."""

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
    """Whether a folder or several files were given, rather than one file."""


def _expand(inputs: Sequence[str]) -> tuple[list[Path], bool]:
    """The picture files that files, folders (their top level) and globs name, and whether it is one plain file."""
    found: list[Path] = []
    single = len(inputs) == 1
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            entries = list(path.iterdir())
            none = f"the folder {path} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))})"
        elif path.exists():
            found.append(path)
            continue
        elif any(c in text for c in "*?["):
            entries, none = [Path(match) for match in glob.glob(text, recursive=True)], f"no picture matches {text}"
        else:
            raise PictureError(f"cannot read {path}: No such file or directory")
        pictures = sorted(p for p in entries if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
        if not pictures:
            raise PictureError(none)
        found += pictures
        single = False
    return list(dict.fromkeys(found)), single


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def plan_files(inputs: Sequence[str], output: Path) -> FilePlan:
    """Settle every output name. Nothing is read or written yet.

    A single file goes to `output` itself if that has a suffix. Otherwise `output` is a folder and pictures keep their names.
    Raises `PictureError` for missing inputs, `OutputError` for outputs that cannot be written or would replace an input.
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
    """Run a plan. Returns the results, and (input, error) for each picture that failed; the others still run."""
    done: list[FileResult] = []
    failed: list[tuple[Path, RdsrError]] = []
    for source, target in plan.files:
        try:
            done.append(upscaler.file(source, target))
        except RdsrError as error:  # an `EngineError` does not name the picture by itself
            failed.append((source, EngineError(f"{source}: {error}") if isinstance(error, EngineError) else error))
        progress()
    return done, failed
