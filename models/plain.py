"""Config dataclasses as plain values, fit for JSON, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

__all__ = ["from_plain", "to_plain"]

Config = TypeVar("Config")


def to_plain(config: Any) -> dict[str, Any]:
    """Field name → value, tuples as lists; `from_plain` reads them back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(config).items()}


def from_plain(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """The config written by `to_plain`; `ValueError` names what is unknown, missing or refused."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"unknown field {', '.join(unknown)}; known are {', '.join(sorted(fields))}")
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
    if missing:
        raise ValueError(f"missing field {', '.join(missing)}")
    return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
