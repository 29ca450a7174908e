"""Settle the output name of every input before the first picture is upscaled."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from .errors import OutputError
from .inputs import STANDARD_STREAM, Found, Skipped, find_inputs, identity_of, reason_of
from .pictures.formats import READABLE_SUFFIXES, WriteOptions, check_output, suffix_for

__all__ = ["FilePlan", "PlannedFile", "plan_files"]


@dataclasses.dataclass(frozen=True)
class PlannedFile:
    """An input and its output. Either may be `STANDARD_STREAM`."""

    input: Path
    output: Path


@dataclasses.dataclass(frozen=True)
class FilePlan:
    """Inputs with their outputs."""

    files: tuple[PlannedFile, ...]
    skipped: tuple[Skipped, ...]
    """Files that are left out, and why."""
    many: bool
    """Whether a folder, a glob or several files were given, rather than one file."""
    folder: Path | None
    """The output folder; None if the output is a file or the standard output."""


def plan_files(
    inputs: Sequence[str], output: str | Path, *, options: WriteOptions | None = None, recursive: bool = False
) -> FilePlan:
    """Find the inputs and settle every output name. Nothing is read or written yet.

    A single file goes to `output` itself if that has a suffix, or to the standard output if it is "-". Otherwise `output` is
    a folder. There pictures keep their stem, and their suffix if that format can be written; --format names another. With
    `recursive`, the tree below each input folder is mirrored.

    Raises `PictureError` for inputs that cannot be found, and `OutputError` if a picture cannot be written under its name,
    if two would get the same name, or if an output would replace an input.
    """
    options = options or WriteOptions()
    name, path = os.fspath(output), Path(output)
    if not name:
        raise OutputError("the output is an empty name")
    if name == os.fspath(STANDARD_STREAM):
        found = find_inputs(inputs, recursive=recursive)
        if not found.single:
            raise OutputError("only a single picture can be written to - (the standard output)")
        return FilePlan((PlannedFile(found.files[0].path, STANDARD_STREAM),), (), many=False, folder=None)
    existing = _mode(path)
    is_folder = existing is not None and stat.S_ISDIR(existing)
    found = find_inputs(inputs, recursive=recursive, leave_out=path if is_folder else None)
    into_file = found.single and not is_folder and not name.endswith(os.sep) and (bool(path.suffix) or existing is not None)
    if into_file:
        files = [PlannedFile(found.files[0].path, path)]
    else:
        if existing is not None and not is_folder:
            raise OutputError(f"cannot write several pictures into {path}: it is a file, not a folder")
        if not found.single and path.suffix.lower() in READABLE_SUFFIXES and not is_folder:
            raise OutputError(f"several pictures need a folder as output, not {path}")
        if found.files[0].path == STANDARD_STREAM:
            raise OutputError(f"a picture from the standard input needs a file or - as output, not the folder {path}")
        files = [PlannedFile(entry.path, _output_of(entry, path, options)) for entry in found.files]
    files = _without_doubles(files)
    _check_outputs(files, options)
    return FilePlan(tuple(files), found.skipped, many=not found.single, folder=None if into_file else path)


def _output_of(entry: Found, folder: Path, options: WriteOptions) -> Path:
    return folder / entry.below / (entry.path.stem + suffix_for(entry.path.suffix, options.format))


def _mode(path: Path) -> int | None:
    """Kind and permissions of what is at the path, None if nothing is. Raises `OutputError`."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):  # the folder is checked later
        return None
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {path}: {reason_of(error)}") from error


def _without_doubles(files: list[PlannedFile]) -> list[PlannedFile]:
    """Each file once, if it was named in several ways. Raises `OutputError` if two files would get the same name."""
    taken: dict[Path, Path] = {}
    for file in files:
        other = taken.setdefault(file.output, file.input)
        if other != file.input and (identity_of(other) or other) != identity_of(file.input):
            raise OutputError(f"{other} and {file.input} would both become {file.output}")
    return [PlannedFile(source, target) for target, source in taken.items()]


def _check_outputs(files: list[PlannedFile], options: WriteOptions) -> None:
    """Raise `OutputError` for outputs that are inputs, and for folders that cannot be written."""
    for folder in {file.output.parent for file in files}:
        ancestor = folder.absolute()
        while (mode := _mode_above(ancestor, folder)) is None:
            ancestor = ancestor.parent
        if not stat.S_ISDIR(mode):
            raise OutputError(f"cannot write into {folder}: {ancestor} is not a folder")
        if not os.access(ancestor, os.W_OK | os.X_OK):
            raise OutputError(f"cannot write into {folder}: permission denied for {ancestor}")
    inputs = {identity_of(file.input) for file in files} - {None}
    for file in files:
        check_output(file.output, options)
        if _mode(file.output) is not None and identity_of(file.output) in inputs:
            raise OutputError(f"the output {file.output} is one of the inputs")


def _mode_above(ancestor: Path, folder: Path) -> int | None:
    try:
        return os.stat(ancestor).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write into {folder}: {reason_of(error)}") from error
