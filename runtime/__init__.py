"""The torch-free library that services embed: `Upscaler`, its results and errors, and bundles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .bundle import Bundle, Manifest
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
    from .host.cancel import Cancel
    from .pictures.formats import WriteOptions
    from .results import Effective, FileResult, Result
    from .tiling.tiles import Plan
    from .upscaler import Upscaler

__all__ = [
    "Bundle", "BundleError", "Cancel", "CancelledError", "Effective", "EngineError", "FileResult", "Manifest",
    "MemoryLimitError", "OptionError", "OutputError", "PictureError", "Plan", "RdsrError", "Result", "Upscaler",
    "WriteOptions",
]  # fmt: skip

_OTHERS = {
    "Bundle": ".bundle",
    "Cancel": ".host.cancel",
    "Effective": ".results",
    "FileResult": ".results",
    "Manifest": ".bundle",
    "Plan": ".tiling.tiles",
    "Result": ".results",
    "Upscaler": ".upscaler",
    "WriteOptions": ".pictures.formats",
}
__getattr__ = lazy_names(__name__, _OTHERS | {name: ".errors" for name in __all__ if name.endswith("Error")})
