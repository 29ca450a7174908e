"""One process at a time in a run folder; a killed one blocks nobody, and its half-written files go."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rdsr.cli.main import app
from rdsr.models.training.errors import TrainingError
from rdsr.models.training.run_lock import run_lock
from rdsr.tests.models.training.runs import STAGE1, run_on

HOLD = "import sys, time; from pathlib import Path; from rdsr.models.training.run_lock import run_lock\n"
HOLD += "with run_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that holds a run folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_run_in_a_folder_is_refused_and_a_dead_owner_never_blocks(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_on(pictures, dataclasses.replace(STAGE1, iterations=4), folder, seconds=0.001)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    process = holder(folder)
    for resume in (True, False):
        with pytest.raises(TrainingError, match=rf"another process \({process.pid}\) is training in {folder}"):
            run_on(pictures, dataclasses.replace(STAGE1, iterations=4), folder, resume=resume)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.name != "run.lock"} == before
    process.kill()
    process.wait()
    assert (folder / "run.lock").exists(), "the killed owner has left it"
    run_on(pictures, dataclasses.replace(STAGE1, iterations=4), folder, resume=True)
    assert names(folder) == ["config.json", "ema.safetensors", "log.csv", "state.pt"], "as earlier versions know it"


def test_the_command_says_it_in_one_sentence(pictures: Path, tmp_path: Path) -> None:
    process = holder(tmp_path / "run")
    try:
        command = ["train", "stage1", "--config", "tiny-stage1", "--data", str(pictures), "-o", str(tmp_path / "run")]
        done = CliRunner().invoke(app, [*command, "--set", "patch_sizes=[12]"])
    finally:
        process.kill()
        process.wait()
    assert done.exit_code == 2
    assert "another process" in done.output
    assert "Traceback" not in done.output


def test_half_written_files_of_killed_runs_go_and_those_of_others_stay(tmp_path: Path) -> None:
    gone = (".rdsr-0123456789ab.tmp", ".8f3a.tmp", "state.pt.tmp", "ema.safetensors.tmp")
    kept = ("state.pt", "notes.tmp", "curve.png", ".hidden")
    for name in (*gone, *kept):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".folder.tmp").mkdir()
    (tmp_path / ".link.tmp").symlink_to(tmp_path / "state.pt")
    with (tmp_path / ".rdsr-written-now.tmp").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with run_lock(tmp_path):
            left = names(tmp_path)
    assert left == sorted([*kept, ".folder.tmp", ".link.tmp", ".rdsr-written-now.tmp", "run.lock"])


def test_a_run_that_cannot_begin_leaves_nothing(pictures: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(STAGE1, patch_sizes=(512,))
    with pytest.raises(TrainingError, match="patches of 512"):
        run_on(pictures, config, tmp_path / "run")
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/rdsr-run")):
        with pytest.raises(TrainingError, match="cannot write the run folder"):
            run_on(pictures, STAGE1, folder)
    os.symlink("/dev/null", tmp_path / "run.lock")
    with pytest.raises(TrainingError, match="cannot write"):
        run_on(pictures, STAGE1, tmp_path)
