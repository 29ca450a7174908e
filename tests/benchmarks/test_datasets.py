"""Data set folders: our layout, DIV2K's, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from rdsr.benchmarks.crops import crop_strip
from rdsr.benchmarks.datasets import find_dataset
from rdsr.benchmarks.errors import BenchmarkError
from rdsr.benchmarks.quality import bicubic, measure
from rdsr.export.cases import SAMPLES


def write(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_own_layout() -> None:
    dataset = find_dataset(SAMPLES, 4)
    assert (dataset.name, len(dataset.pairs)) == ("samples", 3)
    for _, lr, hr in dataset:
        assert hr.shape == (4 * lr.shape[0], 4 * lr.shape[1], 3)


def test_div2k_layout(tmp_path: Path) -> None:
    write(tmp_path / "DIV2K_valid_HR" / "0801.png", 33, 46)  # HR is cropped to a multiple of the scale
    write(tmp_path / "DIV2K_valid_LR_bicubic" / "X4" / "0801x4.png", 8, 11)
    ((name, lr, hr),) = list(find_dataset(tmp_path, 4))
    assert name == "0801"
    assert (lr.shape, hr.shape) == ((8, 11, 3), (32, 44, 3))


def test_div2k_beside_its_training_part(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        write(tmp_path / f"DIV2K_{part}_HR" / "0801.png", 32, 32)
        write(tmp_path / f"DIV2K_{part}_LR_bicubic" / "X4" / "0801x4.png", 8, 8)
    assert find_dataset(tmp_path, 4).pairs[0][1].parent.name == "DIV2K_valid_HR"
    assert find_dataset(tmp_path / "DIV2K_train_HR", 4).pairs[0][1].parent.name == "DIV2K_train_HR"
    write(tmp_path / "Other_valid_HR" / "a.png", 32, 32)
    with pytest.raises(BenchmarkError, match="several data sets"):
        find_dataset(tmp_path, 4)


def test_pictures_too_small_to_measure_are_named(tmp_path: Path) -> None:
    write(tmp_path / "HR" / "dot.png", 16, 16)
    write(tmp_path / "LRx4" / "dot.png", 4, 4)
    with pytest.raises(BenchmarkError, match="dot of"):
        measure(bicubic(4), find_dataset(tmp_path, 4))


def test_grey_pictures_count_as_rgb(tmp_path: Path) -> None:
    for folder, side in (("HR", 32), ("LRx4", 8)):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), np.full((side, side), 90, np.uint8))
    row = measure(bicubic(4), find_dataset(tmp_path, 4))
    assert row.psnr_y == float("inf")


def test_sixteen_bit_sets_are_refused(tmp_path: Path) -> None:
    for folder, side in (("HR", 32), ("LRx4", 8)):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), np.zeros((side, side, 3), np.uint16))
    with pytest.raises(BenchmarkError, match="8-bit"):
        measure(bicubic(4), find_dataset(tmp_path, 4))


def test_bicubic_floor_on_the_samples() -> None:
    """A network that is worse than this is broken; the number pins the metric to the samples."""
    row = measure(bicubic(4), find_dataset(SAMPLES, 4))
    assert row.images == 3
    assert row.psnr_y == pytest.approx(21.93, abs=0.05)


def test_crop_strip_shows_three_columns_a_picture(tmp_path: Path) -> None:
    crop_strip(bicubic(4), find_dataset(SAMPLES, 4), tmp_path / "crops.png", side=32, zoom=2, names=["chart", "portrait"])
    sheet = cv2.imread(str(tmp_path / "crops.png"))
    assert sheet.shape == (2 * (64 + 22 + 6) + 6, 3 * 64 + 4 * 6, 3)
    left, middle, right = (sheet[6:70, x : x + 64] for x in (6, 76, 146))
    assert np.array_equal(left, middle), "the same model twice"
    assert not np.array_equal(left, right)
    with pytest.raises(BenchmarkError, match="no picture zebra"):
        crop_strip(bicubic(4), find_dataset(SAMPLES, 4), tmp_path / "x.png", names=["zebra"])
