"""Benchmark results as files: JSON, and a Markdown twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runtime.files import atomic_write, dump_json

__all__ = ["write_quality"]


def write_quality(folder: Path, report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write quality.json and quality.md. Raises `OutputError` where the folder cannot be written."""
    lines = [
        "| data set | images | model | backend | precision | PSNR-Y | SSIM-Y | PSNR-RGB | worst PSNR-Y |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['dataset']} | {r['images']} | {r['model']} | {r['backend']} | {r['precision']} | {r['psnr_y']:.3f} "
        f"| {r['ssim_y']:.4f} | {r['psnr_rgb']:.3f} | {r['worst_psnr_y']:.3f} |"
        for r in rows
    ]
    atomic_write(folder / "quality.json", dump_json(report).encode())
    atomic_write(folder / "quality.md", ("\n".join(lines) + "\n").encode())
