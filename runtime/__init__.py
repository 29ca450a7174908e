"""The torch-free library that services embed: `Upscaler`, its errors, and `verify`."""

from __future__ import annotations

from .bundle import Bundle, Manifest
from .cancel import Cancel
from .errors import (
    BundleError,
    CancelledError,
    EngineError,
    MemoryLimitError,
    OptionError,
    OutputError,
    PictureError,
    RdsrError,
)
from .results import Effective, FileResult, Result
from .tiles import Plan
from .upscaler import Upscaler

__all__ = [
    "Bundle",
    "BundleError",
    "Cancel",
    "CancelledError",
    "Effective",
    "EngineError",
    "FileResult",
    "Manifest",
    "MemoryLimitError",
    "OptionError",
    "OutputError",
    "PictureError",
    "Plan",
    "RdsrError",
    "Result",
    "Upscaler",
]
