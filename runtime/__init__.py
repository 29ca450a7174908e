"""The torch-free library that services embed: `Upscaler`, its errors, and `verify`."""

from __future__ import annotations

from .bundle import Bundle, Manifest
from .errors import BundleError, EngineError, OptionError, OutputError, PictureError, RdsrError
from .upscaler import Effective, FileResult, Result, Upscaler

__all__ = [
    "Bundle",
    "BundleError",
    "Effective",
    "EngineError",
    "FileResult",
    "Manifest",
    "OptionError",
    "OutputError",
    "PictureError",
    "RdsrError",
    "Result",
    "Upscaler",
]
