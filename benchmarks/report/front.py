"""The plot of quality against time: every model's point named, families joined, the Pareto front marked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .facts import Facts, Point, pareto, quantity
from .label_placement import Box, Place, place_labels
from .plots import PRECISIONS, number_ticks, plain, precision_style
from .tables import write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = ["draw_front", "plot_front"]

_DPI = 110
"""That `write_figure` saves with: hinted letters are not equally wide at every resolution."""
_CLEARANCE = 8.0
"""Half the side of a marker with a little air, pixels."""
_LEADER = 14.0
"""Pixels from marker to label from which on a line joins them."""
_SAMPLES = 4.0
"""Pixels between the points of a line that labels are to keep off."""
_CROSS_WEIGHT = 5
_FRONT_STYLE: dict[str, Any] = {"color": "0.75", "linestyle": "-", "linewidth": 5, "alpha": 0.6, "zorder": 1}


def plot_front(facts: Facts, target: Path) -> None:
    """Write a PNG of `facts.points`, PSNR-Y over milliseconds. Needs matplotlib; raises `OutputError`."""
    figure, _ = draw_front(facts)
    write_figure(figure, target)


def draw_front(facts: Facts) -> tuple[Figure, list[Box | None]]:
    """The figure, and where its labels stand (None: left out for want of room), in pixels."""
    from matplotlib.figure import Figure

    shown, off_scale = _on_scale(facts.points)
    figure = Figure(figsize=(9.5, 6.4 + 0.05 * len(shown)), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.1)
    front = pareto(shown)
    lines = [*_draw_front_line(axes, front), *_draw_families(axes, facts, shown)]
    crosses = _draw_other_engines(axes, facts, shown)
    for point in shown:
        _draw_point(axes, point)
    number_ticks(axes.xaxis)
    axes.set_xlabel(plain(f"median time of a call on the fastest engine here (ms, logarithmic), {facts.size_text}"))
    axes.set_ylabel(plain(f"PSNR-Y on {facts.dataset} (dB)"))
    axes.grid(alpha=0.25)
    if off_scale:
        places = (f"{_name(facts, p)} ({quantity(p.row.p50_ms)} ms, {p.psnr_y:.2f} dB)" for p in off_scale)
        axes.set_title(plain(f"off the scale: {', '.join(places)}"), fontsize=9, loc="right")
    _legend(figure, shown, facts.notes(point.row for point in shown), others=bool(crosses))
    return figure, _label(figure, axes, facts, shown, front, [*lines, *crosses])


def _on_scale(points: Sequence[Point]) -> tuple[list[Point], list[Point]]:
    """Points to draw, and those to name alone: interpolation, so far from all networks that these would be a heap."""
    networks = [point for point in points if point.row.weights != "none"]
    if len(networks) < 2:
        return list(points), []
    floor = min(point.psnr_y for point in networks)
    far = [point for point in points if point.row.weights == "none" and point.psnr_y < floor - 0.5]
    return [point for point in points if point not in far], far


def _name(facts: Facts, point: Point) -> str:
    return f"{facts.name(point.row)} {point.row.precision}"


def _draw_point(axes: Axes, point: Point) -> None:
    """Filled where PSNR was measured here, hollow where it was published."""
    color, _, marker, _ = precision_style(point.row.precision)
    style: dict[str, Any] = {"markeredgecolor": "0.1", "markeredgewidth": 1.1, "markersize": 8, "zorder": 4}
    axes.plot([point.row.p50_ms], [point.psnr_y], marker, color="white" if point.published else color, **style)


def _draw_front_line(axes: Axes, front: Sequence[Point]) -> list[Line2D]:
    """Stairs: the best that can be had within a time."""
    corners: list[Place] = []
    for point in front:
        if corners:
            corners.append((point.row.p50_ms, corners[-1][1]))
        corners.append((point.row.p50_ms, point.psnr_y))
    return axes.plot(*np.array(corners).T, **_FRONT_STYLE) if len(front) > 1 else []


def _draw_families(axes: Axes, facts: Facts, shown: Sequence[Point]) -> list[Line2D]:
    """A line through the members of a family that were measured at the same precision, from the fastest on."""

    def key(point: Point) -> tuple[str, str]:
        return facts.family(point.row.model), point.row.precision

    drawn: list[Line2D] = []
    for (_, precision), members in itertools.groupby(sorted(shown, key=key), key=key):
        points = sorted(members, key=lambda point: point.row.p50_ms)
        if len({point.row.model for point in points}) > 1:
            style = precision_style(precision)[3]
            places = [[point.row.p50_ms for point in points], [point.psnr_y for point in points]]
            drawn += axes.plot(*places, color="0.35", linewidth=1.1, linestyle=style, zorder=2)
    return drawn


def _draw_other_engines(axes: Axes, facts: Facts, shown: Sequence[Point]) -> list[Line2D]:
    """Small crosses, unnamed: the same model and precision where it is slower."""
    drawn: list[Line2D] = []
    quality = {(point.row.model, point.row.precision): point for point in shown}
    for row in facts.rows:
        point = quality.get((row.model, row.precision))
        if point is not None and row is not point.row:
            style: dict[str, Any] = {"color": "0.55", "markersize": 4, "markeredgewidth": 1, "zorder": 2}
            drawn += axes.plot([row.p50_ms], [point.psnr_y], "x", **style)
    return drawn


def _legend(figure: Figure, shown: Sequence[Point], notes: Sequence[str], *, others: bool) -> None:
    from matplotlib.lines import Line2D

    def entry(label: str, **style: Any) -> Line2D:
        base: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "0.1", "markersize": 8}
        return Line2D([], [], label=plain(label), **(base | style))

    present = {point.row.precision for point in shown}
    handles = [
        entry(name, marker=precision_style(name)[2], color=precision_style(name)[0])
        for name in sorted(present, key=[*PRECISIONS, *present].index)
    ]
    if any(point.published for point in shown):
        handles.append(entry("published PSNR (random weights here)", marker="o", color="white"))
    if others:
        handles.append(entry("on a slower engine", marker="x", markeredgecolor="0.55", markersize=5))
    handles.append(entry("Pareto front (names in bold)", **_FRONT_STYLE))
    handles.append(entry("members of a family, by precision", color="0.35", linestyle="-", linewidth=1.1))
    title = "\n".join(notes) or None
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, fontsize=8.5, frameon=False, title=title, title_fontsize=8
    )


def _label(
    figure: Figure, axes: Axes, facts: Facts, shown: Sequence[Point], front: Sequence[Point], drawn: Sequence[Line2D]
) -> list[Box | None]:
    """Name every point. Only a drawn figure knows its pixels; labels stay out of the layout, so that these stay true."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    transform = axes.transData.transform
    anchors = [_place(transform((point.row.p50_ms, point.psnr_y))) for point in shown]
    styles: list[dict[str, Any]] = [
        {"fontsize": 8.5, "fontweight": "bold" if point in front else "normal"} for point in shown
    ]
    texts = [plain(_name(facts, point)) for point in shown]
    sizes = []
    for text, style in zip(texts, styles, strict=True):
        trial = axes.text(0.5, 0.5, text, transform=axes.transAxes, **style)
        extent = trial.get_window_extent(canvas.get_renderer())
        sizes.append((float(extent.width) + 2, float(extent.height)))
        trial.remove()
    frame = axes.get_window_extent()
    bounds = (frame.x0 + 3, frame.y0 + 3, frame.x1 - 3, frame.y1 - 3)
    keep_off = _samples(transform(line.get_xydata()) for line in drawn)
    boxes = place_labels(anchors, sizes, bounds, keep_off, clearance=_CLEARANCE)
    for text, style, anchor, box in zip(texts, styles, anchors, boxes, strict=True):
        if box is not None:
            _write(figure, axes, text, style, anchor, box)
    return boxes


def _place(pixels: Any) -> Place:
    return float(pixels[0]), float(pixels[1])


def _samples(polylines: Iterable[Any]) -> list[Place]:
    """Points along lines of N×2 pixels; a lone point, a small cross, weighs as much as a few of them."""
    places: list[Place] = []
    for line in polylines:
        if len(line) == 1:
            places += [_place(line[0])] * _CROSS_WEIGHT
        for start, end in itertools.pairwise(line):
            count = 2 + int(math.dist(start, end) / _SAMPLES)
            places += [_place(place) for place in np.linspace(start, end, count)]
    return places


def _write(figure: Figure, axes: Axes, text: str, style: dict[str, Any], anchor: Place, box: Box) -> None:
    """The label in its box, given in points from its marker, so that it holds at any resolution; a line if it is far."""
    end = (min(max(anchor[0], box[0]), box[2]), min(max(anchor[1], box[1]), box[3]))
    marker = _place(axes.transData.inverted().transform(anchor))
    if math.dist(anchor, end) > _LEADER:
        tip = _place(axes.transAxes.inverted().transform(end))
        arrow = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4}
        axes.annotate("", marker, tip, textcoords="axes fraction", arrowprops=arrow).set_in_layout(False)
    point = 72 / figure.dpi
    offset = ((box[0] + 1 - anchor[0]) * point, (box[1] - anchor[1]) * point)
    label = axes.annotate(text, marker, offset, textcoords="offset points", va="bottom", ha="left", zorder=5, **style)
    label.set_in_layout(False)
