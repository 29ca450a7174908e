"""DiffIR in its official ×4 configuration, as large as it is: `make check-large`. The report lies in `check-large/`."""

from __future__ import annotations

from pathlib import Path

from rdsr.benchmarks.report.tables import FIGURE_COLUMNS, write_table
from rdsr.benchmarks.subjects.find import DIFFIR, checkpoint_of
from rdsr.tests.large.commands import run

REPORTS = Path("check-large")
LIMIT_GIB = 10
ASKED_SECONDS = 300


def test_the_official_configuration_exports_and_verifies(tmp_path: Path) -> None:
    checkpoint, loaded = checkpoint_of(DIFFIR, tmp_path)
    assert loaded.random
    assert 24.9e6 < loaded.network.inference_parameters() < 25.1e6
    report, export_seconds, export_memory = run("export", str(checkpoint), "-o", str(tmp_path / "b"))
    verified, verify_seconds, verify_memory = run("verify", str(tmp_path / "b"))
    rows = [
        {"figure": "export", "value": export_seconds, "unit": "s", "asked": f"≤ {ASKED_SECONDS}"},
        {"figure": "export, peak memory", "value": export_memory, "unit": "GiB", "asked": f"≤ {LIMIT_GIB}"},
        {"figure": "verify", "value": verify_seconds, "unit": "s", "asked": ""},
        {"figure": "verify, peak memory", "value": verify_memory, "unit": "GiB", "asked": f"≤ {LIMIT_GIB}"},
    ]
    write_table(REPORTS, "diffir", {"rows": rows, "export": report}, FIGURE_COLUMNS, rows)
    assert report["passed"] is verified["passed"] is True
    assert max(export_memory, verify_memory) < LIMIT_GIB
