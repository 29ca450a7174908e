"""Typed errors of the runtime. Each message is one sentence that says what was wrong with which input."""

from __future__ import annotations

from ..errors import OutputError, RdsrError

__all__ = [
    "BundleError", "CancelledError", "EngineError", "MemoryLimitError", "OptionError", "OutputError", "PictureError",
    "PixelLimitError", "RdsrError",
]  # fmt: skip


class BundleError(RdsrError):
    """The bundle is missing, damaged or tampered with, or lacks a requested variant."""


class PictureError(RdsrError):
    """A picture cannot be read, or is of a kind that cannot be upscaled."""


class PixelLimitError(PictureError):
    """A picture has more pixels than are allowed, by its header."""


class EngineError(RdsrError):
    """An inference engine is not installed, cannot load a graph, or failed while running."""


class CancelledError(RdsrError):
    """The caller's `Cancel` token was set before the picture was done."""


class OptionError(RdsrError, ValueError):
    """A backend, precision, number of threads, seed or limit does not exist, or does not go together with others."""


class MemoryLimitError(OptionError):
    """A picture cannot be upscaled under the memory limit. `least_bytes` is the smallest limit that suffices."""

    def __init__(self, message: str, least_bytes: int) -> None:
        super().__init__(message)
        self.least_bytes = least_bytes
