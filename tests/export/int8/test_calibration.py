"""Calibration folders of int8 exports: odd pictures break nothing, folders without one are refused."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from rdsr.cli.main import app
from rdsr.export.build_proof import SAMPLES
from rdsr.export.errors import ExportError
from rdsr.export.exporter import ExportOptions, export_checkpoint
from rdsr.export.int8 import calibration
from rdsr.export.int8.calibration import MAX_SIDE, read_calibration
from rdsr.models.downscaling import bicubic_downscale, crop_to_multiple
from rdsr.tests.models.training.test_data import png_of


def write(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)


def test_odd_calibration_pictures_break_nothing(checkpoint: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    write(folder / "black.png", np.zeros((64, 48, 3), np.uint8))
    write(folder / "narrow.png", rng.integers(0, 256, (50, 1, 3), dtype=np.uint8))
    write(folder / "deep.png", rng.integers(0, 65536, (40, 60, 3), dtype=np.uint16))
    write(folder / "grey.png", rng.integers(0, 256, (40, 60), dtype=np.uint8))
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    pictures = read_calibration(folder, 4)
    assert [p.name for p in pictures] == ["black", "deep", "grey", "narrow"]
    assert all(p.hr.shape == (4 * p.lr.shape[0], 4 * p.lr.shape[1], 3) for p in pictures)
    assert [p.held_back for p in pictures] == [False, False, True, False]
    options = ExportOptions(
        checkpoint=checkpoint, output=tmp_path / "b", precisions=("int8",), calibration=folder, single_graph=False
    )
    result = export_checkpoint(dataclasses.replace(options, max_psnr_drop=1.0))
    assert result.passed
    sets = {entry["dataset"]: entry["judges"] for entry in result.quantization["datasets"]}
    assert sets == {"package": False, "pictures": True}, "what was held back judges"
    assert [len(row.sizes) for row in result.verification.variants] == [10] * len(result.verification.variants)
    assert not any("grey" in str(case) for case in json.loads((tmp_path / "b" / "proof.json").read_text())["cases"])


@pytest.mark.parametrize("kind", ["black", "narrow"])
def test_folders_of_nothing_but_blank_or_narrow_pictures(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    for index in range(4):
        write(tmp_path / "p" / f"{index}.png", np.zeros((64, 64 if kind == "black" else 1, 3), np.uint8))
    options = ExportOptions(
        checkpoint=checkpoint, output=tmp_path / "b", precisions=("int8",), calibration=tmp_path / "p", single_graph=False
    )
    assert export_checkpoint(options).passed


def test_folders_without_a_picture_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.png").write_text("no picture")
    for folder in ("empty", "words", "absent"):
        result = CliRunner().invoke(
            app, ["export", str(checkpoint), "-o", str(tmp_path / "b"), "--calibration", str(tmp_path / folder)]
        )
        assert result.exit_code == 2, result.output
        assert "nothing to calibrate with" in result.stderr
        assert not (tmp_path / "b").exists()


def test_a_data_set_brings_its_own_low_resolution(tmp_path: Path) -> None:
    root = shutil.copytree(SAMPLES, tmp_path / "set")
    own = cv2.imread(str(root / "LRx4" / "portrait.png"))
    write(root / "LRx4" / "portrait.png", 255 - own)
    picture = next(p for p in read_calibration(root, 4) if p.name == "portrait")
    assert np.array_equal(picture.lr, (255 - own)[: picture.lr.shape[0], : picture.lr.shape[1], ::-1])


def test_pictures_that_cannot_be_used_are_named_once_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    write(tmp_path / "fine.png", rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    write(tmp_path / "memory.png", rng.integers(0, 256, (96, 96, 3), dtype=np.uint8))
    (tmp_path / "giant.png").write_bytes(png_of(50_000))
    (tmp_path / "large.png").write_bytes(png_of(30_000))
    (tmp_path / "cut.png").write_bytes((tmp_path / "fine.png").read_bytes()[:900])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    read = calibration.read_rgb

    def without_memory(path: Path) -> np.ndarray:
        if path.name == "memory.png":
            raise MemoryError
        return read(path)

    monkeypatch.setattr(calibration, "read_rgb", without_memory)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert [picture.name for picture in read_calibration(tmp_path, 4)] == ["fine"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19, "KiB: the giants are not decoded"
    for name in ("memory", "giant", "large", "cut", "empty", "text"):
        assert caplog.text.count(f"/{name}.png") == 1, name
    (tmp_path / "fine.png").unlink()
    with pytest.raises(ExportError, match="none of the files"):
        read_calibration(tmp_path, 4)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_middle_of_a_large_picture_is_that_of_its_whole_twin(tmp_path: Path, scale: int) -> None:
    hr = np.random.default_rng(0).integers(0, 256, (MAX_SIDE * scale + 77, MAX_SIDE * scale + 250, 3), dtype=np.uint8)
    write(tmp_path / "a.png", hr)
    (picture,) = read_calibration(tmp_path, scale)
    hr = crop_to_multiple(hr[:, :, ::-1], scale)
    lr = bicubic_downscale(hr, scale)
    top, left = ((side - MAX_SIDE) // 2 for side in lr.shape[:2])
    assert np.array_equal(picture.lr, lr[top : top + MAX_SIDE, left : left + MAX_SIDE])
    side = MAX_SIDE * scale
    assert np.array_equal(picture.hr, hr[top * scale : top * scale + side, left * scale : left * scale + side])
