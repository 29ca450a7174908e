"""The cache of compiled forms: it saves time and changes nothing, whatever happens to it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from rdsr.runtime import Upscaler
from rdsr.runtime.bundle import Bundle
from rdsr.runtime.engines import cache, load_session, openvino_engine
from rdsr.runtime.engines.cache import COMPILED, cache_folder, recall, remember
from rdsr.runtime.host.processes import call_apart

SOURCE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RDSR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDSR_CACHE_DIR", "/a")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("RDSR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/b/rdsr")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert cache_folder() == Path("/c/.cache/rdsr")


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 100])
def test_what_is_damaged_counts_as_absent(folder: Path, damage: bytes) -> None:
    assert recall("a") is None
    remember("a", b"content")
    assert recall("a") == b"content"
    (folder / "a").write_bytes(damage)
    assert recall("a") is None
    remember("a", b"content")
    assert recall("a") == b"content"


def test_what_was_used_longest_ago_goes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_MAX_BYTES", 4000)
    folder.mkdir()
    (folder / "not ours").write_bytes(bytes(10_000))
    remember("answer", b"an answer that must not be lost")
    ours = folder / COMPILED
    for age, name in ((50, "a"), (40, "b"), (30, "c")):
        remember(f"{COMPILED}/{name}", bytes(1000))
        os.utime(ours / name, (time.time() - age,) * 2)
    (ours / ".x.tmp").touch()
    os.utime(ours / ".x.tmp", (time.time() - 7200,) * 2)
    (ours / ".y.tmp").touch()
    assert recall(f"{COMPILED}/a") is not None, "and is now the one used last"
    remember(f"{COMPILED}/d", bytes(1000))
    assert sorted(entry.name for entry in ours.iterdir()) == [".y.tmp", "a", "c", "d"]
    remember(f"{COMPILED}/e", bytes(5000))
    assert not (ours / "e").exists()
    assert (folder / "not ours").stat().st_size == 10_000
    assert recall("answer") is not None


def result(bundle: Path, precision: str) -> bytes:
    return Upscaler.load(bundle, backend="openvino", precision=precision, threads=2)(SOURCE).tobytes()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_compiled_forms_come_back_and_change_no_byte(
    exported: Path, folder: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = result(exported, precision)
    files = sorted(folder.glob(f"{COMPILED}/*"))
    assert len(files) == 3
    times = [file.stat().st_mtime_ns for file in files]
    monkeypatch.setattr(openvino_engine, "_compiled", lambda *args: pytest.fail("compiled again"))
    assert result(exported, precision) == fresh
    assert sorted(folder.glob(f"{COMPILED}/*")) == files
    assert [file.stat().st_mtime_ns for file in files] != times, "used just now"


def test_what_the_engine_does_not_like_is_made_anew(exported: Path, folder: Path) -> None:
    fresh = result(exported, "fp32")
    names = [f"{COMPILED}/{file.name}" for file in (folder / COMPILED).iterdir()]
    for name in names:
        remember(name, b"whole, but no compiled form")
    assert result(exported, "fp32") == fresh
    assert all(len(recall(name) or b"") > 1000 for name in names)


@pytest.mark.parametrize("fault", ["damaged", "a file", "full"])
def test_a_broken_cache_costs_time_alone(exported: Path, folder: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = result(exported, "fp32")
    files = list((folder / COMPILED).iterdir())
    if fault == "damaged":
        for file in files:
            file.write_bytes(file.read_bytes()[:-1] + b"?")
    else:
        for file in files:
            file.unlink()
    if fault == "a file":
        (folder / COMPILED).rmdir()
        (folder / COMPILED).touch()
    if fault == "full":
        monkeypatch.setattr("rdsr.atomic.os.replace", full_disk)
    assert result(exported, "fp32") == fresh
    if fault == "full":
        assert not list((folder / COMPILED).iterdir()), "nothing half-written remains"


def full_disk(*paths: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that even root cannot write to")
def test_a_read_only_cache_costs_time_alone(exported: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = result(exported, "fp32")
    monkeypatch.setenv("RDSR_CACHE_DIR", "/proc/self")
    assert result(exported, "fp32") == fresh


@pytest.mark.parametrize("imported", [False, True])
def test_the_kernels_that_a_graph_keeps_are_bounded(exported: Path, folder: Path, imported: bool) -> None:
    """Meeting many sizes must not make a process grow for ever; one that has done nothing else, as heaps remember."""
    bounded, unbounded = (
        call_apart("rdsr.tests.runtime.engines.test_cache", "grown_by_many_sizes", [str(exported), imported, kept])
        for kept in (40, 5000)
    )
    assert bounded < 0.5 * unbounded, "some 20 MiB against 100"


def grown_by_many_sizes(exported: str, imported: bool, kept: int) -> float:
    """MiB that 300 sizes add once 40 are known and no more than `kept` kernels are kept."""
    openvino_engine._KEPT_KERNELS = kept
    bundle = Bundle(exported)
    options = {"backend": "openvino", "precision": "fp32", "threads": 1, "cached": imported}
    session = load_session(bundle.graph("decoder"), **options)
    if imported:
        session = load_session(bundle.graph("decoder"), **options)
    z = np.zeros((1, bundle.manifest.process["latent_size"]), np.float32)

    def run(widths: range) -> None:
        for width in widths:
            session.run({"lr": np.zeros((1, 3, 8, width), np.float32), "z": z})

    run(range(440, 400, -1))
    before = resident()
    run(range(400, 100, -1))
    return (resident() - before) / 2**20


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
