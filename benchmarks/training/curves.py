"""Validation PSNR and loss of training runs over time, read from their CSV logs and drawn as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import shortened
from ...models.files import read_small, reason_of
from ..errors import BenchmarkError
from ..report.tables import write_figure

__all__ = ["course", "plot_runs", "read_log"]

_COLUMNS = {"step": "", "minutes": "", "pixel": "0", "psnr_y": "0"}
"""Columns that a log must have → number that stands for an empty cell; step and minutes must not be empty."""
MOST_BYTES = 2**26
"""Most bytes of a log; a row takes some 100."""
_STYLES = ("-", "--", ":", "-.")


def read_log(path: Path) -> list[dict[str, str]]:
    """Rows of a run folder's log.csv, or of a copy of one. Raises `BenchmarkError` if the file is not such a log."""
    log = path / "log.csv" if path.is_dir() else path
    try:
        rows = list(csv.DictReader(io.StringIO(read_small(log, MOST_BYTES).decode(), newline="")))
        if rows and None in rows[-1].values():
            del rows[-1]  # cut short while it was written
        valid = bool(rows) and all(float(row[name] or empty) >= 0 for row in rows for name, empty in _COLUMNS.items())
    except OSError as error:
        raise BenchmarkError(f"cannot read the log {shortened(log)}: {reason_of(error)}") from error
    except (KeyError, ValueError, csv.Error):  # no such column, a cell without a number, or no text
        valid = False
    if not valid:
        raise BenchmarkError(f"{log} is not the log of a training run, or it has no rows yet")
    return rows


def plot_runs(runs: Mapping[str, Sequence[Path]], target: Path) -> None:
    """Write a PNG with one curve a label; the runs of a label follow each other in time (stage 1, stage 2, a finish).

    Above: PSNR-Y of the validation set in dB (in stage 1 with the prior of the LPE, which sees the original). Below: L1 of
    the training patches. Both over minutes of training. Needs matplotlib.
    Raises `BenchmarkError` for a log that cannot be read, `OutputError` if the PNG cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for index, (label, paths) in enumerate(runs.items()):
        style: dict[str, Any] = {"color": f"C{index}", "linestyle": _STYLES[index % len(_STYLES)]}
        minutes, loss, checked, psnr = course(paths)
        above.plot(checked, psnr, marker=".", label=label, **style)
        below.plot(minutes, loss, label=label, linewidth=1, **style)
    above.set(ylabel="PSNR-Y of the validation set (dB)")
    below.set(ylabel="L1 of the training patches", yscale="log", xlabel="minutes of training")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    above.legend(loc="lower right")
    write_figure(figure, target)


def course(paths: Sequence[Path]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Minutes and loss of every row, minutes and PSNR of every validation, over runs that follow each other."""
    rows: list[tuple[float, str, str]] = []
    before = 0.0
    for path in paths:
        rows += [(before + float(row["minutes"]), row["pixel"], row["psnr_y"]) for row in read_log(path)]
        before = rows[-1][0]
    checks = [(minutes, float(psnr)) for minutes, _, psnr in rows if psnr]
    losses = [float(pixel or "nan") for _, pixel, _ in rows]  # empty if every step was left out
    return [minutes for minutes, *_ in rows], losses, [minutes for minutes, _ in checks], [psnr for _, psnr in checks]
