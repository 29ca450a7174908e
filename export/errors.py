"""Errors of an export; each message is one sentence."""

from __future__ import annotations

from ..errors import RdsrError

__all__ = ["ExportError", "OutputExistsError", "ProofError"]


class ExportError(RdsrError):
    """The export cannot be done. The options, the place of the output, or a tool is at fault."""


class OutputExistsError(ExportError):
    """Something exists already at the place of the output."""


class ProofError(ExportError):
    """A proof failed: the result of a step does not equal the torch model."""
