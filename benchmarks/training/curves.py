"""The course of training runs as a picture: validation PSNR and loss over time, read from their CSV logs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BenchmarkError
from ..report.tables import write_figure

__all__ = ["course", "plot_runs", "read_log"]

_STYLES = ("-", "--", ":", "-.")


def read_log(path: Path) -> list[dict[str, str]]:
    """Rows of a run folder's log.csv, or of a copy of one; `BenchmarkError` where it is no such file."""
    log = path / "log.csv" if path.is_dir() else path
    try:
        with log.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"cannot read the log {log}: {getattr(error, 'strerror', None) or error}") from error
    wanted = {"step", "minutes", "pixel", "psnr_y"}
    if rows and wanted <= set(rows[0]) and any(value is None for value in rows[-1].values()):
        del rows[-1]  # cut short while it was written
    try:
        cells = [row[name] for row in rows for name in wanted if row[name] or name in ("step", "minutes")]
        good = bool(rows) and all(float(cell) >= 0 for cell in cells)
    except (KeyError, TypeError, ValueError):
        good = False
    if not good:
        raise BenchmarkError(f"{log} is no log of a training run, or holds no row yet")
    return rows


def plot_runs(runs: Mapping[str, Sequence[Path]], target: Path) -> None:
    """Write a PNG of one curve a label; the runs of a label follow each other in time (stage 1, stage 2, a finish).

    Above PSNR-Y of the validation set in dB (in stage 1 with the prior of the LPE, which sees the original), below L1 of the
    training patches, both over minutes of training. Needs matplotlib.
    Raises `BenchmarkError` for a log that cannot be read, `OutputError` where nothing can be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for index, (label, paths) in enumerate(runs.items()):
        style: dict[str, Any] = {"color": f"C{index}", "linestyle": _STYLES[index % len(_STYLES)]}
        minutes, loss, checked, psnr = course(paths)
        above.plot(checked, psnr, marker=".", label=label, **style)
        below.plot(minutes, loss, label=label, linewidth=1, **style)
    above.set_ylabel("PSNR-Y of the validation set (dB)")
    below.set_ylabel("L1 of the training patches")
    below.set_yscale("log")
    below.set_xlabel("minutes of training")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    above.legend(loc="lower right")
    write_figure(figure, target)


def course(paths: Sequence[Path]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Minutes and loss of every row, minutes and PSNR of every validation, over runs that follow each other."""
    minutes: list[float] = []
    loss: list[float] = []
    checked: list[float] = []
    psnr: list[float] = []
    before = 0.0
    for path in paths:
        for row in read_log(path):
            now = before + float(row["minutes"])
            minutes.append(now)
            loss.append(float(row["pixel"] or "nan"))  # empty where every step was left out
            if row["psnr_y"]:
                checked.append(now)
                psnr.append(float(row["psnr_y"]))
        before = minutes[-1]
    return minutes, loss, checked, psnr
