"""The error of training; each message is one sentence that names the file, folder or field at fault."""

from __future__ import annotations

from ...errors import RdsrError

__all__ = ["TrainingError"]


class TrainingError(RdsrError):
    """The configuration, the data or the run folder does not allow training."""
