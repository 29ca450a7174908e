"""Errors that a checkpoint can cause. Each message is one sentence that names the file or the tensor at fault."""

from __future__ import annotations

from ..errors import RdsrError

__all__ = ["CheckpointError", "UnsupportedModelError"]


class CheckpointError(RdsrError):
    """The checkpoint cannot be read, or a tensor in it is missing or misshapen."""


class UnsupportedModelError(CheckpointError):
    """The checkpoint can be read, but its keys match no known architecture."""
