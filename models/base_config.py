"""The base of config dataclasses: plain values fit for JSON, and the checks of numbers."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, Self

__all__ = ["BaseConfig", "is_number"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """A config that is written as plain values and read back."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON; `from_dict` reads them back."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The config written by `to_dict`; `ValueError` names unknown, missing and out-of-range fields."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - set(fields)):
            raise ValueError(f"unknown field {', '.join(unknown)}; known are {', '.join(sorted(fields))}")
        needed = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
        missing = [name for name in needed if name not in values]
        if missing:
            raise ValueError(f"missing field {', '.join(missing)}")
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})

    def _check_ranges(self, **ranges: tuple[int, int]) -> None:
        """`ValueError` unless each of these fields is a whole number from the first to the last of its two."""
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}")


def is_number(value: Any) -> bool:
    """Whether a value from a file is a number that fits a float; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
