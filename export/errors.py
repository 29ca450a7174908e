"""Errors of an export; each message is one sentence."""

from __future__ import annotations

from ..errors import RdsrError

__all__ = ["ExportError", "OutputExistsError", "ProofError"]


class ExportError(RdsrError):
    """The export cannot be done: the options, the output place or a tool is at fault."""


class OutputExistsError(ExportError):
    """There is something at the output already."""


class ProofError(ExportError):
    """A step's proof failed: what was made does not equal the torch model."""
