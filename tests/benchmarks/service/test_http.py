"""`rdsr bench service`."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from rdsr.cli.main import app


def test_every_load_has_a_row(tmp_path: Path) -> None:
    arguments = ["--seconds", "1", "--size", "16x16", "--threads", "1", "--queue", "1", "-o", str(tmp_path), "--json"]
    done = CliRunner().invoke(app, ["bench", "service", *arguments])
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "service.json").read_text())
    rows = {row["load"]: row for row in report["rows"]}
    assert [row["rate"] is None for row in rows.values()] == [True, True, False, False, False, True]
    assert all(row["served"] + row["rejected"] + row["failed"] == row["requests"] for row in rows.values())
    assert all(row["failed"] == 0 for row in rows.values())
    assert rows["4 callers"]["rejected"] > 0, "one waits, and two are served"
    assert report["library_throughput"] > 0
    assert report["share_of_library"] > 0
    assert (tmp_path / "service.md").read_text().count("\n") == 8
