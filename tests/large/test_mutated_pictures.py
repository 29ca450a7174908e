"""Ten thousand mutated pictures through the reader: `make check-large`. The report lies in `check-large/`."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from rdsr.benchmarks.report.tables import FIGURE_COLUMNS, write_table
from rdsr.tests.runtime.pictures.mutations import SECONDS, judged, mutated

REPORTS = Path("check-large")
COUNT = int(os.environ.get("RDSR_MUTATED_PICTURES", "10000"))
LEAK_MB = 48


def test_ten_thousand_mutated_pictures_are_read_or_refused(tmp_path: Path) -> None:
    """Each in two processes with different MALLOC_PERTURB_. What goes wrong is kept in `check-large/mutated-pictures/`."""
    pictures = mutated(COUNT)
    started = time.perf_counter()
    verdict = judged(pictures, tmp_path)
    seconds = time.perf_counter() - started
    kept = REPORTS / "mutated-pictures"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for number in verdict.faults:
        (kept / f"{number:05}").write_bytes(pictures[number][1])
    faults = [{"picture": pictures[number][0], "fault": fault} for number, fault in verdict.faults.items()]
    rows = [
        {"figure": "pictures, each read twice", "value": COUNT, "unit": "", "asked": ""},
        *(
            {"figure": f"reads: {what}", "value": verdict.counts.get(what, 0), "unit": "", "asked": ""}
            for what in ("read", "refused", "too large")
        ),
        {"figure": "pictures at fault", "value": len(faults), "unit": "", "asked": "0"},
        {"figure": "slowest picture", "value": verdict.slowest, "unit": "s", "asked": f"≤ {SECONDS}"},
        {"figure": "growth of anonymous memory", "value": verdict.growth, "unit": "MiB", "asked": f"< {LEAK_MB}"},
        {"figure": "whole batch", "value": seconds, "unit": "s", "asked": ""},
    ]
    write_table(REPORTS, "mutated-pictures", {"rows": rows, "faults": faults}, FIGURE_COLUMNS, rows)
    assert not faults, faults[:20]
    assert verdict.slowest <= SECONDS
    assert verdict.growth < LEAK_MB
