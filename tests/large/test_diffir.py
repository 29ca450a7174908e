"""DiffIR in its official ×4 configuration, as large as it is: `make check-large`. The report lies in `check-large/`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from rdsr.benchmarks.report.tables import FIGURE_COLUMNS, write_table
from rdsr.benchmarks.subjects.find import DIFFIR, checkpoint_of

REPORTS = Path("check-large")
LIMIT_GIB = 10
ASKED_SECONDS = 300


def run(*arguments: str) -> tuple[dict[str, object], float, float]:
    """(the command's JSON, seconds, peak GiB of its process)."""
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "rdsr.cli", *arguments, "--json"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    printed = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return json.loads(printed), time.perf_counter() - started, usage.ru_maxrss / 2**20


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
