"""Typed errors of the runtime; each message is one sentence that says what was wrong with which input."""

from __future__ import annotations

__all__ = ["BundleError", "EngineError", "OptionError", "OutputError", "PictureError", "RdsrError"]


class RdsrError(Exception):
    """Base of every error that the runtime raises on purpose."""


class BundleError(RdsrError):
    """The bundle is missing, damaged, tampered with, or lacks what was asked of it."""


class PictureError(RdsrError):
    """A picture cannot be read, or is of a kind that cannot be upscaled."""


class OutputError(RdsrError):
    """A result cannot be written where it was asked for."""


class EngineError(RdsrError):
    """An inference engine is not installed, cannot load a graph, or failed while running."""


class OptionError(RdsrError, ValueError):
    """A backend, precision, number of threads or seed that does not exist or does not go together."""
