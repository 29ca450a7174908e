"""RDSR: diffusion super-resolution, exported to a verified bundle and run on CPUs without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import RdsrError
    from .runtime import Bundle, Upscaler

__all__ = ["Bundle", "RdsrError", "Upscaler", "__version__"]

_HOMES = {"Bundle": ".runtime", "RdsrError": ".errors", "Upscaler": ".runtime"}


def __getattr__(name: str) -> Any:
    """Import on first use."""
    if name == "__version__":
        from importlib.metadata import version

        return version("rdsr")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Not at the top: in a clone whose folder is no Python identifier, pytest imports this file without its package.
    from .lazy import lazy_names

    return lazy_names(__name__, _HOMES)(name)
