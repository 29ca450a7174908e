"""Benchmark results as files: JSON, a Markdown twin, and plots."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...atomic import atomic_write
from ...runtime.files import dump_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "DROP_COLUMNS",
    "FIGURE_COLUMNS",
    "INT8_COLUMNS",
    "LATENCY_COLUMNS",
    "LOAD_COLUMNS",
    "PRIOR_COLUMNS",
    "QUALITY_COLUMNS",
    "SWEEP_COLUMNS",
    "Columns",
    "cells",
    "write_figure",
    "write_table",
]

Columns = Mapping[str, tuple[str, str]]
"""Key of a row → title of its column and how its values are formatted."""

QUALITY_COLUMNS = {
    "dataset": ("data set", ""),
    "images": ("images", ""),
    "degradation": ("degradation", ""),
    "model": ("model", ""),
    "weights": ("weights", ""),
    "backend": ("backend", ""),
    "precision": ("precision", ""),
    "psnr_y": ("PSNR-Y", ".3f"),
    "ssim_y": ("SSIM-Y", ".4f"),
    "psnr_rgb": ("PSNR-RGB", ".3f"),
    "worst_psnr_y": ("worst PSNR-Y", ".3f"),
}
DROP_COLUMNS: Columns = QUALITY_COLUMNS | {
    "psnr_drop_db": ("drop from fp32 (dB)", "+.4f"),
    "worst_drop_db": ("worst drop (dB)", "+.4f"),
}
INT8_COLUMNS: Columns = {
    "model": ("model", ""),
    "weights": ("weights", ""),
    "engine": ("engine", ""),
    "size": ("LR size", ""),
    "threads": ("threads", ""),
    "fp32_ms": ("fp32 (ms)", ".1f"),
    "int8_ms": ("int8 (ms)", ".1f"),
    "speedup": ("times faster", ".2f"),
    "int8_gflops": ("int8 (GFLOP/s)", ".0f"),
    "stack_gflops": ("bare stack (GFLOP/s)", ".0f"),
    "share_of_stack": ("share of it", ".0%"),
    "call_ms": ("array to array (ms)", ".1f"),
    "call_overhead": ("over the engine", "+.1%"),
}
LOAD_COLUMNS: Columns = {
    "load": ("load", ""),
    "requests": ("requests", ""),
    "failed": ("failed", ""),
    "throughput": ("pictures a second", ".2f"),
    "megapixels": ("Mpixels out a second", ".2f"),
    "p50_ms": ("p50 (ms)", ".1f"),
    "p90_ms": ("p90 (ms)", ".1f"),
    "p99_ms": ("p99 (ms)", ".1f"),
    "max_ms": ("max (ms)", ".1f"),
    "slowest_caller": ("slowest caller's share of a fair one", ".2f"),
    "rss_mb": ("RSS (MiB)", ".0f"),
    "rss_slope_mb_per_minute": ("RSS slope (MiB/min)", "+.2f"),
}
FIGURE_COLUMNS: Columns = {
    "figure": ("figure", ""),
    "value": ("measured", ".3g"),
    "unit": ("unit", ""),
    "asked": ("asked", ""),
}
LATENCY_COLUMNS: Columns = {
    "model": ("model", ""),
    "weights": ("weights", ""),
    "backend": ("backend", ""),
    "precision": ("precision", ""),
    "size": ("LR size", ""),
    "batch": ("batch", ""),
    "threads": ("threads", ""),
    "p50_ms": ("p50 (ms)", ".1f"),
    "p90_ms": ("p90 (ms)", ".1f"),
    "p99_ms": ("p99 (ms)", ".1f"),
    "spread": ("spread of rounds", ".1%"),
    "rounds": ("rounds", ""),
    "stable": ("stable", ""),
    "runs": ("runs", ""),
    "cold_start_ms": ("cold start (ms)", ".0f"),
    "peak_rss_mb": ("peak RSS (MiB)", ".0f"),
    "gflops": ("GFLOP", ".1f"),
    "share_of_peak": ("share of peak", ".0%"),
    "speedup_vs_baseline": ("× DiffIR torch eager", ".1f"),
    "error": ("error", ""),
}
SWEEP_COLUMNS: Columns = {**LATENCY_COLUMNS, "exponent": ("exponent", ".2f"), "steepest": ("steepest", ".2f")}
PRIOR_COLUMNS: Columns = {
    "prior": ("latent prior", ""),
    "psnr_y": ("PSNR-Y", ".3f"),
    "change_db": ("change (dB)", "+.4f"),
    "largest_change_db": ("largest change (dB)", "+.4f"),
    "largest_difference": ("largest difference (grey levels)", ""),
    "changed_pixels": ("changed pixels", ".2%"),
}


def cells(columns: Columns, row: Mapping[str, Any]) -> list[str]:
    """The row's values as text; nothing for what was not measured."""
    return ["" if row[key] is None else format(row[key], form) for key, (_, form) in columns.items()]


def write_table(
    folder: Path, name: str, report: Mapping[str, Any], columns: Columns, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write NAME.json (the report) and NAME.md (the rows). Raises `OutputError` where the folder cannot be written."""
    lines = [f"| {' | '.join(title for title, _ in columns.values())} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(cells(columns, row))} |" for row in rows]
    atomic_write(folder / f"{name}.json", dump_json(report).encode())
    atomic_write(folder / f"{name}.md", ("\n".join(lines) + "\n").encode())


def write_figure(figure: Figure, target: Path) -> None:
    """Write a matplotlib figure as PNG, whole or not at all. Raises `OutputError`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    atomic_write(target, buffer.getvalue())
