"""Ten thousand mutated pictures through the reader: `make check-large`. The report lies in `check-large/`."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from rdsr.benchmarks.report.tables import FIGURE_COLUMNS, write_table
from rdsr.tests.fuzz.driver import SECONDS, fuzz

REPORTS = Path("check-large")
COUNT = int(os.environ.get("RDSR_MUTATED_PICTURES", "10000"))
LEAK_MIB = 48


def test_ten_thousand_mutated_pictures_are_read_or_refused() -> None:
    """Each in two processes with different MALLOC_PERTURB_. What goes wrong is kept in `check-large/mutated-pictures/`."""
    kept = REPORTS / "mutated-pictures"
    shutil.rmtree(kept, ignore_errors=True)
    started = time.perf_counter()
    report = fuzz("pictures", seed=0, count=COUNT, folder=kept)
    seconds = time.perf_counter() - started
    figures = [
        ("pictures, each read twice", report.inputs, "", ""),
        *((f"pictures: {kind}", count, "", "") for kind, count in sorted(report.counts.items())),
        ("pictures at fault", len(report.findings), "", "0"),
        ("slowest picture", report.slowest, "s", f"≤ {SECONDS:.0f}"),
        ("growth of anonymous memory", report.growth, "MiB", f"< {LEAK_MIB}"),
        ("whole batch", seconds, "s", ""),
    ]
    rows = [dict(zip(("figure", "value", "unit", "asked"), figure, strict=True)) for figure in figures]
    faults = [{"picture": found.description, "fault": f"{found.kind}: {found.said}"} for found in report.findings]
    write_table(REPORTS, "mutated-pictures", {"rows": rows, "faults": faults}, FIGURE_COLUMNS, rows)
    assert not faults, faults[:20]
    assert report.growth < LEAK_MIB
