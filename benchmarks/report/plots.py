"""Plots of a report: bars, and how time grows. They are readable without colour. Only drawing needs matplotlib."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data import Row, Way
from .facts import Facts, quantity
from .tables import write_figure

if TYPE_CHECKING:
    from matplotlib.axis import Axis

__all__ = ["MOST_BARS", "SWEPT", "Bars", "number_ticks", "plain", "plot_bars", "plot_sweep", "precision_styles"]

MOST_BARS = 60
"""Slower rows are only in the tables."""
_PRECISIONS = {
    "fp32": ("#3b6ea8", "", "o", "-"),
    "bf16": ("#e8b33f", "//", "s", "--"),
    "int8": ("#7fc8a9", "..", "^", "-."),
    "uint8": ("#cccccc", "xx", "D", ":"),
}
SWEPT: dict[str, tuple[str, Callable[[Row], int], float]] = {
    "size": ("LR pixels", lambda row: row.size[0] * row.size[1], 1.0),
    "threads": ("threads", lambda row: row.threads, -1.0),
    "batch": ("pictures a call", lambda row: row.batch, 1.0),
}
"""Sweep → what is swept, its value for a row, and the exponent of ideal growth."""


@dataclasses.dataclass(frozen=True)
class Bars:
    """A panel of bars, one a row."""

    label: str
    """The title of its axis."""
    value: Callable[[Row], float | None]
    text: Callable[[Row], str] | None = None
    """The text at the end of a bar; default: its value."""
    start: float | None = None
    """Where a linear axis starts; default: the axis is logarithmic."""
    limit: float = math.nan
    """A value to mark with a line."""


def precision_styles(precisions: Collection[str]) -> dict[str, tuple[str, str, str, str]]:
    """Colour, hatch, marker and line style of each precision that occurs, in a fixed order."""
    names = [*_PRECISIONS, *sorted({*precisions} - {*_PRECISIONS})]
    return {name: _PRECISIONS.get(name, ("#ffffff", "\\\\", "h", ":")) for name in names if name in {*precisions}}


def plain(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")


def number_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with numbers: powers of ten, and what lies between them if those are few."""
    from matplotlib.ticker import FuncFormatter

    def between(value: float, _: int | None) -> str:
        low, high = axis.get_view_interval()
        return f"{value:,g}" if high < 4 * low or (high < 50 * low and f"{value:e}"[0] in "25") else ""

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(FuncFormatter(between))


def plot_bars(facts: Facts, rows: Sequence[Row], panels: Sequence[Bars], title: str, target: Path) -> None:
    """Write a PNG of horizontal bars, the first row at the top. Raises `OutputError`, like `plot_sweep`."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = rows[:MOST_BARS]
    figure = Figure(figsize=(9.5, 1.7 + 0.25 * max(len(rows), 3)), layout="constrained")
    styles = precision_styles({row.precision for row in rows})
    edge: dict[str, Any] = {"edgecolor": "0.2", "linewidth": 0.6}
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # lines of the panel do not cross the text
    for axes, bars in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        values = [bars.value(row) for row in rows]
        known = [value for value in values if value is not None] or [1.0]
        # A logarithmic axis has no 0: it starts below the shortest bar. At its end there is room for a text.
        low, high = min(known) / 2 if bars.start is None else bars.start, max(known)
        axes.set_xlim(low, high * (high / low) ** 0.28 if bars.start is None else 1.3 * max(high, 1.0))
        texts = [bars.text(row) if bars.text else quantity(bars.value(row) or 0.0) for row in rows]
        texts = ["not measured" if value is None else text for value, text in zip(values, texts, strict=True)]
        looks: dict[str, Any] = {"color": [styles[row.precision][0] for row in rows], **edge}
        looks |= {"hatch": [styles[row.precision][1] for row in rows]}
        drawn = axes.barh(range(len(rows)), [low if value is None else value for value in values], 0.72, **looks)
        axes.bar_label(drawn, texts, padding=4, fontsize=8, bbox=box)
        if bars.start is None:
            axes.set_xscale("log")
            number_ticks(axes.xaxis)
        axes.axvline(bars.limit, color="0.3", linewidth=1, linestyle="--")
        axes.set_xlabel(bars.label)
        axes.set_yticks(range(len(rows)), [plain(f"{facts.names[r.model]} · {r.backend} · {r.precision}") for r in rows])
        axes.tick_params(axis="y", length=0, labelsize=8)
        # A panel that shares the labels of its left neighbour has none.
        for label, row in zip(axes.get_yticklabels(), rows, strict=False):
            label.set_fontweight("bold" if facts.is_ours(row) else "normal")
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_title(plain(title), fontsize=10, loc="left")
    patches = [Patch(facecolor=style[0], hatch=style[1], label=plain(name), **edge) for name, style in styles.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    write_figure(figure, target)


def plot_sweep(facts: Facts, name: str, target: Path) -> None:
    """Time of a call over what is swept, on logarithmic axes, with the exponents that were fitted."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    what, position, ideal = SWEPT[name]
    measured: dict[Way, list[Row]] = {}
    for row in sorted(facts.swept[name], key=position):
        measured.setdefault(row.way, []).append(row)
    lines = sorted(measured.items(), key=lambda line: -line[1][-1].p50_ms)  # the legend's order is that of the plot
    figure = Figure(figsize=(9.5, 5.2 + 0.11 * len(lines)), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    number_ticks(axes.xaxis)
    number_ticks(axes.yaxis)
    exponents = {fit.way: fit.exponent for fit in facts.results.sweeps[name].fits}
    for index, (way, line) in enumerate(lines):
        exponent = exponents.get(way)
        label = f"{facts.names[way.model]} · {way.backend} · {way.precision}" + (
            f": exponent {exponent:.2f}" if exponent else ""
        )
        style: dict[str, Any] = {"color": f"C{index % 10}", "linestyle": ("-", "--", "-.", ":")[index % 4]}
        style |= {"marker": "os^DvPX*"[index % 8], "label": plain(label)}
        axes.plot([position(row) for row in line], [row.p50_ms for row in line], **style)
    # Ideal growth: a line through the first point of the longest line.
    longest = max(measured.values(), key=len)
    ideals = [longest[0].p50_ms * (position(row) / position(longest[0])) ** ideal for row in longest]
    guide = f"{'inversely ' * (ideal < 0)}proportional to {what}"
    axes.plot([position(row) for row in longest], ideals, color="0.6", linewidth=5, alpha=0.4, zorder=0, label=guide)
    sizes = name == "size"
    ticks = {position(r): f"{r.size[0]}×{r.size[1]}" if sizes else f"{position(r):,}" for _, line in lines for r in line}
    if len(ticks) <= 12:
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"{what}, logarithmic")
    axes.set_ylabel("median time of a call (ms, logarithmic)")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    write_figure(figure, target)
