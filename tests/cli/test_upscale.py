"""`rdsr upscale`: files, folders and streams, failures, interruptions, and resuming."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from rdsr.atomic import TEMPORARY
from rdsr.runtime import EngineError, Upscaler
from rdsr.runtime.done_files import RECORD_NAME
from rdsr.runtime.pipelines import Pipeline
from rdsr.tests.cli.running import command, interrupted, listing, refused, run, write
from rdsr.tests.conftest import rewrite_manifest

KEYS = {"outputs", "skipped", "failed", "backend", "precision", "threads"}


def test_one_file(exported: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.png", (7, 9))
    result = run("upscale", source, "-o", tmp_path / "out.webp", "--bundle", exported, "--json", "--threads", 1)
    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert set(report) == KEYS
    (entry,) = report["outputs"]
    assert {"input", "output", "size_in", "size_out", "ms", "warnings"} <= set(entry)
    assert entry["input"] == str(source)
    assert entry["output"] == str(tmp_path / "out.webp")
    assert (entry["size_in"], entry["size_out"]) == ([7, 9], [28, 36])
    assert entry["ms"] > 0
    assert report["threads"] == 1
    assert cv2.imread(str(tmp_path / "out.webp")).shape == (28, 36, 3)
    assert listing(tmp_path) == ["in.png", "out.webp"]


def test_a_folder_with_one_bad_picture(exported: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "d.tif"):
        write(tmp_path / "in" / name)
    (tmp_path / "in" / "c.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:50])
    (tmp_path / "in" / "notes.txt").write_text("not a picture, and not meant as one")
    result = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--bundle", exported, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert [Path(f["input"]).name for f in report["failed"]] == ["c.png"]
    assert "c.png" in report["failed"][0]["error"]
    assert report["skipped"] == [{"input": str(tmp_path / "in" / "notes.txt"), "reason": ".txt files cannot be read"}]
    assert listing(tmp_path / "out") == ["a.png", "b.jpg", "d.tif"]


def test_a_glob_and_several_files(exported: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.jpg"):
        write(tmp_path / "d[1]" / name)
    assert run("upscale", tmp_path / "d[1]" / "*.png", "-o", tmp_path / "g", "--bundle", exported).exit_code == 0
    assert listing(tmp_path / "g") == ["a.png", "b.png"]
    two = [tmp_path / "d[1]" / name for name in ("a.png", "c.jpg")]
    assert run("upscale", *two, "-o", tmp_path / "two", "--bundle", exported).exit_code == 0
    assert listing(tmp_path / "two") == ["a.png", "c.jpg"]


def test_skipped_files_are_listed_and_many_are_counted(exported: Path, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.png")
    for index in range(14):
        (tmp_path / "in" / f"{index:02}.txt").touch()
    result = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--bundle", exported)
    lines = [line for line in result.stderr.splitlines() if "skipped" in line]
    assert len(lines) == 11
    assert lines[0].endswith("00.txt: .txt files cannot be read")
    assert "skipped 4 more files" in lines[-1]


def test_recursion_mirrors_the_tree(exported: Path, tmp_path: Path) -> None:
    for name in ("a.png", "x/a.jpg", "x/y/b.png"):
        write(tmp_path / "in" / name)
    for _ in range(2):  # the second time, the outputs of the first lie below the input
        result = run(
            "upscale", tmp_path / "in", "-o", tmp_path / "in" / "out", "--recursive", "--bundle", exported, "--json"
        )
        assert len(json.loads(result.stdout)["outputs"]) == 3
    out = tmp_path / "in" / "out"
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.*g")) == ["a.png", "x/a.jpg", "x/y/b.png"]


@pytest.mark.parametrize("size", [(1, 1), (3, 5000)])
def test_extreme_sizes(exported: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    write(tmp_path / "in.png", size)
    assert run("upscale", tmp_path / "in.png", "-o", tmp_path / "out.png", "--bundle", exported).exit_code == 0
    assert cv2.imread(str(tmp_path / "out.png")).shape == (size[0] * 4, size[1] * 4, 3)


def test_refusals_leave_nothing(exported: Path, tmp_path: Path) -> None:
    good = write(tmp_path / "in" / "a.png")
    write(tmp_path / "other" / "a.png")
    (tmp_path / "in" / "empty.png").touch()
    (tmp_path / "in" / "cut.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "bare").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.rglob("*"))
    b = ("--bundle", exported)
    out = tmp_path / "out.png"
    refused(run("upscale", tmp_path / "none.png", "-o", out, *b), "none.png", "No such file")
    for bad in ("empty.png", "cut.png"):
        refused(run("upscale", tmp_path / "in" / bad, "-o", out, *b), bad)
    refused(run("upscale", tmp_path / "bare", "-o", out, *b), "holds no pictures")
    refused(run("upscale", tmp_path / "*.xyz", "-o", out, *b), "no picture matches")
    refused(run("upscale", good, "-o", tmp_path / "out.gif", *b), "suffix")
    refused(run("upscale", good, "-o", good, *b), "one of the inputs")
    refused(run("upscale", tmp_path / "in", "-o", tmp_path / "in", *b), "one of the inputs")
    refused(run("upscale", good, tmp_path / "other" / "a.png", "-o", tmp_path / "x", *b), "would both become")
    refused(run("upscale", tmp_path / "in", "-o", out, *b), "folder as output")
    refused(run("upscale", good, "-o", good / "x", *b), "not a folder")
    refused(run("upscale", "x" * 300, "-o", out, *b), "File name too long")
    refused(run("upscale", good, "-o", tmp_path / ("x" * 300), *b), "File name too long")
    refused(run("upscale", good, "-o", out, "--bundle", "x" * 300), "File name too long")
    refused(run("upscale", tmp_path / "loop", "-o", out, *b), "Too many levels of symbolic links")
    refused(run("upscale", "a\0b", "-o", out, *b), "null byte")
    unknown = run("upscale", good, "-o", out, *b, "--precision", "fp16")
    assert unknown.exit_code == 2
    assert "'fp16' is not one of 'auto', 'fp32', 'bf16', 'int8'" in " ".join(unknown.stderr.replace("│", " ").split())
    refused(
        run("upscale", good, "-o", out, *b, "--backend", "onnxruntime", "--precision", "bf16"), "onnxruntime has no bf16"
    )
    refused(run("upscale", good, "-o", out, "--bundle", tmp_path), "manifest.json")
    refused(run("upscale", good, "-o", out, *b, "--scale", "4.1"), "at most 4")
    refused(run("upscale", good, "-o", out, *b, "--scale", "0"), "above 0")
    refused(run("upscale", good, "-o", out, *b, "--quality", "101"), "quality")
    refused(run("upscale", good, "-o", out, *b, "--lossless", "--quality", "90"), "exclude each other")
    refused(run("upscale", good, "-o", out, *b, "--compression", "10"), "compression")
    refused(run("upscale", good, "-o", out, *b, "--max-pixels", "29"), "limit of 29")
    assert run("upscale", good, "-o", out, *b, "--threads", "0").exit_code == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_refusal_is_json_under_json(exported: Path, tmp_path: Path) -> None:
    result = run("upscale", "x" * 300, "-o", tmp_path / "out", "--bundle", exported, "--json")
    assert json.loads(result.stdout)["exit_code"] == result.exit_code == 2
    result = run("upscale", "x.png", "-o", "a\0b", "--bundle", exported, "--json")
    assert json.loads(result.stdout)["exit_code"] == result.exit_code == 2


def test_options_of_the_output(exported: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in" / "a.png", (10, 12))
    b = ("--bundle", exported)
    for arguments, name, size in (
        (["--format", "jpg"], "a.jpg", (40, 48)),
        (["--format", "webp", "--lossless"], "a.webp", (40, 48)),
        (["--scale", "2.5"], "a.png", (25, 30)),
    ):
        assert run("upscale", source, "-o", tmp_path / "out", *arguments, *b).exit_code == 0
        assert cv2.imread(str(tmp_path / "out" / name)).shape[:2] == size
    sizes = []
    for quality in (20, 90):
        assert run("upscale", source, "-o", tmp_path / "q.jpg", "--quality", quality, *b).exit_code == 0
        sizes.append((tmp_path / "q.jpg").stat().st_size)
    assert sizes[0] < sizes[1]


def animation(path: Path, frames: int) -> Path:
    first, *others = (Image.fromarray(np.full((6, 5, 3), 40 * n, np.uint8)) for n in range(frames))
    first.save(path, save_all=True, append_images=others)
    return path


def test_frames(exported: Path, tmp_path: Path) -> None:
    source = animation(tmp_path / "anim.gif", 3)
    b = ("--bundle", exported)
    result = run("upscale", source, "-o", tmp_path / "first", *b)
    assert listing(tmp_path / "first") == ["anim.png"]
    assert "3 frames" in result.stderr, "that the others were left out is said"
    report = json.loads(run("upscale", source, "-o", tmp_path / "first", *b, "--json").stdout)
    assert "3 frames" in report["outputs"][0]["warnings"][0]
    report = json.loads(run("upscale", source, "-o", tmp_path / "all", "--frames", "all", *b, "--json").stdout)
    assert listing(tmp_path / "all") == ["anim-1.png", "anim-2.png", "anim-3.png"]
    assert [Path(entry["output"]).name for entry in report["outputs"]] == listing(tmp_path / "all")
    report = json.loads(run("upscale", source, "-o", tmp_path / "all", "--frames", "all", *b, "--json", "--resume").stdout)
    assert report["outputs"] == []


def test_names_are_printed_as_they_are_or_as_escapes(exported: Path, tmp_path: Path) -> None:
    write(tmp_path / "IMG [final][red].png")
    write(tmp_path / "line\nfeed\x1b[31m.png")
    result = run("upscale", tmp_path, "-o", tmp_path / "out [x]", "--bundle", exported)
    assert result.exit_code == 0, result.output
    assert "out [x]/IMG [final][red].png" in result.stdout
    assert r"out [x]/line\nfeed\x1b[31m.png" in result.stdout


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [(EngineError("out of order"), 1, "out of order"), (MemoryError(), 1, "not enough memory")],
    ids=["EngineError", "MemoryError"],
)
def test_failures_that_are_not_the_users_fault(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, words: str
) -> None:
    def fail(*_: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(Pipeline, "picture", fail)
    source = write(tmp_path / "a.png")
    refused(run("upscale", source, "-o", tmp_path / "o.png", "--bundle", exported), "a.png", words, code=code)


def test_no_memory_for_a_picture_between_two_others(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Upscaler.file

    def crowded(upscaler: Upscaler, source: Path, target: Path, **options: Any) -> object:
        if source.stem == "b":
            raise MemoryError
        return file(upscaler, source, target, **options)

    monkeypatch.setattr(Upscaler, "file", crowded)
    for name in "abc":
        write(tmp_path / "in" / f"{name}.png")
    result = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--bundle", exported, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert listing(tmp_path / "out") == ["a.png", "c.png"]
    assert [Path(entry["input"]).name for entry in report["failed"]] == ["b.png"]


def test_little_address_space(tmp_path: Path) -> None:
    """A picture that does not fit stands between two that do (`ulimit -v`), with the default bundle."""
    for name in ("a", "c"):
        write(tmp_path / "in" / f"{name}.png", (20, 20))
    cv2.imwrite(str(tmp_path / "in" / "b.png"), np.zeros((9000, 12000), np.uint8))
    line = command("upscale", tmp_path / "in", "-o", tmp_path / "out", "--format", "webp", "--json")
    limited = ["sh", "-c", 'ulimit -v 2200000; exec "$@"', "sh", *line]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=300)
    report = json.loads(done.stdout)
    assert done.returncode == 1, done.stderr
    assert [Path(entry["input"]).name for entry in report["failed"]] == ["b.png"]
    assert listing(tmp_path / "out") == ["a.webp", "c.webp"]


# -- standard input and output


def test_streams(exported: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "a.png", (7, 9))
    line = command("upscale", "-", "-o", "-", "--bundle", exported)
    done = subprocess.run(line, input=source.read_bytes(), capture_output=True)
    assert done.returncode == 0, done.stderr
    decoded = cv2.imdecode(np.frombuffer(done.stdout, np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (28, 36, 3)
    assert b"9\xc3\x977" in done.stderr, "the report goes to stderr"
    assert run("upscale", source, "-o", tmp_path / "b.png", "--bundle", exported).exit_code == 0
    assert done.stdout == (tmp_path / "b.png").read_bytes(), "the same bytes as in a file"
    line = command("upscale", "-", "-o", tmp_path / "c.jpg", "--bundle", exported, "--json")
    done = subprocess.run(line, input=source.read_bytes(), capture_output=True)
    (entry,) = json.loads(done.stdout)["outputs"]
    assert (entry["input"], entry["output"]) == ("-", str(tmp_path / "c.jpg"))


def test_refusals_of_streams(exported: Path, tmp_path: Path) -> None:
    source, b = write(tmp_path / "a.png"), ("--bundle", exported)
    refused(run("upscale", source, "-o", "-", "--json", *b), "--json and -o -")
    refused(run("upscale", source, write(tmp_path / "b.png"), "-o", "-", *b), "only a single picture")
    refused(run("upscale", "-", source, "-o", tmp_path / "out", *b), "only input")
    refused(run("upscale", "-", "-o", "-", "--resume", *b, input=b""), "cannot be resumed")
    refused(run("upscale", "-", "-o", tmp_path / "c.png", *b, input=b""), "empty")
    refused(run("upscale", "-", "-o", tmp_path / "c.png", *b, input=b"no picture"), "no picture")
    terminal, other = os.openpty()
    try:
        for arguments, stream, words in (
            (("-", "-o", str(tmp_path / "c.png")), "stdin", b"is a terminal"),
            ((str(source), "-o", "-"), "stdout", b"is a terminal"),
        ):
            streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE} | {stream: other}
            done = subprocess.run(command("upscale", *arguments, *b), stderr=subprocess.PIPE, **streams)
            assert done.returncode == 2
            assert words in done.stderr
    finally:
        os.close(terminal)
        os.close(other)
    for redirection, arguments in ((">&-", (source, "-o", "-")), ("<&-", ("-", "-o", tmp_path / "c.png"))):
        shell = ["bash", "-c", f'"$@" {redirection}', "bash", *command("upscale", *arguments, *b)]
        done = subprocess.run(shell, stderr=subprocess.PIPE, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "is closed" in done.stderr
    full = subprocess.run(
        ["bash", "-c", '"$@" > /dev/full', "bash", *command("upscale", source, "-o", "-", *b)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert full.returncode == 1
    assert "cannot write to the standard output: No space left on device" in full.stderr
    assert "Traceback" not in full.stderr


# -- interruptions and resuming


def many(folder: Path, number: int, side: int) -> None:
    for index in range(number):
        write(folder / f"{index:03}.png", (side, side))


def after(folder: Path, outputs: int) -> Callable[[], bool]:
    """Whether so many outputs are there."""
    return lambda: folder.is_dir() and len(pictures_in(folder)) >= outputs


def pictures_in(folder: Path) -> list[str]:
    """Names in a folder without those of the moment before a picture gets its own, at which a kill may come."""
    return [name for name in listing(folder) if not fnmatch.fnmatch(name, TEMPORARY)]


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in listing(folder)}


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_an_interruption_reports_what_is_done(
    exported: Path, tmp_path: Path, stop: signal.Signals, code: int, as_json: bool
) -> None:
    write(tmp_path / "in" / "000.png", (4, 4))
    many(tmp_path / "in" / "more", 40, 300)
    line = command("upscale", tmp_path / "in", tmp_path / "in" / "more", "-o", tmp_path / "out", "--bundle", exported)
    (tmp_path / "in" / "more" / "000.png").unlink()
    done = interrupted([*line, "--threads", "1", *(["--json"] if as_json else [])], after(tmp_path / "out", 2), stop)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    outputs = listing(tmp_path / "out")
    assert 1 < len(outputs) < 40, "the signal has to come in the middle"
    for name in outputs:
        assert cv2.imread(str(tmp_path / "out" / name)) is not None, f"{name} is not whole"
    if as_json:
        report = json.loads(done.stdout)
        assert done.stderr == ""
        assert report["interrupted"] is True
        assert set(report) - {"interrupted"} == KEYS
        assert [Path(entry["output"]).name for entry in report["outputs"]] == outputs
        left = {entry["input"] for entry in report["skipped"] if entry["reason"] == "interrupted"}
        assert len(left) + len(outputs) == 40, "each picture is in one list"
        assert report["failed"] == []
    else:
        assert len(done.stdout.splitlines()) == len(outputs), done.stderr
        assert f"interrupted: {len(outputs)} of 40 pictures are done" in done.stderr


def test_an_interruption_before_the_first_picture_is_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Upscaler, "load", lambda *_, **options: interrupt())
    result = run("upscale", write(tmp_path / "a.png"), "-o", tmp_path / "b.png", "--json")
    assert (result.exit_code, json.loads(result.stdout)["interrupted"]) == (130, True)


STOPPING = """
import sys, time
from itertools import count
from rdsr.cli.main import main
from rdsr.runtime.done_files import DoneFiles
add, numbers, limit = DoneFiles.add, count(1), int(sys.argv.pop(1))
def stop(self, *arguments):
    while next(numbers) > limit:
        time.sleep(60)
    add(self, *arguments)
DoneFiles.add = stop
main()
"""
"""A command that records so many pictures and then waits for its kill, which may come late on a busy machine."""


def killed_and_resumed(exported: Path, folder: Path, number: int, kills: int) -> None:
    """Kill a job again and again, let it go on, and compare with an undisturbed one."""
    moments = random.Random(0)
    many(folder / "in", number, 40)
    arguments = ["upscale", folder / "in", "-o", folder / "out", "--bundle", exported, "--resume", "--json"]
    whole: dict[str, tuple[int, int]] = {}
    for kill in range(kills):
        more = moments.randrange(1, number // (kills + 1))
        enough = after(folder / "out", len(whole) + more)
        line = [sys.executable, "-c", STOPPING, str(more + 2), *map(str, arguments)]
        pause = moments.random() * 0.008

        def moment(enough: Callable[[], bool] = enough, pause: float = pause) -> bool:
            return enough() and time.sleep(pause) is None

        assert interrupted(line, moment, signal.SIGKILL).returncode == -signal.SIGKILL
        names = pictures_in(folder / "out")
        assert len(whole) < len(names) < number, f"kill {kill} has to come in the middle"
        for name in names:
            status = (folder / "out" / name).stat()
            identity = status.st_ino, status.st_mtime_ns
            assert cv2.imread(str(folder / "out" / name)).shape == (160, 160, 3), f"{name} is half-written"
            assert whole.setdefault(name, identity) == identity, f"{name} was done twice"
    (folder / "out" / ".rdsr-0123456789ab.tmp").touch()  # as on a file system without unnamed files
    os.utime(folder / "out" / ".rdsr-0123456789ab.tmp", (1, 1))
    last = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300)
    report = json.loads(last.stdout)
    assert {Path(entry["input"]).name for entry in report["skipped"] if entry["reason"] == "already done"} == set(whole)
    assert len(report["outputs"]) + len(whole) == number, "nothing is lost"
    assert run("upscale", folder / "in", "-o", folder / "at once", "--bundle", exported).exit_code == 0
    assert digests(folder / "out") == digests(folder / "at once"), "the same bytes as an undisturbed run, and nothing else"
    recorded = [json.loads(entry)["output"] for entry in (folder / "out" / RECORD_NAME).read_bytes().splitlines()]
    assert len(recorded) <= number + 3 * kills, "only what was in hand at a kill may be recorded twice"


def test_kill_and_resume(exported: Path, tmp_path: Path) -> None:
    killed_and_resumed(exported, tmp_path, 40, 3)


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_around_the_record(exported: Path, tmp_path: Path, when: str) -> None:
    """Killed just before or after the third line of the record, when the third picture has no name yet."""
    many(tmp_path / "in", 6, 10)
    script = f"""
        import os, signal, time
        from itertools import count
        from rdsr.cli.main import main
        from rdsr.runtime.done_files import DoneFiles
        add, numbers = DoneFiles.add, count(1)
        def kill(self, *arguments):
            number = next(numbers)
            while number > 3:  # the others wait for the kill
                time.sleep(60)
            if number == 3:
                while sum(name[0] != "." for name in os.listdir({os.fspath(tmp_path / "out")!r})) < 2:
                    time.sleep(0.01)
                if "{when}" == "after":
                    add(self, *arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            add(self, *arguments)
        DoneFiles.add = kill
        main()
    """
    arguments = ["upscale", tmp_path / "in", "-o", tmp_path / "out", "--bundle", exported, "--resume"]
    line = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    assert subprocess.run(line, capture_output=True).returncode == -signal.SIGKILL
    whole = listing(tmp_path / "out")
    assert len(whole) == 2, "and nothing else lies about"
    report = json.loads(run(*arguments, "--json").stdout)
    assert [Path(entry["input"]).name for entry in report["skipped"]] == whole
    assert len(report["outputs"]) == 4
    assert len(listing(tmp_path / "out")) == 6


@pytest.mark.slow
def test_kill_and_resume_two_hundred(exported: Path, tmp_path: Path) -> None:
    killed_and_resumed(exported, tmp_path, 200, 12)


def test_resume_does_again_what_has_changed(exported: Path, bundle: Path, tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / "in" / f"{name}.png")

    def done(*arguments: object) -> list[str]:
        result = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--resume", "--json", "--bundle", *arguments)
        report = json.loads(result.stdout)
        assert len(report["outputs"]) + len(report["skipped"]) == 2
        return [Path(entry["input"]).stem for entry in report["outputs"]]

    assert done(exported) == ["a", "b"]
    assert done(exported) == []
    assert done(bundle) == [], "a copy of a bundle is the same bundle"
    assert done(exported, "--threads", 1, "--memory-limit", "1GiB") == [], "neither changes the bytes"
    write(tmp_path / "in" / "a.png")
    assert done(exported) == ["a"]
    assert done(exported, "--seed", 1) == ["a", "b"]
    assert done(exported, "--seed", 1, "--compression", 9) == ["a", "b"]
    assert done(exported) == ["a", "b"]
    rewrite_manifest(bundle, tools={"another": "tool"})
    assert done(bundle) == ["a", "b"]
    assert done(bundle, "--precision", "fp32") in ([], ["a", "b"])
    (tmp_path / "out" / "a.png").write_bytes(b"")
    assert done(bundle, "--precision", "fp32") == ["a"]


def test_resume_in_text(exported: Path, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.png")
    line = ("upscale", tmp_path / "in", "-o", tmp_path / "out", "--resume", "--bundle", exported)
    run(*line)
    assert "skipped 1 picture that an earlier run has done" in run(*line).stderr
