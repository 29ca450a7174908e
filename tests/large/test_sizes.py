"""Limits on memory hold while sizes vary: 400 pictures of other sizes and kinds per engine and precision, as a plot."""

from __future__ import annotations

from pathlib import Path

import pytest

from rdsr.benchmarks.report.tables import write_figure
from rdsr.runtime.bundle import default_bundle_path
from rdsr.tests.runtime.tiling.varying_sizes import KINDS, peaks

REPORTS = Path("check-large")
LIMITS_MIB = 160, 256
PICTURES = 400
SIDES = 60, 260


@pytest.mark.parametrize("precision", KINDS)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_limits_hold_over_400_sizes(backend: str, precision: str) -> None:
    found = {
        limit: peaks(default_bundle_path(), backend, precision, limit_mib=limit, count=PICTURES, sides=SIDES)
        for limit in LIMITS_MIB
    }
    plot(found, f"{backend}, {precision}", REPORTS / f"sizes-{backend}-{precision}.png")
    for limit, rows in found.items():
        assert max(rows) <= limit
        assert max(rows[-100:]) < max(rows[100:200]) + 4, "nothing grows"


def plot(found: dict[int, list[float]], title: str, target: Path) -> None:
    """The peaks of all pictures under each limit, and the limits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for (limit, rows), shade in zip(found.items(), ("0.5", "0.1"), strict=False):
        axes.plot(range(1, len(rows) + 1), rows, color=shade, linewidth=1, label=f"memory_limit {limit} MiB")
        axes.axhline(limit, color=shade, linestyle="--", linewidth=1)
    axes.set(xlabel="picture", ylabel="MiB at its peak", title=title, ylim=(0, None))
    axes.legend(loc="lower right")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_figure(figure, target)
