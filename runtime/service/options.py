"""The options of a service."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ..arguments import shown, threads_of, whole_number
from ..errors import OptionError

__all__ = ["PART", "SLOWEST", "ServiceOptions", "named_bundles"]

PART = 2**16
"""Bytes of a response that are sent at a time."""
SLOWEST = 2**16
"""Bytes a second that a client has to send, and to take."""

_LONGEST_NAME = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """What a service runs and what it allows. Raises `OptionError` for values that make no sense."""

    bundles: Mapping[str, Path | None] = dataclasses.field(default_factory=lambda: {"default": None})
    """Name of a model → folder of its bundle; None for the one that the package carries. The first is the default model."""
    backend: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    memory_limit: int | str | None = None
    """Of all bundles together, see `Upscaler`."""
    queue: int = 4
    """Requests that may wait for a worker; further ones get 429."""
    workers: int = 2
    """Threads that read, wait for the engine and write: one request is decoded while another is in the network."""
    max_pixels: int = 2**22
    """Most LR pixels of a picture, as its header claims before it is decoded."""
    max_bytes: int = 2**26
    """Most bytes of a request's body."""
    connections: int = 512
    """Most connections that are open; a further one takes the place of the one that has been idle longest."""
    deadline: float = 60.0
    """Seconds from the end of a request's headers to the beginning of its response."""
    patience: float = 10.0
    """Seconds for the headers of a request, and how far a client may fall behind `SLOWEST` in sending or taking more."""

    @property
    def most_held(self) -> int:
        """Most bytes of all bodies together, of all answers together, and of the pixels of one result."""
        return 4 * self.max_bytes

    def __post_init__(self) -> None:
        for name, low in (("queue", 0), ("workers", 1), ("max_pixels", 1), ("max_bytes", 1), ("connections", 1)):
            whole_number(name, getattr(self, name), low, 2**40)
        for name in ("deadline", "patience"):
            if not 0 < getattr(self, name) < 1e6:
                raise OptionError(f"{name} must be a positive number of seconds, not {shown(getattr(self, name))}")
        threads_of(self.threads)
        if not self.bundles:
            raise OptionError("a service needs at least one bundle")


def named_bundles(given: list[str]) -> dict[str, Path | None]:
    """Name → folder for arguments of the form FOLDER or NAME=FOLDER. A folder's own name, without `.bundle`, is its model's.

    Raises `OptionError` for two models of one name, and names that cannot stand in an address.
    """
    bundles: dict[str, Path | None] = {}
    for argument in given:
        name, equals, folder = argument.partition("=")
        if not equals or "/" in name:
            folder, name = argument, Path(argument).resolve().name.removesuffix(".bundle")
        if not name or len(name) > _LONGEST_NAME or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name):
            raise OptionError(
                f"a model cannot be called {shown(name)}: use NAME=FOLDER with letters, digits, '.', '_' and '-'"
            )
        if name in bundles:
            raise OptionError(f"two models are called {name}: use NAME=FOLDER")
        bundles[name] = Path(folder)
    return bundles or {"default": None}
