"""Errors of a benchmark; each message is one sentence."""

from __future__ import annotations

from ..errors import RdsrError

__all__ = ["BenchmarkError", "CandidateError"]


class BenchmarkError(RdsrError):
    """A data set or a model cannot be measured."""


class CandidateError(BenchmarkError):
    """One model cannot be measured. The data is not the reason, so other models may be measured."""
