"""Whatever stdout and stderr are, no command ends in a traceback, and pictures are written."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from rdsr.tests.cli.running import command, listing, refused, run, write

CLOSED = [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"]
GONE = "| head -c 0"


def shell(redirection: str, line: list[str], **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run with redirections; the exit code is that of the command, not of what it is piped into."""
    script = f'set -o pipefail; "$@" {redirection}'
    return subprocess.run(["bash", "-c", script, "bash", *line], capture_output=True, env=os.environ | environment)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    write(folder / "naïve – 日本.png")
    (folder / "naïve – 日本.png").replace(Path(os.fsdecode(os.fsencode(folder) + b"/odd\xff \xc3\xa9.png")))
    write(folder / "日本.png")
    (folder / os.fsdecode(b"no\xff.txt")).touch()
    return folder


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8:strict", "utf-8", "ascii:strict"])
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_any_encoding(exported: Path, pictures: Path, tmp_path: Path, encoding: str, as_json: bool) -> None:
    line = command("upscale", pictures, "-o", tmp_path / "out", "--bundle", exported, *(["--json"] if as_json else []))
    done = shell("", line, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert listing(tmp_path / "out") == sorted([os.fsdecode(b"odd\xff \xc3\xa9.png"), "日本.png"])
    text = done.stdout.decode(encoding.split(":")[0])
    if as_json:
        report = json.loads(text)
        names = {os.fsencode(entry["output"]) for entry in report["outputs"]}
        assert names == {os.fsencode(path) for path in (tmp_path / "out").glob("*.png")}, "names come back byte for byte"
        assert os.fsencode(report["skipped"][0]["input"]).endswith(b"no\xff.txt")
    else:
        assert r"odd\udcff" in text
        assert (r"\u65e5\u672c.png" if "utf" not in encoding else "日本.png") in text
        assert rb"no\udcff.txt: .txt files cannot be read" in done.stderr


@pytest.mark.parametrize("redirection", [*CLOSED, GONE, f"2>&1 {GONE}"])
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_nobody_reads_the_report(exported: Path, pictures: Path, tmp_path: Path, redirection: str, as_json: bool) -> None:
    """The pictures are what counts: the exit code is 0, and nothing is printed into them."""
    line = command("upscale", pictures, "-o", tmp_path / "out", "--bundle", exported, *(["--json"] if as_json else []))
    done = shell(redirection, line)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"Error" not in done.stderr
    assert run("upscale", pictures, "-o", tmp_path / "reference", "--bundle", exported).exit_code == 0
    for name in listing(tmp_path / "reference"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "reference" / name).read_bytes()


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_report_that_a_full_disk_cuts_short_is_a_failure(
    exported: Path, pictures: Path, tmp_path: Path, as_json: bool
) -> None:
    line = command("upscale", pictures, "-o", tmp_path / "out", "--bundle", exported, *(["--json"] if as_json else []))
    done = shell("> /dev/full", line)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"rdsr: the report could not be written: No space left on device\n" in done.stderr
    assert len(listing(tmp_path / "out")) == 2
    assert shell("2> /dev/full", line).returncode == 0


@pytest.mark.parametrize("redirection", [*CLOSED, GONE, "2> /dev/full"])
@pytest.mark.parametrize(
    ("names", "code"),
    [(["--version"], 0), (["upscale", "--help"], 0), (["info", "{exported}"], 0), (["verify", "no such"], 2),
     (["verify", "no such", "--json"], 2), (["info"], 2)],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_every_command(exported: Path, redirection: str, names: list[str], code: int) -> None:
    line = command(*(name.format(exported=exported) for name in names))
    done = shell(redirection, line, PYTHONIOENCODING="ascii")
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


@pytest.mark.parametrize("name", ["x" * 300, os.fsdecode(b"no\xffsuch"), "loop", "file/below"])
@pytest.mark.parametrize(
    "names",
    [
        ["info"],
        ["verify"],
        ["export", "-o", "bundle"],
        ["upscale", "-o", "out"],
        ["bench", "report", "-o"],
        ["bench", "quality", "--dataset"],
        ["train", "stage1", "-o", "run", "--config"],
    ],
    ids=" ".join,
)
def test_names_that_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    refused(run(*names, name))
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]
