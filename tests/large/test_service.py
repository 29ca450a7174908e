"""What takes too long for CI: `make check-large`. Each test leaves its report in `check-large/`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from rdsr.benchmarks.process import resident_mb
from rdsr.benchmarks.report.tables import FIGURE_COLUMNS, LOAD_COLUMNS, write_table
from rdsr.benchmarks.service.load import measure_load, plot_load
from rdsr.benchmarks.service.runtime import Subject, measure_memory
from rdsr.benchmarks.subjects.find import checkpoint_of
from rdsr.export.exporter import ExportOptions, export_checkpoint
from rdsr.runtime import Upscaler

REPORTS = Path("check-large")
SECONDS = float(os.environ.get("RDSR_SOAK_SECONDS", "600"))
CALLERS = 4
LIMIT_MB = 256
SIZES = [(int(a), int(b)) for a, b in np.random.default_rng(0).integers(32, 257, (64, 2))]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_memory_stays_flat_over_ten_minutes_of_mixed_sizes(backend: str) -> None:
    before = resident_mb()
    upscaler = Upscaler.load(backend=backend, precision="int8", memory_limit=f"{LIMIT_MB}MiB")
    rows = measure_load(upscaler, sizes=SIZES, concurrency=[CALLERS], rate=None, seconds=SECONDS)
    shown = [dataclasses.asdict(row) for row in rows]
    write_table(REPORTS, f"soak-{backend}", {"sizes": SIZES, "rows": shown}, LOAD_COLUMNS, shown)
    plot_load(rows, REPORTS / f"soak-{backend}.png")
    assert rows[0].failed == 0
    assert rows[0].rss_slope_mb_per_minute < 1.0
    largest = max(height * width for height, width in SIZES) * 3 * 17 / 2**20  # in and out
    pictures = sum(height * width for height, width in SIZES) * 3 / 2**20
    assert max(resident for _, resident in rows[0].rss) - before < LIMIT_MB + CALLERS * largest + pictures


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_base_stays_in_256_mib_at_every_size(backend: str, precision: str, base: Path) -> None:
    subject = Subject(str(base), backend, precision, 2)
    figures = measure_memory(subject, (64, 256, 1024, 4096), "256MiB")
    shown = [dataclasses.asdict(figure) for figure in figures]
    write_table(REPORTS, f"memory-{backend}-{precision}", {"rows": shown}, FIGURE_COLUMNS, shown)
    assert all(figure.value <= 256 for figure in figures)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` with random weights: memory does not depend on them."""
    folder = tmp_path_factory.mktemp("base")
    checkpoint, _ = checkpoint_of("base", folder)
    options = ExportOptions(checkpoint=checkpoint, output=folder / "base.bundle", max_psnr_drop=1e3, single_graph=False)
    assert export_checkpoint(options).passed
    return folder / "base.bundle"
