"""Plots of a report: bars of latency, memory and share of the peak, and how time grows. Readable without colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data import Row, Sweep, Way
from .facts import Facts, quantity, ratio
from .tables import write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "MOST_BARS",
    "PRECISIONS",
    "number_ticks",
    "plain",
    "plot_latency",
    "plot_memory",
    "plot_peak",
    "plot_sweep",
    "precision_style",
]

MOST_BARS = 60
"""Slower rows are in the tables alone."""
_INCH_A_BAR = 0.25
PRECISIONS = {
    "fp32": ("#3b6ea8", "", "o", "-"),
    "bf16": ("#e8b33f", "//", "s", "--"),
    "int8": ("#7fc8a9", "..", "^", "-."),
    "uint8": ("#cccccc", "xx", "D", ":"),
}
"""Precision → colour, hatch, marker and line style."""
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_SWEPT: dict[str, tuple[str, Callable[[Row], int], str, float]] = {
    "size": ("LR pixels (height × width)", lambda row: row.size[0] * row.size[1], "proportional to pixels", 1.0),
    "threads": ("threads", lambda row: row.threads, "inversely proportional to threads", -1.0),
    "batch": ("pictures a call", lambda row: row.batch, "proportional to pictures", 1.0),
}
"""Sweep → title of its axis, what a row has on it, and the name and exponent of the guide line."""


def precision_style(precision: str) -> tuple[str, str, str, str]:
    """Colour, hatch, marker and line style."""
    return PRECISIONS.get(precision, ("#ffffff", "\\\\", "h", ":"))


def plain(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")


def number_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with numbers: powers of ten, and what lies between them where those are few."""
    from matplotlib.ticker import FuncFormatter

    def between(value: float, _: int | None) -> str:
        low, high = axis.get_view_interval()
        digit = f"{value:e}"[0]
        return f"{value:,g}" if high < 4 * low or (high < 50 * low and digit in "25") else ""

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(FuncFormatter(between))


def plot_latency(facts: Facts, target: Path) -> None:
    """One bar a row of `facts.rows`, with its time and how many times as fast as the baseline it is.

    This and the other plots write a PNG, need matplotlib, and raise `OutputError`.
    """
    rows = facts.rows[:MOST_BARS]
    figure, axes = _bar_figure(len(rows))
    _bars(axes, facts, rows, [row.p50_ms for row in rows], [_time_text(facts, row) for row in rows])
    _log_room(axes, [row.p50_ms for row in rows])
    axes.set_xlabel("median time of a call (ms, logarithmic)")
    baseline = facts.results.baseline
    times = (
        f"; × = times as fast as {facts.marked(baseline.model)} on {baseline.backend}, {baseline.precision}"
        if baseline
        else ""
    )
    axes.set_title(plain(f"{facts.size_text}{times}"), fontsize=10, loc="left")
    _finish_bars(figure, facts, rows, target)


def plot_memory(facts: Facts, target: Path) -> None:
    """Peak resident memory (MiB) beside the time from nothing to the first picture (ms), row by row."""
    rows = [row for row in facts.rows if row.peak_rss_mb is not None or row.cold_start_ms is not None][:MOST_BARS]
    figure, (left, right) = _bar_figure(len(rows), panels=2)
    resident = [row.peak_rss_mb or 0.0 for row in rows]
    _bars(left, facts, rows, resident, [quantity(value) if value else "not measured" for value in resident])
    left.set_xlim(0, 1.25 * max([*resident, 1.0]))
    left.set_xlabel("peak resident memory of the process (MiB)")
    # A logarithmic axis has no 0: what was not measured gets a bar of no length at the axis' start.
    cold = [row.cold_start_ms for row in rows]
    known = [value for value in cold if value is not None] or [1.0]
    texts = ["not measured" if value is None else quantity(value) for value in cold]
    _bars(right, facts, rows, [min(known) / 2 if value is None else value for value in cold], texts)
    _log_room(right, known)
    right.set_xlabel("from start to the first result (ms, logarithmic)")
    _finish_bars(figure, facts, rows, target)


def plot_peak(facts: Facts, target: Path) -> None:
    """Share of the measured peak that each row with one reaches, in per cent."""
    rows = [row for row in facts.rows if row.share_of_peak is not None]
    rows = sorted(rows, key=lambda row: -(row.share_of_peak or 0.0))[:MOST_BARS]
    figure, axes = _bar_figure(len(rows))
    shares = [100 * (row.share_of_peak or 0.0) for row in rows]
    _bars(axes, facts, rows, shares, [_share_text(share, row) for share, row in zip(shares, rows, strict=True)])
    axes.axvline(100, color="0.3", linewidth=1, linestyle="--")
    axes.set_xlim(0, 1.3 * max([*shares, 80]))
    axes.set_xlabel("share of the measured peak of the engine at that precision (%)")
    _finish_bars(figure, facts, rows, target)


def _time_text(facts: Facts, row: Row) -> str:
    times = facts.speedup(row)
    text = f"{quantity(row.p50_ms)} ms"
    if facts.is_baseline(row):
        return f"{text}, baseline"
    return text if times is None else f"{text}, {ratio(times)}×"


def _share_text(share: float, row: Row) -> str:
    speed = "" if row.throughput_gflops is None else f", {quantity(row.throughput_gflops)} GFLOP/s"
    return f"{share:.0f} %{speed}"


def _bar_figure(count: int, panels: int = 1) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 1.7 + _INCH_A_BAR * max(count, 3)), layout="constrained")
    return figure, figure.subplots(1, panels, sharey=True)


def _bars(axes: Axes, facts: Facts, rows: Sequence[Row], values: Sequence[float], texts: Sequence[str]) -> None:
    """Horizontal bars from the first row at the top, each with its text at its end."""
    for place, (row, value, text) in enumerate(zip(rows, values, texts, strict=True)):
        color, hatch, _, _ = precision_style(row.precision)
        axes.barh(place, value, 0.72, color=color, hatch=hatch, edgecolor="0.2", linewidth=0.6)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # lines of the panel do not cross the text
        axes.annotate(text, (value, place), textcoords="offset points", xytext=(4, 0), va="center", fontsize=8, bbox=box)
    axes.set_yticks(range(len(rows)), [plain(f"{facts.name(row)} · {row.backend} · {row.precision}") for row in rows])
    axes.tick_params(axis="y", length=0, labelsize=8)
    # A panel that shares its labels with the one to the left has none of its own.
    for label, row in zip(axes.get_yticklabels(), rows, strict=False):
        label.set_fontweight("bold" if facts.family(row.model) == "rdsr" else "normal")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _log_room(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis on which the shortest bar can be seen and the longest one's text has room."""
    low, high = min(values) / 2, max(values)
    axes.set_xscale("log")
    axes.set_xlim(low, high * (high / low) ** 0.28)
    number_ticks(axes.xaxis)


def _finish_bars(figure: Figure, facts: Facts, rows: Sequence[Row], target: Path) -> None:
    """Legend of the precisions, notes on the marks, and the file."""
    from matplotlib.patches import Patch

    present = dict.fromkeys(row.precision for row in rows)
    patches = [
        Patch(facecolor=style[0], hatch=style[1], edgecolor="0.2", linewidth=0.6, label=plain(name))
        for name in sorted(present, key=[*PRECISIONS, *present].index)
        for style in [precision_style(name)]
    ]
    notes = "\n".join(facts.notes(rows))
    figure.legend(
        handles=patches,
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
        title=notes or None,
        title_fontsize=8,
    )
    write_figure(figure, target)


def plot_sweep(facts: Facts, name: str, sweep: Sweep, target: Path) -> None:
    """Time of a call over pixels, threads or pictures a call, on logarithmic axes, with exponents where they were fitted."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    title, position, guide, exponent = _SWEPT[name]
    lines = _lines(sweep, position)
    figure = Figure(figsize=(9.5, 5.2 + 0.11 * len(lines)), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    number_ticks(axes.xaxis)
    number_ticks(axes.yaxis)
    fits = {fit.of: fit.exponent for fit in sweep.fits}
    for index, (subject, rows) in enumerate(lines.items()):
        fit = fits.get(subject)
        label = f"{facts.line_name(subject, rows)} · {subject.backend} · {subject.precision}"
        label += "" if fit is None else f": exponent {fit:.2f}"
        style: dict[str, Any] = {"color": f"C{index % 10}", "linestyle": _LINES[index % 4], "marker": _MARKERS[index % 8]}
        axes.plot([position(row) for row in rows], [row.p50_ms for row in rows], label=plain(label), **style)
    _guide(axes, lines, position, guide, exponent)
    ticks = sorted({position(row) for rows in lines.values() for row in rows})
    if len(ticks) <= 12:
        texts = {position(row): f"{row.size[0]}×{row.size[1]}" for row in sweep.rows} if name == "size" else {}
        axes.set_xticks(ticks, [texts.get(tick, f"{tick:,}") for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"{title}, logarithmic")
    axes.set_ylabel("median time of a call (ms, logarithmic)")
    axes.grid(alpha=0.3, which="both")
    notes = "\n".join(facts.notes(row for rows in lines.values() for row in rows))
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False, title=notes or None, title_fontsize=8)
    write_figure(figure, target)


def _lines(sweep: Sweep, position: Callable[[Row], int]) -> dict[Way, list[Row]]:
    """Measured rows of each model, engine and precision, in order; the slowest line first, as it lies in the plot."""
    lines: dict[Way, list[Row]] = {}
    for row in sorted(sweep.rows, key=position):
        if row.error is None:
            lines.setdefault(Way.of(row), []).append(row)
    return dict(sorted(lines.items(), key=lambda entry: -entry[1][-1].p50_ms))


def _guide(axes: Axes, lines: dict[Way, list[Row]], position: Callable[[Row], int], label: str, exponent: float) -> None:
    """What ideal growth looks like: a line through the first point of the slowest line, which any other is parallel to."""
    rows = max(lines.values(), key=len, default=[])
    if len(rows) > 1:
        start = position(rows[0])
        places = [position(row) for row in rows]
        ideal = [rows[0].p50_ms * (place / start) ** exponent for place in places]
        axes.plot(places, ideal, color="0.6", linewidth=5, alpha=0.4, zorder=0, label=label)
