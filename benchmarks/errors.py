"""Errors of a benchmark; each message is one sentence."""

from __future__ import annotations

__all__ = ["BenchmarkError"]


class BenchmarkError(Exception):
    """A data set or a model cannot be measured."""
