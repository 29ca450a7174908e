"""Read the TOML files that describe training."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from .errors import TrainingError

__all__ = ["read_toml"]


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file; `TrainingError` if it cannot be read or is not TOML. `what` names its kind, e.g. "config"."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"cannot read the {what} {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} is not valid TOML: {error}") from error
