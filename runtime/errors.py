"""Typed errors of the runtime; each message is one sentence that says what was wrong with which input."""

from __future__ import annotations

from ..errors import OutputError, RdsrError

__all__ = [
    "BundleError",
    "CancelledError",
    "EngineError",
    "MemoryLimitError",
    "OptionError",
    "OutputError",
    "PictureError",
    "RdsrError",
]


class BundleError(RdsrError):
    """The bundle is missing, damaged, tampered with, or lacks what was asked of it."""


class PictureError(RdsrError):
    """A picture cannot be read, or is of a kind that cannot be upscaled."""


class EngineError(RdsrError):
    """An inference engine is not installed, cannot load a graph, or failed while running."""


class CancelledError(RdsrError):
    """The caller's `Cancel` token was set before the picture was done."""


class OptionError(RdsrError, ValueError):
    """A backend, precision, number of threads, seed or limit that does not exist or does not go together."""


class MemoryLimitError(OptionError):
    """A memory limit under which a picture cannot be upscaled; `least_bytes` would do."""

    def __init__(self, message: str, least_bytes: int) -> None:
        super().__init__(message)
        self.least_bytes = least_bytes
