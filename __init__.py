"""RDSR: diffusion super-resolution, exported to a verified bundle and run on CPUs without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .lazy import lazy_names

if TYPE_CHECKING:
    from .errors import RdsrError
    from .runtime import Bundle, Upscaler

__all__ = ["Bundle", "RdsrError", "Upscaler", "__version__"]

_get = lazy_names(__name__, {"Bundle": ".runtime", "RdsrError": ".errors", "Upscaler": ".runtime"})


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("rdsr")
    return _get(name)
