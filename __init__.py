"""RDSR: diffusion super-resolution, exported to a verified bundle and run on CPUs without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runtime import Bundle, RdsrError, Upscaler

__all__ = ["Bundle", "RdsrError", "Upscaler", "__version__"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import rdsr` costs nothing."""
    if name == "__version__":
        from importlib.metadata import version

        return version("rdsr")
    if name in __all__:
        from . import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
