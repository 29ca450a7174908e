"""Find the picture files that files, folders and globs name, and say which files were left out and why."""

from __future__ import annotations

import dataclasses
import errno
import fnmatch
import io
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .errors import PictureError
from .pictures.formats import READABLE_SUFFIXES

__all__ = ["STANDARD_STREAM", "Found", "Inputs", "Skipped", "find_inputs", "identity_of", "read_pipe", "reason_of"]

STANDARD_STREAM = Path("-")
"""As an input the standard input, as an output the standard output."""
_WRITER_SECONDS = 3.0
"""How long a named pipe may wait for a program that writes into it."""
_LOOK_SECONDS = 0.02
_MAGIC = re.compile(r"[*?[]")
_SUFFIXES = ", ".join(sorted(READABLE_SUFFIXES))


@dataclasses.dataclass(frozen=True)
class Found:
    """A picture file."""

    path: Path
    below: Path = Path()
    """The folder that holds it, relative to the folder that was named."""


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An input that is not upscaled."""

    input: Path
    reason: str


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What was found."""

    files: tuple[Found, ...]
    skipped: tuple[Skipped, ...]
    single: bool
    """Whether one plain file was named, rather than a folder, a glob or several inputs."""


def reason_of(error: OSError | ValueError) -> str:
    """What the operating system says, without the name. A name with a null byte is a `ValueError`."""
    return getattr(error, "strerror", None) or str(error)


def identity_of(path: Path) -> tuple[int, int] | None:
    """The same for all names of one file or folder; None if a name leads nowhere."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def read_pipe(path: Path, most: int) -> bytes:
    """What comes through a named pipe, at most `most` bytes. The program that writes into it may take its time.

    Raises `PictureError` if none does so within three seconds, because opening the pipe might otherwise wait for ever.
    """
    end = time.monotonic() + _WRITER_SECONDS
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as pipe:
            while not (first := pipe.read(2**16)):  # None: a writer is silent; empty: there is no writer
                if first is not None and time.monotonic() > end:
                    raise PictureError(f"cannot read {path}: it is a named pipe that no program writes into")
                time.sleep(_LOOK_SECONDS)
            os.set_blocking(pipe.fileno(), True)
            with io.BufferedReader(pipe) as rest:
                return first + rest.read(most - len(first))
    except OSError as error:
        raise PictureError(f"cannot read {path}: {reason_of(error)}") from error


def find_inputs(inputs: Sequence[str], *, recursive: bool = False, leave_out: Path | None = None) -> Inputs:
    """The picture files that the inputs name: files, folders, globs, or "-" alone for the standard input.

    A single file is taken whatever its suffix is, because its content decides. Among several inputs, in folders and among
    the matches of a glob, files whose suffix belongs to no readable format are skipped. Of a folder its top level is taken,
    with `recursive` also the folders below it, but neither hidden ones, nor links to folders, nor `leave_out` (the output
    folder). Components of a glob that exist literally are taken literally.

    Raises `PictureError` if an input does not exist or cannot be read, or if no picture is left.
    """
    search = _Search(recursive, leave_out, several=len(inputs) > 1)
    for text in inputs:
        search.take(text)
    if not search.found:
        if len(inputs) == 1:
            raise PictureError(search.nothing)
        raise PictureError(f"none of the {len(inputs)} inputs can be read as a picture ({_SUFFIXES})")
    files: dict[Path, Found] = {}
    for found in search.found:
        files.setdefault(found.path, found)  # a file that was named twice is one file
    return Inputs(tuple(files.values()), tuple(dict.fromkeys(search.skipped)), search.single)


class _Search:
    """The files found so far."""

    def __init__(self, recursive: bool, leave_out: Path | None, *, several: bool) -> None:
        self.found: list[Found] = []
        self.skipped: list[Skipped] = []
        self.single = not several
        self.nothing = ""
        """The sentence that says that an input holds no pictures."""
        self._recursive, self._leave_out, self._several = recursive, leave_out, several

    def take(self, text: str) -> None:
        """Find the pictures of one input."""
        path = Path(text)
        if text == os.fspath(STANDARD_STREAM):
            if self._several:
                raise PictureError("- (the standard input) has to be the only input")
            self.found.append(Found(path))
            return
        try:
            if not text:
                raise PictureError("an input is an empty name")
            mode = os.stat(path).st_mode
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and _MAGIC.search(text) and not os.path.lexists(path):
                self._take_glob(text)
            elif self._several and os.path.lexists(path):  # a shell puts broken links into its list, too
                self.skipped.append(Skipped(path, _broken(error)))
            else:
                raise PictureError(f"cannot read {path}: {reason_of(error)}") from error
            return
        if stat.S_ISDIR(mode):
            self.single = False
            self._take_folder(path)
        elif self._several:
            self._take_file(path, Path(), mode)
        elif stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
            self.found.append(Found(path))
        else:
            raise PictureError(f"cannot read {path}: it is no regular file")

    def _take_file(self, path: Path, below: Path, mode: int) -> None:
        suffix = path.suffix.lower()
        if suffix not in READABLE_SUFFIXES:
            reason = f"{path.suffix} files cannot be read" if suffix else "its name has no suffix"
            self.skipped.append(Skipped(path, reason))
        elif not stat.S_ISREG(mode):
            self.skipped.append(Skipped(path, "it is no regular file"))
        else:
            self.found.append(Found(path, below))

    def _take_glob(self, text: str) -> None:
        self.single = False
        self.nothing = f"no picture matches {text} ({_SUFFIXES})"
        before = len(self.found), len(self.skipped)
        for path in _matches(text):
            try:
                mode = os.stat(path).st_mode
            except (OSError, ValueError) as error:
                self.skipped.append(Skipped(path, _broken(error)))
                continue
            if not stat.S_ISDIR(mode):
                self._take_file(path, Path(), mode)
            elif self._recursive:
                self._take_folder(path)
            else:
                self.skipped.append(Skipped(path, "it is a folder"))
        if (len(self.found), len(self.skipped)) == before:
            raise PictureError(self.nothing)

    def _take_folder(self, folder: Path) -> None:
        below_it = " and those below it hold" if self._recursive else " holds"
        self.nothing = f"the folder {folder}{below_it} no pictures ({_SUFFIXES})"
        before = len(self.found)
        waiting = [Path()]
        while waiting:
            below = waiting.pop()
            try:
                names = _names(folder / below)
            except OSError as error:
                if below == Path():
                    raise PictureError(f"cannot read the folder {folder}: {reason_of(error)}") from error
                self.skipped.append(Skipped(folder / below, f"the folder cannot be read: {reason_of(error)}"))
                continue
            subfolders = [below / name for name in names if self._enters(folder / below / name, below)]
            waiting += reversed(subfolders)
        if len(self.found) == before and self._several:
            self.skipped.append(Skipped(folder, "the folder holds no pictures"))

    def _enters(self, path: Path, below: Path) -> bool:
        """Take a file of a folder. Returns whether it is a folder to search in turn."""
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            if path.suffix.lower() in READABLE_SUFFIXES:
                self.skipped.append(Skipped(path, _broken(error)))
            return False
        if not stat.S_ISDIR(mode):
            self._take_file(path, below, mode)
        elif self._leave_out is None or identity_of(path) != identity_of(self._leave_out):
            if self._recursive and not path.is_symlink():  # links may lead round in a circle
                return True
            self.skipped.append(Skipped(path, "it is a link to a folder" if self._recursive else "it is a folder"))
        return False


def _broken(error: OSError | ValueError) -> str:
    missing = isinstance(error, OSError) and error.errno == errno.ENOENT
    return "it is a link that leads nowhere" if missing else f"it cannot be read: {reason_of(error)}"


def _names(folder: Path) -> list[str]:
    """Names in a folder, sorted, without hidden ones. Raises `OSError`."""
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def _matches(pattern: str) -> list[Path]:
    """Paths that a glob matches. A component that exists literally is taken literally; `**` is folders of any depth."""
    path = Path(pattern)
    found = [Path(path.anchor)]
    parts = [part for part in path.parts if part != path.anchor]
    for part in [*parts, "*"] if parts and parts[-1] == "**" else parts:
        found = list(dict.fromkeys(match for base in found for match in _matches_in(base, part)))
    return found


def _matches_in(base: Path, part: str) -> Iterator[Path]:
    if part == "**":
        yield from _folders(base)
    elif not _MAGIC.search(part) or os.path.lexists(base / part):
        if os.path.lexists(base / part):
            yield base / part
    else:
        fits: Callable[[str], object] = re.compile(fnmatch.translate(part)).match
        try:
            names = sorted(os.listdir(base))
        except OSError:  # no folder, or one that may not be read: nothing matches in it
            return
        yield from (base / name for name in names if fits(name) and (part.startswith(".") or not name.startswith(".")))


def _folders(top: Path) -> Iterator[Path]:
    """A folder and all folders below it, without hidden ones and links."""
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        yield folder
        try:
            below = [folder / name for name in _names(folder)]
        except OSError:
            continue
        waiting += reversed([path for path in below if path.is_dir() and not path.is_symlink()])
