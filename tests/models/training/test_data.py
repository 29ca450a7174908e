"""Degradation and patches: MATLAB's bicubic, aligned pairs, determinism, bad data folders."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rdsr.models.degradation import bicubic_downscale, crop_to_multiple
from rdsr.models.training.data import PatchSource, find_pictures, read_rgb
from rdsr.models.training.errors import TrainingError
from rdsr.tests.conftest import ROOT

RNG = np.random.default_rng(0)


def noise_picture(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_downscale_agrees_with_torch_inside_the_border() -> None:
    """torch's antialiased bicubic uses the same kernel (a = −0.5) and differs only in its border rule."""
    hr = cv2.GaussianBlur(noise_picture(96, 120), (0, 0), 1)
    for scale in (2, 3, 4):
        ours = bicubic_downscale(hr, scale).astype(int)
        tensor = torch.from_numpy(hr).permute(2, 0, 1)[None].double()
        theirs = F.interpolate(tensor, size=ours.shape[:2], mode="bicubic", antialias=True, align_corners=False)
        wanted = theirs[0].permute(1, 2, 0).round().clamp(0, 255).numpy()
        assert np.abs(ours - wanted)[3:-3, 3:-3].max() <= 1
        assert (ours == wanted)[3:-3, 3:-3].mean() > 0.99


def test_downscale_by_hand_on_a_step_at_the_border() -> None:
    """MATLAB mirrors with the edge repeated: a constant stays constant up to the corner, a ramp keeps its mean."""
    assert (bicubic_downscale(np.full((16, 24, 3), 77, np.uint8), 4) == 77).all()
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * 2, 8, axis=0)
    small = bicubic_downscale(ramp, 4)[0, :, 0].astype(int)
    assert np.array_equal(small[3:-3], np.arange(3, 13) * 8 + 3)
    assert (small + small[::-1] == 126).all(), "symmetric, up to the border"


def test_downscale_mirrors_at_the_border() -> None:
    """By hand for ×2 at the left edge: taps at −4 … 4 around 0.5, of which −1, −2, … are pixels 0, 1, … again."""

    def cubic(x: float) -> float:
        x = abs(x)
        return (
            1.5 * x**3 - 2.5 * x**2 + 1
            if x <= 1
            else max(0.0, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2)
            if x > 2
            else (-0.5 * x**3 + 2.5 * x**2 - 4 * x + 2)
        )

    row = RNG.integers(0, 256, 16, dtype=np.uint8)
    taps = [p for p in range(-4, 6) if abs(p - 0.5) < 4]
    weights = np.array([cubic((p - 0.5) / 2) for p in taps])
    mirrored = [p if p >= 0 else -1 - p for p in taps]
    wanted = float(row[mirrored] @ weights / weights.sum())
    clamped = float(row[[max(0, p) for p in taps]] @ weights / weights.sum())
    assert abs(wanted - clamped) > 1, "the rule must matter in this test"
    picture = np.repeat(np.repeat(row[None, :, None], 8, axis=0), 3, axis=2)
    assert abs(int(bicubic_downscale(picture, 2)[2, 0, 0]) - wanted) <= 0.5 + 1e-3


def test_downscale_agrees_with_the_data_sets_of_papers() -> None:
    """Kodak24's LRx4 files were made by MATLAB's rule: at most two grey levels off, and rarely."""
    kodak = ROOT.parent / "shared" / "data" / "val" / "Kodak24"
    if not kodak.is_dir():
        pytest.skip("Kodak24 is no part of the repository and not beside this checkout")
    differences = []
    for path in sorted((kodak / "HR").glob("*.png")):
        hr, lr = read_rgb(path), read_rgb(kodak / "LRx4" / path.name)
        differences.append(np.abs(bicubic_downscale(crop_to_multiple(hr, 4), 4).astype(int) - lr).ravel())
    levels = np.concatenate(differences)
    assert levels.max() <= 2
    assert (levels > 0).mean() < 0.01


def test_low_resolution_twins_are_not_taken_for_originals(tmp_path: Path) -> None:
    for name in ("HR/a.png", "LRx4/a.png", "DIV2K_train_LR_bicubic/X4/b.png", "c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), noise_picture(64, 64))
    assert [p.name for p in find_pictures([tmp_path])] == ["a.png", "c.png"]


def test_pictures_too_small_for_one_patch_size_serve_the_others(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "small.png"), noise_picture(40, 48))
    cv2.imwrite(str(tmp_path / "large.png"), np.zeros((80, 80, 3), np.uint8))
    source = PatchSource([tmp_path], scale=4, patch_sizes=(8, 16), seed=0)
    batches = [source.batch(step, 4)[1] for step in range(20)]
    assert all((b == 0).all() for b in batches if b.shape[1] == 16)
    assert any((b != 0).any() for b in batches if b.shape[1] == 8)
    with pytest.raises(TrainingError, match="patches of 24 LR pixels"):
        PatchSource([tmp_path], scale=4, patch_sizes=(8, 24), seed=0)


def test_downscale_refuses_what_is_no_multiple() -> None:
    with pytest.raises(ValueError, match="no multiple"):
        bicubic_downscale(noise_picture(10, 12), 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, size in enumerate([(64, 80), (90, 71), (120, 100)]):
        cv2.imwrite(str(tmp_path / f"{index}.png"), cv2.GaussianBlur(noise_picture(*size), (0, 0), 2))
    return tmp_path


def test_patches_are_aligned_pairs(folder: Path) -> None:
    source = PatchSource([folder], scale=4, patch_sizes=(8, 12), seed=0)
    sizes = set()
    for step in range(12):
        hr, lr = source.batch(step, 4)
        sizes.add(lr.shape[1])
        assert hr.shape[1:] == (lr.shape[1] * 4, lr.shape[2] * 4, 3)
        for big, small in zip(hr, lr, strict=True):
            again = bicubic_downscale(big, 4).astype(int)
            assert np.abs(again - small)[2:-2, 2:-2].max() <= 1
    assert sizes == {8, 12}


def test_batches_depend_on_seed_and_step_alone(folder: Path) -> None:
    source = PatchSource([folder], scale=4, patch_sizes=(8,), seed=0)
    streamed = list(source.stream(3, 6, 4))
    for step, (hr, lr) in zip(range(3, 6), streamed, strict=True):
        assert np.array_equal(source.batch(step, 4)[0], hr)
        assert np.array_equal(source.batch(step, 4)[1], lr)
    assert not np.array_equal(source.batch(0, 4)[0], source.batch(1, 4)[0])
    other = PatchSource([folder], scale=4, patch_sizes=(8,), seed=1)
    assert not np.array_equal(source.batch(0, 4)[0], other.batch(0, 4)[0])


def test_all_eight_orientations_occur(tmp_path: Path) -> None:
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:8, :16] = 255
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    source = PatchSource([tmp_path], scale=4, patch_sizes=(8,), seed=0)
    seen = {source.batch(step, 8)[0][i].tobytes() for step in range(12) for i in range(8)}
    assert len(seen) == 8


def test_unusable_pictures_are_named_and_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "broken.png").write_bytes(b"nonsense")
    cv2.imwrite(str(folder / "small.png"), noise_picture(20, 90))
    with caplog.at_level(logging.WARNING):
        source = PatchSource([folder], scale=4, patch_sizes=(8,), seed=0)
    assert len(source.pairs) == 3
    assert caplog.text.count("broken.png") == 1
    assert caplog.text.count("small.png") == 1


def test_folders_without_use_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(TrainingError, match="does not exist"):
        PatchSource([tmp_path / "none"], scale=4, patch_sizes=(8,), seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="holds no pictures"):
        PatchSource([tmp_path / "empty"], scale=4, patch_sizes=(8,), seed=0)
    with pytest.raises(TrainingError, match="at least 1200 pixels"):
        PatchSource([folder], scale=4, patch_sizes=(300,), seed=0)
