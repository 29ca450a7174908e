"""SinSR as large as it is released, with random weights: `make check-large`. The reports lie in `check-large/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rdsr.benchmarks.report.tables import FIGURE_COLUMNS, write_table
from rdsr.runtime.bundle import Bundle
from rdsr.runtime.pipelines import load_pipeline, pipeline_kind
from rdsr.runtime.pipelines.shift_process import padded
from rdsr.tests.large.commands import run

REPORTS = Path("check-large")
ASKED_GIB, ASKED_SECONDS = 16, 15 * 60
LIMIT_GIB = 3
SIZES = (128, 128), (300, 500)
TILE, STRIDE = 128, 112
"""Patches of the released chopping, in LR pixels, and the distance between them: an eighth of each is shared."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The bundle, and the figures of its export and verification."""
    bundle = tmp_path_factory.mktemp("sinsr") / "sinsr.bundle"
    report, export_seconds, export_memory = run("export", "sinsr", "-o", str(bundle), "--precision", "fp32")
    verified, verify_seconds, verify_memory = run("verify", str(bundle))
    assert report["passed"] is verified["passed"] is True
    assert 173e6 < report["params"] < 175e6
    return bundle, [
        {"figure": "export", "value": export_seconds, "unit": "s", "asked": ""},
        {"figure": "verify", "value": verify_seconds, "unit": "s", "asked": ""},
        {"figure": "both", "value": export_seconds + verify_seconds, "unit": "s", "asked": f"≤ {ASKED_SECONDS}"},
        {"figure": "peak memory", "value": max(export_memory, verify_memory), "unit": "GiB", "asked": f"≤ {ASKED_GIB}"},
    ]


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    """Gradients in all directions."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], axis=2).astype(np.uint8)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_memory(exported: tuple[Path, list[dict[str, Any]]], backend: str, tmp_path: Path) -> None:
    bundle, figures = exported
    rows = list(figures)
    for height, width in SIZES:
        cv2.imwrite(str(tmp_path / "in.png"), smooth(height, width))
        options = ["--bundle", str(bundle), "--memory-limit", f"{LIMIT_GIB}GiB", "--backend", backend]
        _, seconds, memory = run("upscale", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), *options)
        what = f"{height}×{width} in {backend}"
        rows += [
            {"figure": what, "value": seconds, "unit": "s", "asked": ""},
            {"figure": f"{what}, peak memory", "value": memory, "unit": "GiB", "asked": f"≤ {LIMIT_GIB}"},
        ]
        assert memory <= LIMIT_GIB
    write_table(REPORTS, f"sinsr-{backend}", {"rows": rows}, FIGURE_COLUMNS, rows)
    assert figures[2]["value"] <= ASKED_SECONDS
    assert figures[3]["value"] <= ASKED_GIB


def seams(sr: NDArray[Any], borders: tuple[set[int], set[int]]) -> float:
    """The mean gradient across the borders of tiles (rows and columns of LR pixels), over that inside tiles."""
    at, inside = [], []
    for axis, starts in enumerate(borders):
        across = np.abs(np.diff(sr.astype(np.float64), axis=axis)).mean(axis=(1 - axis, 2))[3::4]
        places = [start - 1 for start in starts if 0 < start <= len(across)]
        at += list(across[places])
        inside += list(np.delete(across, places))
    return float(np.mean(at) / np.mean(inside))


def test_seams(exported: tuple[Path, list[dict[str, Any]]]) -> None:
    """Our tiles, and the released chopping: patches by themselves, each with fresh noise, and the mean of shared pixels."""
    bundle = Bundle(exported[0])
    height, width = SIZES[1]
    picture = smooth(height, width)
    pipeline = load_pipeline(bundle, backend="openvino", precision="fp32", threads=2, seed=0)
    kind = pipeline_kind(bundle.manifest)
    plan = kind.plan(bundle.manifest, kind.needs(bundle.manifest, "openvino", "fp32", None), height, width, None, 0)
    tiles = list(plan.of(*padded(height, width, bundle.manifest.process["size_multiple"])))
    ours = seams(pipeline.picture(picture, plan=plan), ({t.rows.start for t in tiles}, {t.columns.start for t in tiles}))
    total, count = np.zeros((4 * height, 4 * width, 3)), np.zeros((4 * height, 4 * width, 1))
    places = [sorted({min(start, length - TILE) for start in range(0, length, STRIDE)}) for length in (height, width)]
    for number, (top, left) in enumerate((top, left) for top in places[0] for left in places[1]):
        pipeline.seed = number
        patch = pipeline.picture(picture[top : top + TILE, left : left + TILE])
        place = slice(4 * top, 4 * (top + TILE)), slice(4 * left, 4 * (left + TILE))
        total[place] += patch
        count[place] += 1
    edges = [{edge for start in starts for edge in (start, start + TILE)} for starts in places]
    chopped = seams(total / count, (edges[0], edges[1]))
    rows = [
        {
            "figure": "gradient across borders, of that inside",
            "value": ours,
            "unit": "",
            "asked": "≤ 1.05",
        },
        {"figure": "the same, released chopping", "value": chopped, "unit": "", "asked": ""},
    ]
    write_table(REPORTS, "sinsr-seams", {"rows": rows}, FIGURE_COLUMNS, rows)
    assert ours <= 1.05
