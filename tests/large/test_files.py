"""Giant pictures, and a folder of small ones: `make check-large`. The reports lie in `check-large/`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import pyvips

from rdsr.benchmarks.report.tables import FIGURE_COLUMNS, write_table
from rdsr.runtime import Upscaler
from rdsr.runtime.batch import Batch
from rdsr.runtime.engines import onnxruntime_engine, openvino_engine
from rdsr.runtime.file_plan import plan_files

REPORTS = Path("check-large")
SAMPLES = sorted(Path("export/samples/HR").glob("*.png"))
WIDTH, HEIGHT = 12000, 9000
LIMIT_MB = 1024
PICTURES = 100


def giant(path: Path, channels: int, deep: bool) -> None:
    """A sample picture, enlarged, with noise; the alpha is a slope."""
    sample = pyvips.Image.new_from_file(str(SAMPLES[0]), access="random").copy_memory()
    image = sample.resize(WIDTH / sample.width, vscale=HEIGHT / sample.height).crop(0, 0, WIDTH, HEIGHT)
    image = image + pyvips.Image.gaussnoise(WIDTH, HEIGHT, sigma=3)
    if channels == 4:
        image = image.bandjoin(pyvips.Image.xyz(WIDTH, HEIGHT)[0] * (255 / WIDTH))
    image = (image * 257).cast("ushort") if deep else image.cast("uchar")
    image = image.copy(interpretation="rgb16" if deep else "srgb")
    if path.suffix == ".tif":
        image.tiffsave(str(path), compression="deflate")
    else:
        image.pngsave(str(path), compression=1, filter="sub")


def anonymous_mb(pid: int) -> float:
    """Anonymous memory of a process, in MiB; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:")), 0.0)


@pytest.mark.parametrize(
    ("suffix", "channels", "deep"), [(".png", 3, False), (".tif", 3, False), (".png", 4, False), (".tif", 4, True)]
)
def test_a_giant_passes_through_a_gibibyte(tmp_path: Path, suffix: str, channels: int, deep: bool) -> None:
    source, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    giant(source, channels, deep)
    line = [sys.executable, "-m", "rdsr.cli", "upscale", source, "-o", target, "--memory-limit", f"{LIMIT_MB}MiB", "--json"]
    started, peak = time.perf_counter(), 0.0
    with subprocess.Popen(list(map(str, line)), stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_mb(process.pid))
            time.sleep(0.02)
        report = json.loads(process.stdout.read() if process.stdout else "")
    seconds = time.perf_counter() - started
    assert process.returncode == 0, report
    assert len(report["outputs"]) == 1
    what = f"{WIDTH}×{HEIGHT} {channels} channels {16 if deep else 8} bit {suffix[1:]} ({report['backend']})"
    rows = [
        {"figure": f"{what}: time", "value": seconds, "unit": "s", "asked": ""},
        {"figure": f"{what}: peak of anonymous memory", "value": peak, "unit": "MiB", "asked": f"≤ {LIMIT_MB}"},
        {"figure": f"{what}: output", "value": target.stat().st_size / 2**30, "unit": "GiB", "asked": ""},
    ]
    write_table(REPORTS, f"giant-{suffix[1:]}-{channels}-{16 if deep else 8}", {"rows": rows}, FIGURE_COLUMNS, rows)
    assert peak <= LIMIT_MB
    larger = pyvips.Image.new_from_file(str(target), access="sequential", fail_on="truncated")
    assert (larger.width, larger.height, larger.bands) == (4 * WIDTH, 4 * HEIGHT, channels)
    assert larger.format == ("ushort" if deep else "uchar")
    small = larger.shrink(64, 64).colourspace("b-w").extract_band(0).cast("float")
    wanted = pyvips.Image.new_from_file(str(source), access="sequential").shrink(16, 16).colourspace("b-w").extract_band(0)
    assert (small - wanted.cast("float")).abs().max() < (2600 if deep else 10), "the same picture, everywhere"
    target.unlink()


def test_the_engine_has_the_time_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred pictures of 384×512 to PNG in int8: the share of the wall time in which the engine computes."""
    arrays = []
    for number in range(PICTURES):
        whole = cv2.imread(str(SAMPLES[number % len(SAMPLES)]))
        arrays.append(np.ascontiguousarray(cv2.resize(whole, (512, 384), interpolation=cv2.INTER_AREA)[:, :, ::-1]))
        (tmp_path / "in").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "in" / f"{number:03}.png"), arrays[-1][:, :, ::-1])
    upscaler = Upscaler.load(precision="int8", threads=2)
    upscaler(arrays[0])
    started = time.perf_counter()
    for array in arrays:
        upscaler(array)
    alone = time.perf_counter() - started
    busy = [0.0]
    for engine in (onnxruntime_engine, openvino_engine):
        for session in [c for c in vars(engine).values() if isinstance(c, type) and c.__module__ == engine.__name__]:
            if hasattr(session, "run"):
                monkeypatch.setattr(session, "run", timed(session.run, busy))
    started = time.perf_counter()
    batch = Batch(upscaler, plan_files([str(tmp_path / "in")], tmp_path / "out"))
    batch.run()
    seconds = time.perf_counter() - started
    assert len(batch.results) == PICTURES
    engine_name = upscaler.effective.backend
    rows = [
        {
            "figure": f"{PICTURES} pictures of 384×512, {engine_name} int8: wall time",
            "value": seconds,
            "unit": "s",
            "asked": "",
        },
        {"figure": "share in which the engine computes", "value": 100 * busy[0] / seconds, "unit": "%", "asked": "≥ 92"},
        {"figure": "share that the engine alone takes", "value": 100 * alone / seconds, "unit": "%", "asked": ""},
    ]
    write_table(REPORTS, "folder", {"rows": rows}, FIGURE_COLUMNS, rows)
    assert busy[0] / seconds >= 0.92


def timed(run, busy):  # type: ignore[no-untyped-def]
    def wrapped(*arguments, **options):  # type: ignore[no-untyped-def]
        started = time.perf_counter()
        try:
            return run(*arguments, **options)
        finally:
            busy[0] += time.perf_counter() - started

    return wrapped
