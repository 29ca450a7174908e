"""Pictures at addresses such as `s3://bucket/in`, through fsspec and what the user has installed for it."""

from __future__ import annotations

import contextlib
import dataclasses
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ...atomic import atomic_write
from ..errors import OutputError, PictureError
from ..pictures.formats import READABLE_SUFFIXES, WriteOptions, check_lossless, format_of, suffix_for

__all__ = [
    "AddressPlan", "AddressedFile", "address_of", "is_address", "list_addresses", "only_in_one_process", "plan_addresses",
    "read_address", "write_address",
]  # fmt: skip

_LOCAL = "file://"
_LARGEST = 2**30
"""Most bytes of an encoded picture, which is held in memory."""


@dataclasses.dataclass(frozen=True)
class AddressedFile:
    """An input and its output, both as addresses."""

    input: str
    output: str


@dataclasses.dataclass(frozen=True)
class AddressPlan:
    """Inputs with their outputs."""

    files: tuple[AddressedFile, ...]
    skipped: tuple[tuple[str, str], ...]
    """Files that are left out, each with the reason."""
    folder: str
    """The address of the folder that all outputs lie in."""


def is_address(name: str) -> bool:
    """Whether a name is an address with a scheme, not a path."""
    scheme, found, _ = name.partition("://")
    return bool(found) and scheme.replace("+", "").replace("-", "").isalnum()


def address_of(name: str) -> str:
    """An address as it is, and a path as a `file://` address, whose path is taken literally."""
    return name if is_address(name) else f"{_LOCAL}{Path(name).absolute()}" + ("/" if name.endswith("/") else "")


def only_in_one_process(address: str) -> bool:
    """Whether no other process sees what lies there."""
    return address.startswith("memory://")


@contextlib.contextmanager
def _as_error(kind: type[PictureError] | type[OutputError], address: str) -> Iterator[None]:
    """Errors of a file system as one of ours. Its libraries raise almost anything."""
    try:
        yield
    except (PictureError, OutputError):
        raise
    except ModuleNotFoundError as error:
        if error.name == "fsspec":
            raise
        raise kind(f"cannot use {address}: {error}") from error
    except FileNotFoundError as error:
        raise kind(f"cannot use {address}: there is no such file or folder") from error
    except Exception as error:
        raise kind(f"cannot use {address}: {' '.join(str(error).split()) or type(error).__name__}") from error


def _opened(address: str) -> tuple[Any, str]:
    """File system and path of an address."""
    import fsspec

    if address.startswith(_LOCAL):  # a path may hold anything, also what fsspec takes for a chain of addresses
        return fsspec.filesystem("file"), address.removeprefix(_LOCAL)
    system, path = fsspec.core.url_to_fs(address)
    return system, path


def _address(system: Any, path: str) -> str:
    """The one address of a path, however it was written."""
    return str(system.unstrip_protocol(path))


def plan_addresses(inputs: Sequence[str], output: str, options: WriteOptions, *, recursive: bool) -> AddressPlan:
    """Find the inputs, addresses or paths, and settle every output address. Nothing is read or written yet.

    One file goes to `output` itself if that has the suffix of a picture. Otherwise `output` is a folder, where pictures keep
    their names, below a folder as below that one. Files of folders and globs without a picture's suffix are skipped.

    Raises `PictureError` for inputs that cannot be found, and `OutputError` if a picture cannot be written under its name,
    if two would get the same name, or if an output would replace an input.
    """
    base = address_of(output)
    base = base if base.endswith("://") else base.rstrip("/")
    whole = posixpath.splitext(base)[1].lower() in READABLE_SUFFIXES and not output.endswith("/")
    with _as_error(OutputError, output):
        system, root = _opened(base)
        own = _address(system, root).rstrip("/")  # a folder below an input is none of its pictures
    planned: dict[str, str] = {}
    skipped: list[tuple[str, str]] = []
    single = len(inputs) == 1
    for given in inputs:
        address = address_of(given)
        with _as_error(PictureError, given):
            system, root = _opened(address)
            top = _address(system, root).rstrip("/")
            found, single = _found(system, root, given, recursive=recursive, single=single)
            for path, name in found:
                source = _address(system, path)
                if own.startswith(f"{top}/") and source.startswith(f"{own}/"):
                    continue
                stem, suffix = posixpath.splitext(name)
                if suffix.lower() not in READABLE_SUFFIXES and not single:
                    skipped.append((source, "its suffix is that of no picture"))
                    continue
                if whole and not single:
                    raise OutputError(f"several pictures need a folder as output, not {output}")
                target = base if whole else f"{base}/{stem}{suffix_for(suffix, options.format)}"
                if planned.setdefault(target, source) != source:
                    raise OutputError(f"{planned[target]} and {source} would both become {target}")
    if not planned:
        raise PictureError(f"there is no picture in {', '.join(inputs)}")
    _check(planned, options)
    files = tuple(AddressedFile(source, target) for target, source in planned.items())
    return AddressPlan(files, tuple(skipped), posixpath.dirname(base) if whole else base)


def _found(system: Any, root: str, given: str, *, recursive: bool, single: bool) -> tuple[list[tuple[str, str]], bool]:
    """((path, name below the folder) of every file, whether a single file was named)."""
    if any(sign in root for sign in "*?[") and not system.exists(root):
        below = [(path, posixpath.basename(path)) for path in sorted(system.glob(root)) if system.isfile(path)]
        return [each for each in below if not _hidden(each[1])], False
    if system.isdir(root):
        paths = sorted(system.find(root, maxdepth=None if recursive else 1))
        below = [(path, path[len(root.rstrip("/")) :].lstrip("/")) for path in paths]
        return [each for each in below if not _hidden(each[1])], False
    if system.isfile(root):
        return [(root, posixpath.basename(root))], single
    raise PictureError(f"cannot read {given}: there is no such file or folder")


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _check(planned: dict[str, str], options: WriteOptions) -> None:
    for target in planned:
        check_lossless(format_of(PurePosixPath(target), options.format), options, target)
    with _as_error(OutputError, next(iter(planned))):
        targets = {_address(system, path): target for target in planned for system, path in [_opened(target)]}
    if both := targets.keys() & set(planned.values()):
        raise OutputError(f"the output {min(both)} is one of the inputs")


def list_addresses(folder: str, suffix: str) -> list[str]:
    """The files of a folder with this suffix, by name; none if there is no such folder. Raises `OutputError`."""
    with _as_error(OutputError, folder):
        system, path = _opened(folder)
        if not system.isdir(path):
            return []
        system.invalidate_cache(path)
        return [_address(system, each) for each in sorted(system.find(path)) if each.endswith(suffix)]


def read_address(address: str) -> bytes:
    """The content of a file of at most 1 GiB. Raises `PictureError`."""
    with _as_error(PictureError, address):
        system, path = _opened(address)
        if (size := system.size(path) or 0) > _LARGEST:
            raise PictureError(f"cannot read {address}: it has {size} bytes, more than {_LARGEST}")
        content: bytes = system.cat_file(path)
        return content


def write_address(address: str, content: bytes) -> None:
    """Write a file: whole or not at all on disks, and in object stores, which put a file at once. Raises `OutputError`."""
    with _as_error(OutputError, address):
        system, path = _opened(address)
        if address.startswith(_LOCAL):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            atomic_write(Path(path), content)
            return
        with contextlib.suppress(Exception):  # object stores have no folders; what is wrong, the file will say
            system.makedirs(posixpath.dirname(path), exist_ok=True)
        system.pipe_file(path, content)  # no transaction: a file system is shared by threads, and has only one
