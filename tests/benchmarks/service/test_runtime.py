"""`rdsr bench runtime` finds stalls and memory that are known in advance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rdsr.benchmarks.service.runtime import NewSizes, plot_new_sizes
from rdsr.cli.main import app
from rdsr.tests.conftest import run_alone


def synthetic(first: float, again: float) -> NewSizes:
    """2 ms + 3 µs a pixel; the first calls take `first` times as long, one of the later ones `again` times."""
    noise = np.random.default_rng(0)
    sizes = tuple((int(a), int(b)) for a, b in noise.integers(32, 513, (200, 2)))
    steady = [2 + 3e-3 * height * width for height, width in sizes]
    later = tuple((ms, ms, again * ms if i < 10 else ms) for i, ms in enumerate(steady))
    return NewSizes(sizes, tuple(first * ms for ms in steady), later)


def test_a_known_stall_is_found() -> None:
    measured = synthetic(first=1.7, again=1.2)
    assert measured.line() == pytest.approx((2, 3e-3), rel=1e-6)
    figures = {figure.figure: figure for figure in measured.figures()}
    p99 = figures["first call at a new size, p99, of the fit"]
    assert (p99.value, p99.asked) == (pytest.approx(1.7), "≤ 1.5")
    assert figures["later call, p99, of the fit"].value == pytest.approx(1.2)
    largest = max(height * width for height, width in measured.sizes)
    assert figures["first call at a new size, most above the fit"].value == pytest.approx(0.7 * (2 + 3e-3 * largest))
    assert figures["first call above the size's own best, p99"].value == pytest.approx(1.7)


def test_it_is_drawn(tmp_path: Path) -> None:
    plot_new_sizes(synthetic(1.1, 1.1), tmp_path / "runtime.png")
    assert (tmp_path / "runtime.png").read_bytes().startswith(b"\x89PNG")


def test_memory_is_that_of_this_process() -> None:
    script = """
        import numpy as np
        from rdsr.benchmarks.process import peak_mb, resident_mb
        before = resident_mb()
        block = np.ones(256 * 2**20, np.uint8)
        print(resident_mb() - before)
        del block
        print(resident_mb() - before, peak_mb() - before)
    """
    held, after, peak = map(float, run_alone(script).split())
    assert held == pytest.approx(256, abs=32)
    assert after == pytest.approx(0, abs=32)
    assert peak == pytest.approx(256, abs=32)


@pytest.mark.slow
def test_the_command_measures_all_of_it(exported: Path, tmp_path: Path) -> None:
    options = ["--new-sizes", "10", "--side", "64", "--concurrency", "2", "--seconds", "0.2", "--precision", "fp32"]
    result = CliRunner().invoke(
        app, ["bench", "runtime", "--bundle", str(exported), *options, "-o", str(tmp_path / "out"), "--json"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    figures = {row["figure"]: row for row in report["rows"]}
    assert 0.01 < figures["import rdsr.runtime"]["value"] < 30
    assert 0 < figures["peak memory at 64×64 under 256MiB"]["value"] < 256
    assert figures["throughput of 2 callers, of one's"]["value"] > 0.1
    assert (report["backend"], report["precision"]) == ("onnxruntime", "fp32")
    assert len(report["new_sizes"]["sizes"]) == 10
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"runtime.json", "runtime.md", "runtime.png"}
