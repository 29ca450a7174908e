"""Read the TOML files that describe training."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ...errors import shortened
from ..files import read_small, reason_of
from .errors import TrainingError

__all__ = ["read_toml"]


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file; `TrainingError` if it cannot be read or is not TOML. `what` names its kind, e.g. "config"."""
    try:
        return tomllib.loads(read_small(path).decode())
    except OSError as error:
        raise TrainingError(f"cannot read the {what} {shortened(path)}: {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{path} is not valid TOML: {error}") from error
