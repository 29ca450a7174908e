"""What a killed export leaves: the next one to the same target removes it, if nobody is at work there."""

from __future__ import annotations

import itertools
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from rdsr.export import exporter, staging
from rdsr.export.errors import ExportError
from rdsr.export.exporter import ExportOptions, cost_of_steps, export_checkpoint
from rdsr.export.staging import publish, remove_leftovers, staging_folder

STAGE = "import sys, time; from pathlib import Path; from rdsr.export.staging import staging_folder\n"
STAGE += "with staging_folder(Path(sys.argv[1])) as folder:\n"
STAGE += "    (folder / 'model.onnx').write_bytes(b'x' * 1000); print(folder.name, flush=True); time.sleep(600)"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_bundle(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"schema": 1, "files": {"a.onnx": {}}}))
    (folder / "a.onnx").write_text(text)
    return folder


def test_a_staged_bundle_of_a_killed_export_goes_and_that_of_a_living_one_stays(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "net.bundle"
    living, killed = (
        subprocess.Popen([sys.executable, "-c", STAGE, str(target)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    try:
        assert living.stdout is not None
        assert killed.stdout is not None
        at_work, left = living.stdout.readline().strip(), killed.stdout.readline().strip()
        killed.kill()
        killed.wait()
        assert names(tmp_path) == sorted([at_work, left])
        options = ExportOptions(checkpoint=checkpoint, output=target, precisions=("fp32",), single_graph=False)
        assert export_checkpoint(options).passed
        assert names(tmp_path) == sorted([at_work, "net.bundle"])
    finally:
        living.kill()
        living.wait()
    remove_leftovers(target)
    assert names(tmp_path) == ["net.bundle"]


def test_a_bundle_that_a_killed_export_had_moved_aside_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "net.bundle"
    write_bundle(tmp_path / ".net.bundle.abcd1234.old" / "previous", "good")
    remove_leftovers(target)
    assert names(tmp_path) == ["net.bundle"]
    assert (target / "a.onnx").read_text() == "good"
    write_bundle(tmp_path / ".net.bundle.abcd1234.old" / "previous", "older")
    remove_leftovers(target)
    assert names(tmp_path) == ["net.bundle"]
    assert (target / "a.onnx").read_text() == "good", "the new one was in its place already"


def test_what_is_not_surely_a_leftover_stays(tmp_path: Path) -> None:
    for name in (".net.bundle.abcd1234.tmp", ".other.bundle.abcd1234.tmp", ".net.bundle.tmp", ".net.bundle.ABCD1234.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.jpg").touch()
    (tmp_path / ".net.bundle.abcd0000.tmp").write_bytes(b"a file")
    (tmp_path / ".net.bundle.abcd1111.tmp" / "below").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.onnx").touch()
    (tmp_path / ".net.bundle.abcd2222.tmp").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".net.bundle.abcd3333.old" / "previous").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    remove_leftovers(tmp_path / "net.bundle")
    assert sorted(tmp_path.rglob("*")) == before
    remove_leftovers(tmp_path / "none" / "deeper" / "net.bundle")
    assert sorted(tmp_path.rglob("*")) == before


def interrupt_at(line: int) -> Callable[..., Any]:
    """A trace function that raises `KeyboardInterrupt` at the `line`-th line that the staging module runs."""
    seen = 0

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        nonlocal seen
        if frame.f_code.co_filename != staging.__file__:
            return None
        seen += event == "line"
        if event == "line" and seen == line:
            raise KeyboardInterrupt
        return trace

    return trace


def test_an_interrupt_at_any_line_leaves_one_whole_bundle(tmp_path: Path) -> None:
    entered, interrupted = False, 0
    for line in itertools.count(1):
        target = write_bundle(tmp_path / str(line) / "net", "old")
        entered, tracing = False, sys.gettrace()
        sys.settrace(interrupt_at(line))
        try:
            with staging_folder(target) as folder:
                entered = True
                write_bundle(folder / "x", "new").rename(folder.parent / "x")
                for file in (folder.parent / "x").iterdir():
                    file.rename(folder / file.name)
                (folder.parent / "x").rmdir()
                publish(folder, target, force=True)
        except KeyboardInterrupt:
            interrupted += 1
        else:
            break
        finally:
            sys.settrace(tracing)
        if not entered:
            assert names(target.parent) == ["net"], f"line {line}"
        assert (target / "a.onnx").read_text() in ("old", "new"), f"line {line}"
    assert interrupted > 30
    assert (target / "a.onnx").read_text() == "new"


def test_a_staging_folder_goes_with_its_block(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot write"), staging_folder(tmp_path / "net") as folder:
        (folder / "none" / "model.onnx").touch()
    assert names(tmp_path) == []


def test_many_steps_say_what_they_cost_before_the_export(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert cost_of_steps(exporter.MANY_STEPS) is None
    assert "1000 steps" in (cost_of_steps(1000) or "")
    assert "4 minutes and 2.6 GiB" in (cost_of_steps(1000) or "")
    monkeypatch.setattr(exporter, "MANY_STEPS", 4)
    seen: list[str] = []

    def progress(step: str) -> None:
        seen.append(f"{step}: {len(caplog.records)}")

    options = ExportOptions(checkpoint=checkpoint, output=tmp_path / "b", precisions=("fp32",), single_graph=False, steps=5)
    with caplog.at_level(logging.WARNING):
        export_checkpoint(options, progress)
    assert seen[:2] == ["read the checkpoint: 0", "fuse: 1"], "it is said before the work begins"
    assert "each of the 5 steps" in caplog.text
