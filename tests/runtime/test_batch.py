"""Many files at once: what one picture brings, memory, interruptions, and the record of what is done."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from rdsr.atomic import atomic_file
from rdsr.runtime import Cancel, EngineError, FileResult, OptionError, OutputError, PictureError, RdsrError
from rdsr.runtime.batch import ALREADY_DONE, INTERRUPTED, Batch, BatchOptions, BatchProgress
from rdsr.runtime.done_files import RECORD_NAME, DoneFiles, file_digest
from rdsr.runtime.file_plan import FilePlan, plan_files
from rdsr.runtime.inputs import STANDARD_STREAM
from rdsr.runtime.pictures.formats import WriteOptions
from rdsr.tests.conftest import until

Hook = Callable[[str, Cancel], None]


class CopyingUpscaler:
    """Stands in for an `Upscaler`: a "larger" picture is a copy of the input, with the bundle's digest in front."""

    memory_limit = None

    def __init__(
        self, hook: Hook = lambda name, cancel: None, digest: str = "b" * 64, tile_rule: str = "exact",
        precision: str = "fp32", seed: int = 0,
    ) -> None:  # fmt: skip
        """`hook` is called in the middle of each picture with its stem."""
        self.effective, self.seed = SimpleNamespace(backend="fake", precision=precision), seed
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(digest=digest, scale=4, tile_rule=tile_rule))
        self.hook = hook
        self.calls: list[str] = []
        self.in_hand: set[str] = set()
        self.most_in_hand: dict[str, int] = {}
        """Stem → the most pictures that were in hand while it was."""
        self._lock = threading.Lock()

    def file(
        self, source: Path | bytes, target: Any, *, options: WriteOptions, max_pixels: int | None, cancel: Cancel,
        progress: Callable[[int, int], None], before_commit: Callable[[Path, str], None],
    ) -> FileResult:  # fmt: skip
        name = "-" if isinstance(source, bytes) else source.stem
        with self._lock:
            self.calls.append(name)
            self.in_hand.add(name)
            for other in self.in_hand:
                self.most_in_hand[other] = max(self.most_in_hand.get(other, 0), len(self.in_hand))
        try:
            progress(1, 2)
            self.hook(name, cancel)
            cancel.check()
            content = self.bundle.manifest.digest.encode() + (source if isinstance(source, bytes) else source.read_bytes())
            if isinstance(target, Path):
                with atomic_file(target, lambda _: before_commit(target, hashlib.sha256(content).hexdigest())) as file:
                    file.write(content)
            else:
                target.write(content)
            progress(2, 2)
        finally:
            with self._lock:
                self.in_hand.discard(name)
        paths = [path if isinstance(path, Path) else STANDARD_STREAM for path in (source, target)]
        return FileResult(*paths, (1, 1), (4, 4), "fake", "fp32", 1.0)

    def frames(self, source: Path, target: Path, **options: Any) -> list[FileResult]:
        """Pictures called "anim" have three frames."""
        if source.stem != "anim":
            return [self.file(source, target, **options)]
        return [self.file(source, target.with_name(f"{target.stem}-{n}{target.suffix}"), **options) for n in (1, 2, 3)]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pictures(*names: str) -> None:
    for name in names:
        Path("in").mkdir(exist_ok=True)
        Path("in", f"{name}.png").write_text(f"content of {name}")


def batch(upscaler: CopyingUpscaler, plan: FilePlan | None = None, *, resume: bool = False, **options: Any) -> Batch:
    chosen = BatchOptions(resume=resume, **options)
    return Batch(upscaler, plan or plan_files(["in"], "out", options=chosen.write), chosen)


def ran(upscaler: CopyingUpscaler, plan: FilePlan | None = None, **options: Any) -> Batch:
    done = batch(upscaler, plan, **options)
    done.run()
    return done


def names(done: Batch) -> list[str]:
    return [result.output.name for result in done.results]


def outputs() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("out").iterdir() if path.name != RECORD_NAME}


def record() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("out", RECORD_NAME).read_text().splitlines()]


# -- what pictures bring


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PictureError("in/b.png is damaged"), "in/b.png is damaged"),
        (OutputError("cannot write out/b.png: no space"), "cannot write out/b.png: no space"),
        (EngineError("out of order"), "in/b.png: out of order"),
        (MemoryError(), "in/b.png: there is not enough memory"),
        (MemoryError("Unable to allocate 9 GiB"), "in/b.png: there is not enough memory (Unable to allocate 9 GiB)"),
        (OSError(5, "Input/output error"), "in/b.png: Input/output error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_whatever_one_picture_brings_the_others_still_run(error: Exception, words: str) -> None:
    pictures("a", "b", "c", "d")

    def fail(name: str, cancel: Cancel) -> None:
        if name == "b":
            raise error

    done = ran(CopyingUpscaler(fail))
    assert names(done) == ["a.png", "c.png", "d.png"]
    ((path, kept),) = done.failed
    assert (path, str(kept)) == (Path("in/b.png"), words)
    assert kept.__traceback__ is None, "its frames would keep the pixels"
    assert done.skipped == []
    assert sorted(outputs()) == ["a.png", "c.png", "d.png"]


def test_a_bug_is_not_swallowed() -> None:
    pictures(*"abcdefgh")

    def fail(name: str, cancel: Cancel) -> None:
        if name == "b":
            raise RuntimeError("a bug")
        while name == "c":  # as a call that runs until it is cancelled
            cancel.check()

    with pytest.raises(RuntimeError, match="a bug"):
        ran(CopyingUpscaler(fail))


def test_results_are_in_the_order_of_the_plan() -> None:
    pictures(*"abcdef")
    finished = threading.Event()

    def wait_for_the_next(name: str, cancel: Cancel) -> None:
        if name == "a":
            assert finished.wait(60)
        if name == "d":
            finished.set()

    upscaler = CopyingUpscaler(wait_for_the_next)
    done = ran(upscaler)
    assert names(done) == [f"{name}.png" for name in "abcdef"]
    assert {entry["output"] for entry in record()} == set(names(done))
    assert max(upscaler.most_in_hand.values()) in (2, 3), "several are in hand at once, but never more than three"


def test_progress_counts_pictures_and_their_parts() -> None:
    pictures(*"ab")
    seen: list[BatchProgress] = []
    batch(CopyingUpscaler(), plan_files(["in/a.png"], "out")).run(seen.append)
    assert [(s.done, s.pictures, s.input, s.tiles_done, s.tiles) for s in seen] == [
        (0.5, 1, Path("in/a.png"), 1, 2), (1.0, 1, Path("in/a.png"), 2, 2), (1.0, 1, Path("in/a.png"), 1, 1),
    ]  # fmt: skip
    seen.clear()
    batch(CopyingUpscaler()).run(seen.append)
    assert {state.pictures for state in seen} == {2}
    assert seen[-1].done == 2


# -- memory


def noise(name: str, side: int) -> None:
    Path("in").mkdir(exist_ok=True)
    cv2.imwrite(f"in/{name}.png", np.zeros((side, side), np.uint8))


def test_large_pictures_are_in_hand_alone() -> None:
    """A black picture of 6,000×6,000 is a small file, but with its result it has 612 MB of pixels."""
    for name in "abcghi":
        noise(name, 16)
    noise("d", 6000)
    noise("e", 6000)
    upscaler, beside = CopyingUpscaler(), threading.Event()

    def slow(name: str, cancel: Cancel) -> None:
        if name == "b":
            beside.set()
        if name == "a":
            assert beside.wait(60)
        time.sleep(0.05)

    upscaler.hook = slow
    assert len(ran(upscaler).results) == 8
    assert (upscaler.most_in_hand["d"], upscaler.most_in_hand["e"]) == (1, 1)
    assert upscaler.most_in_hand["a"] > 1


def test_a_picture_that_finds_no_memory_beside_others_is_tried_again_alone() -> None:
    pictures("a", "b", "c", "d")
    held = threading.Event()
    upscaler = CopyingUpscaler()

    def crowded(name: str, cancel: Cancel) -> None:
        if name == "b" and len(upscaler.in_hand) > 1:
            held.set()
            raise MemoryError
        if name == "a":
            assert held.wait(60)

    upscaler.hook = crowded
    done = ran(upscaler)
    assert done.failed == []
    assert names(done) == ["a.png", "b.png", "c.png", "d.png"]
    assert upscaler.calls.count("b") == 2


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(*"abc")

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert names(ran(CopyingUpscaler())) == ["a.png", "b.png", "c.png"]


# -- interruptions


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interruption_stops_pictures_in_hand_and_keeps_what_is_done(
    monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    pictures(*"abcdefgh")
    reached = threading.Event()

    def hang(name: str, cancel: Cancel) -> None:
        if name > "b":
            if name == "d":
                reached.set()
            while True:
                cancel.check()
                time.sleep(0.001)

    wait_for, interrupted = Batch._wait_for, []

    def interrupt(self: Batch, threads: list[threading.Thread]) -> None:
        if not interrupted:
            assert reached.wait(60)
            until(lambda: len(self.results) == 2, seconds=60)  # b may still be in hand
            interrupted.append(True)
            raise stop
        wait_for(self, threads)

    monkeypatch.setattr(Batch, "_wait_for", interrupt)
    done = batch(CopyingUpscaler(hang))
    with pytest.raises(stop):
        done.run()
    assert names(done) == ["a.png", "b.png"]
    assert done.failed == []
    assert {str(entry.input): entry.reason for entry in done.skipped} == {f"in/{n}.png": INTERRUPTED for n in "cdefgh"}
    assert sorted(outputs()) == ["a.png", "b.png"]


# -- the record


def test_resuming_does_nothing_twice() -> None:
    pictures(*"abcde")

    def fail(name: str, cancel: Cancel) -> None:
        if name in "bd":
            raise PictureError(f"{name} is damaged")

    ran(CopyingUpscaler(fail))
    upscaler = CopyingUpscaler()
    done = ran(upscaler, resume=True)
    assert sorted(upscaler.calls) == ["b", "d"]
    assert names(done) == ["b.png", "d.png"]
    assert {entry.input.stem: entry.reason for entry in done.skipped} == dict.fromkeys("ace", ALREADY_DONE)
    again = CopyingUpscaler()
    assert ran(again, resume=True).results == []
    assert again.calls == []
    assert len(ran(CopyingUpscaler()).results) == 5, "without --resume all is done again"


def change_input() -> dict[str, Any]:
    stamp = os.stat("in/a.png")
    Path("in/a.png").write_text("content of A")
    os.utime("in/a.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    return {}


def change_output() -> dict[str, Any]:
    Path("out/a.png").write_bytes(Path("out/a.png").read_bytes()[:-1])
    return {}


def remove_output() -> dict[str, Any]:
    Path("out/a.png").unlink()
    return {}


def replace_output_by_a_pipe() -> dict[str, Any]:
    Path("out/a.png").unlink()
    os.mkfifo("out/a.png")
    return {}


def remove_record() -> dict[str, Any]:
    Path("out", RECORD_NAME).unlink()
    return {}


@pytest.mark.parametrize(
    "change",
    [
        change_input,
        change_output,
        remove_output,
        remove_record,
        lambda: {"digest": "c" * 64},
        lambda: {"precision": "int8"},
        lambda: {"seed": 1},
        lambda: {"write": WriteOptions(compression=9)},
        lambda: {"write": WriteOptions(scale=2)},
        lambda: {"frames": "all"},
    ],
)
def test_what_has_changed_is_done_again(change: Callable[[], dict[str, Any]]) -> None:
    pictures("a")
    ran(CopyingUpscaler())
    assert ran(CopyingUpscaler(), resume=True).results == [], "nothing has changed yet"
    options = change()
    changed = {name: options.pop(name) for name in ("digest", "precision", "seed") if name in options}
    upscaler = CopyingUpscaler(**changed)
    assert names(ran(upscaler, resume=True, **options)) == ["a.png"]
    assert ran(upscaler, resume=True, **options).results == []


def test_what_does_not_change_the_bytes_is_not_done_again() -> None:
    pictures("a")
    ran(CopyingUpscaler())
    assert ran(CopyingUpscaler(), resume=True, max_pixels=10_000).results == []
    os.rename("in", "elsewhere")
    assert ran(CopyingUpscaler(), plan_files(["elsewhere"], "out"), resume=True).results == []


def test_the_memory_limit_counts_where_tiles_change_the_bytes() -> None:
    pictures("a")
    for limit, expected in ((None, 1), (2**28, 1), (2**28, 0), (2**29, 1)):
        upscaler = CopyingUpscaler(tile_rule="overlap")
        upscaler.memory_limit = limit
        assert len(ran(upscaler, resume=True).results) == expected


def test_an_output_of_two_kinds_is_found_by_its_digest() -> None:
    """A picture that was recorded, but killed before it got its name, does not hide the whole one from before."""
    pictures("a")
    ran(CopyingUpscaler())
    lines = Path("out", RECORD_NAME).read_bytes()
    entry = json.loads(lines) | {"files": {"a.png": "0" * 64}}
    Path("out", RECORD_NAME).write_bytes(lines + json.dumps(entry).encode() + b"\n")
    assert ran(CopyingUpscaler(), resume=True).results == []


def test_a_picture_is_recorded_before_it_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures("a")
    there: list[bool] = []
    add = DoneFiles.add

    def watched(done: DoneFiles, *arguments: Any) -> None:
        add(done, *arguments)
        there.append(Path("out/a.png").exists())

    monkeypatch.setattr(DoneFiles, "add", watched)
    ran(CopyingUpscaler())
    assert there == [False]
    (entry,) = record()
    assert entry["files"] == {"a.png": file_digest(Path("out/a.png"))}
    assert entry["input_sha256"] == file_digest(Path("in/a.png"))


def test_an_input_that_changes_meanwhile_is_not_recorded() -> None:
    pictures("a")
    ran(CopyingUpscaler(lambda name, cancel: Path("in/a.png").write_text("something else, and longer")))
    assert not Path("out", RECORD_NAME).exists()


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xfe\0", b"[1, 2]", b'{"output": 3}', b'{"output": "a.png", "files": []}', b"[" * 99999],
    ids=["bytes", "list", "number", "no files", "deep"],
)
def test_truncated_lines_and_garbage_count_for_nothing(garbage: bytes) -> None:
    pictures("a", "b")
    ran(CopyingUpscaler())
    path = Path("out", RECORD_NAME)
    first, second = sorted(path.read_bytes().splitlines(keepends=True))
    path.write_bytes(garbage + b"\n" + first + second[:-20])
    upscaler = CopyingUpscaler()
    ran(upscaler, resume=True)
    assert len(upscaler.calls) == 1, "one line was whole"
    again = CopyingUpscaler()
    ran(again, resume=True)
    assert again.calls == [], "what follows a truncated line stands in a line of its own"


def test_a_record_that_is_no_file() -> None:
    pictures("a")
    os.mkdir("out")
    os.symlink("../victim", f"out/{RECORD_NAME}")
    assert names(ran(CopyingUpscaler())) == ["a.png"], "pictures need no record"
    with pytest.raises(OutputError, match=RECORD_NAME):
        ran(CopyingUpscaler(), resume=True)
    assert not os.path.lexists("victim"), "a link is not followed"
    os.unlink(f"out/{RECORD_NAME}")
    os.mkfifo(f"out/{RECORD_NAME}")
    with pytest.raises(OutputError, match=RECORD_NAME):
        ran(CopyingUpscaler(), resume=True)


def test_a_record_that_fails_in_the_middle_loses_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OutputError("cannot write: the disk is full")

    pictures("a", "b")
    monkeypatch.setattr(DoneFiles, "add", full_disk)
    assert names(ran(CopyingUpscaler(), resume=True)) == ["a.png", "b.png"]


def test_single_files_leave_no_record_unless_they_are_to_be_resumed() -> None:
    pictures("a")
    plan = plan_files(["in/a.png"], "larger.png")
    ran(CopyingUpscaler(), plan)
    assert sorted(os.listdir()) == ["in", "larger.png"]
    assert len(ran(CopyingUpscaler(), plan, resume=True).results) == 1
    assert sorted(os.listdir()) == [RECORD_NAME, "in", "larger.png"]
    assert ran(CopyingUpscaler(), plan, resume=True).results == []


def test_names_that_are_no_unicode_are_found_again() -> None:
    Path("in").mkdir()
    Path(os.fsdecode(b"in/\xff\n.png")).write_text("x")
    ran(CopyingUpscaler())
    assert ran(CopyingUpscaler(), resume=True).results == []


def test_resuming_removes_what_killed_runs_have_left() -> None:
    pictures("a")
    os.mkdir("out")
    for name in (".rdsr-dead.tmp", ".rdsr-alive.tmp", ".rdsr-new.tmp", ".other.tmp"):
        Path("out", name).touch()
        os.utime(f"out/{name}", (1, 1))
    os.utime("out/.rdsr-new.tmp", (2**33, 2**33))
    with open("out/.rdsr-alive.tmp") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        ran(CopyingUpscaler())
        assert ".rdsr-dead.tmp" in outputs(), "only --resume tidies up"
        ran(CopyingUpscaler(), resume=True)
    assert sorted(outputs()) == [".other.tmp", ".rdsr-alive.tmp", ".rdsr-new.tmp", "a.png"]


# -- frames and streams


def test_all_frames_are_one_entry_of_the_record() -> None:
    pictures("anim", "b")
    done = ran(CopyingUpscaler(), frames="all")
    assert names(done) == ["anim-1.png", "anim-2.png", "anim-3.png", "b.png"]
    assert ran(CopyingUpscaler(), frames="all", resume=True).results == []
    os.unlink("out/anim-2.png")
    assert names(ran(CopyingUpscaler(), frames="all", resume=True)) == ["anim-1.png", "anim-2.png", "anim-3.png"]


def test_a_frame_never_replaces_another_picture() -> None:
    pictures("anim", "anim-2")
    done = ran(CopyingUpscaler(), frames="all")
    (failure,) = [str(error) for _, error in done.failed]
    assert failure == "a frame of in/anim.png and another picture would both become out/anim-2.png"
    assert outputs()["anim-2.png"].endswith(b"content of anim-2")
    os.mkdir("there")
    os.symlink("../in/anim-2.png", "there/anim-1.png")
    done = ran(CopyingUpscaler(), plan_files(["in"], "there"), frames="all")
    (failure,) = [str(error) for _, error in done.failed]
    assert failure == "the output there/anim-1.png of in/anim.png is one of the inputs"
    assert Path("in/anim-2.png").read_text() == "content of anim-2"


def test_streams() -> None:
    upscaler, larger = CopyingUpscaler(), io.BytesIO()
    done = Batch(upscaler, plan_files(["-"], "-"), stdin=io.BytesIO(b"picture"), stdout=larger)
    done.run()
    assert larger.getvalue().endswith(b"picture")
    assert (done.results[0].input, done.results[0].output) == (STANDARD_STREAM, STANDARD_STREAM)
    with pytest.raises(OptionError, match="cannot be resumed"):
        Batch(upscaler, plan_files(["-"], "a.png"), BatchOptions(resume=True))
    with pytest.raises(OptionError, match="all frames need files"):
        Batch(upscaler, plan_files(["-"], "-"), BatchOptions(frames="all"))
    with pytest.raises(PictureError, match="no standard input"):
        Batch(upscaler, plan_files(["-"], "a.png")).run()


def test_a_named_pipe_is_read_once() -> None:
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_bytes, args=(b"picture",))
    writer.start()
    done = ran(CopyingUpscaler(), plan_files(["pipe"], "out.png"))
    writer.join()
    assert done.results[0].input == Path("pipe")
    assert Path("out.png").read_bytes().endswith(b"picture")


def test_a_stream_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rdsr.runtime.batch._STREAM_LIMIT", 2**20)
    with open("/dev/zero", "rb") as zeros, pytest.raises(PictureError, match="more than 1 MiB"):
        Batch(CopyingUpscaler(), plan_files(["-"], "a.png"), stdin=zeros).run()


@pytest.mark.parametrize("options", [{"frames": "last"}, {"write": WriteOptions(scale=4.5)}])
def test_options_that_do_not_exist(options: dict[str, Any]) -> None:
    pictures("a")
    with pytest.raises(RdsrError):
        batch(CopyingUpscaler(), **options)
