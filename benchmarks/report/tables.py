"""Benchmark results as files: JSON, a Markdown twin, and plots."""

from __future__ import annotations

import io
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...atomic import atomic_write
from ...runtime.files import dump_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLUMNS", "Columns", "cells", "write_figure", "write_table"]
__all__ += ["DROP_COLUMNS", "FIGURE_COLUMNS", "INT8_COLUMNS", "LATENCY_COLUMNS", "LOAD_COLUMNS", "PRIOR_COLUMNS"]
__all__ += ["QUALITY_COLUMNS", "SERVICE_COLUMNS", "SWEEP_COLUMNS"]

Columns = Mapping[str, Sequence[str]]
"""Key of a row → title of its column and how its values are formatted."""


COLUMNS: dict[str, Any] = tomllib.loads((Path(__file__).parent / "columns.toml").read_text(encoding="utf-8"))
"""All columns, by table."""
QUALITY_COLUMNS: Columns = COLUMNS["quality"]
DROP_COLUMNS: Columns = {**QUALITY_COLUMNS, **COLUMNS["drop"]}
LATENCY_COLUMNS: Columns = COLUMNS["latency"]
SWEEP_COLUMNS: Columns = {**LATENCY_COLUMNS, **COLUMNS["sweep"]}
INT8_COLUMNS: Columns = COLUMNS["int8"]
LOAD_COLUMNS: Columns = COLUMNS["load"]
SERVICE_COLUMNS: Columns = COLUMNS["service"]
FIGURE_COLUMNS: Columns = COLUMNS["figure"]
PRIOR_COLUMNS: Columns = COLUMNS["prior"]


def cells(columns: Columns, row: Mapping[str, Any]) -> list[str]:
    """The row's values as text. What was not measured is empty."""
    return ["" if row[key] is None else format(row[key], form) for key, (_, form) in columns.items()]


def write_table(
    folder: Path, name: str, report: Mapping[str, Any], columns: Columns, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write NAME.json (the report) and NAME.md (the rows). Raises `OutputError` if the folder cannot be written."""
    lines = [f"| {' | '.join(title for title, _ in columns.values())} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(cells(columns, row))} |" for row in rows]
    atomic_write(folder / f"{name}.json", dump_json(report).encode())
    atomic_write(folder / f"{name}.md", ("\n".join(lines) + "\n").encode())


def write_figure(figure: Figure, target: Path) -> None:
    """Write a matplotlib figure as PNG, whole or not at all. Raises `OutputError`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    atomic_write(target, buffer.getvalue())
