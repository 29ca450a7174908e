"""Calibration folders of int8 exports: odd pictures break nothing, folders without one are refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from rdsr.cli.main import app
from rdsr.export.build_proof import SAMPLES
from rdsr.export.exporter import ExportOptions, export_checkpoint
from rdsr.export.int8.calibration import read_calibration


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
    options = ExportOptions(checkpoint=checkpoint, output=tmp_path / "b", precisions=("int8",), calibration=folder)
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
