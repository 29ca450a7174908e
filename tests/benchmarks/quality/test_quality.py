"""Data set folders (our layout, DIV2K's, and faulty ones), quality rows, crops, degradations."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from rdsr.benchmarks.errors import BenchmarkError
from rdsr.benchmarks.quality.crops import crop_strip
from rdsr.benchmarks.quality.datasets import find_dataset
from rdsr.benchmarks.quality.measure import bicubic, measure
from rdsr.benchmarks.report.data import read_quality
from rdsr.cli.main import app
from rdsr.export.build_proof import SAMPLES
from rdsr.models.degradation import TEST_DEGRADATIONS
from rdsr.models.downscaling import bicubic_downscale


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
    crop_strip([bicubic(4)], SAMPLES, tmp_path / "crops.png", side=32, zoom=2, names=["chart", "portrait"])
    sheet = cv2.imread(str(tmp_path / "crops.png"))
    assert sheet.shape == (2 * (64 + 22 + 6) + 6, 3 * 64 + 4 * 6, 3)
    left, middle, right = (sheet[6:70, x : x + 64] for x in (6, 76, 146))
    assert np.array_equal(left, middle), "the same model twice"
    assert not np.array_equal(left, right)
    with pytest.raises(BenchmarkError, match="no picture zebra"):
        crop_strip([bicubic(4)], SAMPLES, tmp_path / "x.png", names=["zebra"])


def test_crop_strip_shows_several_models_on_degraded_pictures(tmp_path: Path) -> None:
    names = ["chart", "chart:jpeg"]
    crop_strip([bicubic(4), bicubic(4)], SAMPLES, tmp_path / "crops.png", side=32, zoom=2, names=names)
    sheet = cv2.imread(str(tmp_path / "crops.png"))
    assert sheet.shape == (2 * (64 + 22 + 6) + 6, 4 * 64 + 5 * 6, 3)
    clean, jpeg = (sheet[top : top + 64] for top in (6, 98))
    assert not np.array_equal(clean[:, 6:70], jpeg[:, 6:70])
    with pytest.raises(BenchmarkError, match="degradation must be"):
        crop_strip([bicubic(4)], SAMPLES, tmp_path / "x.png", names=["chart:fog"])
    with pytest.raises(BenchmarkError, match="×2 and ×4 cannot"):
        crop_strip([bicubic(2), bicubic(4)], SAMPLES, tmp_path / "x.png")
    write(tmp_path / "HR" / "alone.png", 64, 64)  # LR is made of it
    crop_strip([bicubic(4)], tmp_path, tmp_path / "crops.png", side=32, names=["alone:noise"])
    with pytest.raises(BenchmarkError, match="no picture fog, zebra"):
        crop_strip([bicubic(4)], SAMPLES, tmp_path / "x.png", names=["zebra", "fog"])


def test_a_degradation_makes_lr_of_any_originals_and_always_the_same(tmp_path: Path) -> None:
    """No LR folder is needed, and LR depends on the original and its name only, not on the order or the process."""
    dataset = find_dataset(SAMPLES, 4)
    (tmp_path / "HR").mkdir()
    for _, high in dataset.pairs:
        (tmp_path / "HR" / high.name).write_bytes(high.read_bytes())
    own = [lr for _, lr, _ in dataset]
    seen = []
    for name in TEST_DEGRADATIONS:
        bare = list(find_dataset(tmp_path, 4, name))
        again = list(find_dataset(SAMPLES, 4, name))
        for (one, lr, hr), (other, lr_again, hr_again), plain in zip(bare, again, own, strict=True):
            assert one == other
            assert np.array_equal(lr, lr_again)
            assert np.array_equal(hr, hr_again)
            assert lr.shape == plain.shape
            assert not np.array_equal(lr, plain)
            seen.append(lr.tobytes())
    assert len(set(seen)) == len(seen), "four different ones"
    with pytest.raises(BenchmarkError, match="degradation must be bicubic, noise, blur, jpeg, mixed"):
        find_dataset(SAMPLES, 4, "fog")
    for scale in (2, 4):  # clean, for any scale
        for (_, lr, hr), made in zip(find_dataset(tmp_path, scale, "bicubic"), own, strict=True):
            assert np.array_equal(lr, bicubic_downscale(hr, scale))
            assert scale != 4 or np.abs(lr.astype(int) - made).max() <= 1


def test_quality_of_degraded_pictures_says_so_and_stays_out_of_reports(tmp_path: Path) -> None:
    arguments = ["bench", "quality", "--dataset", str(SAMPLES), "--model", "bicubic", "-o", str(tmp_path), "--json"]
    result = CliRunner().invoke(app, [*arguments, "--degradation", "blur", "--degradation", "noise"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [row["degradation"] for row in rows] == ["blur", "noise"]
    clean = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert clean["degradation"] == "bicubic"
    assert all(row["psnr_y"] < clean["psnr_y"] for row in rows)
    (tmp_path / "quality.json").write_text(json.dumps({"rows": [*rows, clean]}))
    assert [row.degradation for row in read_quality(tmp_path / "quality.json").rows] == ["bicubic"]
