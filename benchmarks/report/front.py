"""The plot of quality against time: every model's point named, families joined, the Pareto front marked."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .facts import Facts, Point, pareto, quantity
from .plots import number_ticks, plain, precision_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

__all__ = ["draw_front", "frames", "place_labels"]

Places = list[tuple[float, float]]
"""x and y, milliseconds and dB."""
_FRONT_STYLE: dict[str, Any] = {"color": "0.75", "linestyle": "-", "linewidth": 5, "alpha": 0.6, "zorder": 1}
_MARKER_STYLE: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "0.1", "markersize": 8, "zorder": 4}
_CROSS_STYLE: dict[str, Any] = {"linestyle": "none", "marker": "x", "color": "0.55", "markersize": 4, "zorder": 2}
_FAMILY_STYLE: dict[str, Any] = {"color": "0.35", "linewidth": 1.1, "zorder": 2}


def frames(facts: Facts) -> tuple[list[Point], list[Point], list[Point]]:
    """The points of the main frame, those of a smaller frame above it, and those off the scale.

    Our own points take at least half of the main frame's width and height. Without two of them, all networks count as ours.
    """
    own = [point for point in facts.points if facts.is_ours(point.row)]
    if len(own) < 2:
        own = [point for point in facts.points if point.row.weights != "none"] or facts.points
    in_time = _fit(facts.points, own, lambda point: math.log10(point.row.p50_ms), 0.3)
    main = _fit(in_time, own, lambda point: point.psnr_y, 0.1)
    best = max(point.psnr_y for point in main)
    above = [point for point in in_time if point not in main and point.psnr_y > best]
    return main, above, [point for point in facts.points if point not in main and point not in above]


def _fit(points: Sequence[Point], own: Sequence[Point], value: Callable[[Point], float], least: float) -> list[Point]:
    """Add points to our own, the nearest first, while ours take half of the extent. Twice `least` is always allowed."""
    low, high = min(map(value, own)), max(map(value, own))
    room = 2 * max(high - low, least)
    kept = list(own)
    for point in sorted(points, key=lambda point: max(low - value(point), value(point) - high)):
        ends = min(low, value(point)), max(high, value(point))
        if point not in kept and ends[1] - ends[0] <= room:
            (low, high), kept = ends, [*kept, point]
    return kept


def draw_front(facts: Facts) -> tuple[Figure, list[Text]]:
    """Plot `facts.points`, PSNR-Y over milliseconds. Returns the labels too, one for every point that is on the scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    main, above, off_scale = frames(facts)
    shown = [*main, *above]
    # `write_figure` saves with the same resolution: hinted letters are not equally wide at every one.
    figure = Figure(figsize=(9.5, 6.4 + 0.05 * len(shown)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = [above, main] if above else [main]
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=[1, 2.5][-len(panels) :])[:, 0]
    drawn = [_draw(axes, facts, points, shown) for axes, points in zip(grid, panels, strict=True)]
    number_ticks(grid[-1].xaxis)
    grid[-1].set_xlabel(plain(f"median time of a call on the fastest engine here (ms, logarithmic), {facts.size_text}"))
    grid[-1].set_ylabel(plain(f"PSNR-Y on {facts.dataset} (dB)"))
    if above:  # the frames differ in scale, and their facing edges are open
        grid[0].spines["bottom"].set_visible(False)
        grid[1].spines["top"].set_visible(False)
        grid[0].tick_params(axis="x", which="both", length=0)
        cut: dict[str, Any] = {"marker": [(-1, -0.5), (1, 0.5)], "markersize": 10, "clip_on": False}
        for axes, end in zip(grid, (0, 1), strict=True):
            axes.plot([0, 1], [end, end], transform=axes.transAxes, linestyle="none", color="0.1", **cut)
    if off_scale:
        each = "; ".join(f"{_name(facts, p)} ({quantity(p.row.p50_ms)} ms, {p.psnr_y:.2f} dB)" for p in off_scale)
        grid[0].set_title(plain(textwrap.fill(f"off the scale: {each}", 130)), fontsize=9, loc="right")
    entries = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=4, fontsize=8.5, frameon=False)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # labels are placed in pixels, which a new layout would move
    labels: list[Text] = []
    for axes, points, (lines, crosses) in zip(grid, panels, drawn, strict=True):
        texts = [_name(facts, point) for point in points]
        places = [(point.row.p50_ms, point.psnr_y) for point in points]
        labels += place_labels(axes, places, texts, [point in pareto(shown) for point in points], lines, crosses)
    return figure, labels


def _name(facts: Facts, point: Point) -> str:
    return f"{facts.names[point.row.model]} {point.row.precision}"


def _draw(axes: Axes, facts: Facts, points: Sequence[Point], shown: Sequence[Point]) -> tuple[list[Places], Places]:
    """Draw the points of one frame, and what connects all that are shown. Returns lines and crosses to keep labels off."""
    axes.set_xscale("log")
    low, high = _margins([math.log10(point.row.p50_ms) for point in shown], 0.12, 0.15)
    axes.set_xlim(10**low, 10**high)
    axes.set_ylim(*_margins([point.psnr_y for point in points], 0.12, 0.03))
    axes.grid(alpha=0.25)
    stairs: Places = []  # the best that can be had within a time
    for point in pareto(shown):
        if stairs:
            stairs.append((point.row.p50_ms, stairs[-1][1]))
        stairs.append((point.row.p50_ms, point.psnr_y))
    axes.plot(*np.array(stairs).T, label="Pareto front (names in bold)", **_FRONT_STYLE)
    lines = [stairs]
    styles = precision_styles({point.row.precision for point in shown})

    def family(point: Point) -> tuple[str, str]:
        return facts.family(point.row.model), point.row.precision

    for (_, precision), members in itertools.groupby(sorted(shown, key=family), key=family):
        own = sorted(members, key=lambda point: point.row.p50_ms)
        if len({point.row.model for point in own}) > 1:
            lines.append([(point.row.p50_ms, point.psnr_y) for point in own])
            axes.plot(
                *np.array(lines[-1]).T,
                linestyle=styles[precision][3],
                label=f"a family at {plain(precision)}",
                **_FAMILY_STYLE,
            )
    for point in points:
        color, _, marker, _ = styles[point.row.precision]
        face, label = ("white", "hollow: published PSNR") if point.published else (color, plain(point.row.precision))
        axes.plot([point.row.p50_ms], [point.psnr_y], marker=marker, color=face, label=label, **_MARKER_STYLE)
    quality = {(point.row.model, point.row.precision): point for point in points}
    others = [(row, quality.get((row.model, row.precision))) for row in facts.rows]
    crosses = [(row.p50_ms, point.psnr_y) for row, point in others if point and row is not point.row]
    if crosses:
        axes.plot(*np.array(crosses).T, label="on a slower engine", **_CROSS_STYLE)
    return lines, crosses


def _margins(values: Sequence[float], share: float, least: float) -> tuple[float, float]:
    """The ends of an axis with some room beside its values."""
    low, high = min(values), max(values)
    room = max(share * (high - low), least)
    return low - room, high + room


def place_labels(
    axes: Axes, places: Places, texts: Sequence[str], bold: Sequence[bool], lines: Sequence[Places], crosses: Places
) -> list[Text]:
    """Name every place of a frame, x and y in data units. No label covers another one or a marker.

    Labels also keep off the lines and the small crosses while there is room. A label that is far from its place is joined to
    it by a line.
    """
    import textalloc

    spots = np.array([*places, *crosses])
    # Markers that are not seen, with some air around them, tell textalloc how large the drawn ones are.
    markers = axes.scatter(spots[:, 0], spots[:, 1], s=[110] * len(places) + [30] * len(crosses), alpha=0)
    options: dict[str, Any] = {"margin": 0.004, "min_distance": 0.006, "max_distance": 0.7, "nbr_candidates": 3000}
    options |= {"textsize": 8.5, "va": "bottom", "zorder": 5, "linecolor": "0.5", "linewidth": 0.7, "scatter_plot": markers}
    options |= {"x_scatter": spots[:, 0], "y_scatter": spots[:, 1], "fontweight": ["bold" if b else "normal" for b in bold]}
    wishes: dict[str, Any] = {"avoid_label_lines_overlap": True, "avoid_crossing_label_lines": True}
    wishes |= {"x_lines": [[x for x, _ in line] for line in lines], "y_lines": [[y for _, y in line] for line in lines]}
    x, y = np.array(places).T
    names = [plain(text) for text in texts]
    found: Any = textalloc.allocate(axes, x, y, names, draw_all=False, **options, **wishes)
    if None in found[2]:  # too crowded to keep off the lines as well
        for artist in filter(None, [*found[2], *found[3]]):
            artist.remove()
        found = textalloc.allocate(axes, x, y, names, **options)
    return list(found[2])
