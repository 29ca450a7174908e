"""Degradation and patches: MATLAB's bicubic, aligned pairs, determinism, bad data folders."""

from __future__ import annotations

import itertools
import logging
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rdsr.models.degradation import TEST_DEGRADATIONS, Degradation, PhotoDegradations
from rdsr.models.downscaling import bicubic_downscale, crop_to_multiple
from rdsr.models.training import data
from rdsr.models.training.data import PatchSource, find_pictures, read_rgb
from rdsr.models.training.errors import TrainingError
from rdsr.models.training.validation import load_pairs
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
    """By hand for ×2 at the left edge: taps at −4 … 4 around 0.5; taps −1, −2, … are pixels 0, 1, … again."""

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
    batches = [source.batch(step, 4).lr for step in range(20)]
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
        hr, _, lr, _ = source.batch(step, 4)
        sizes.add(lr.shape[1])
        assert hr.shape[1:] == (lr.shape[1] * 4, lr.shape[2] * 4, 3)
        for big, small in zip(hr, lr, strict=True):
            again = bicubic_downscale(big, 4).astype(int)
            assert np.abs(again - small)[2:-2, 2:-2].max() <= 1
    assert sizes == {8, 12}


def test_reduced_originals_are_their_own_targets_with_an_exact_twin(tmp_path: Path) -> None:
    """A pattern of stripes gets finer; LR is the twin of HR in the middle, and the teacher's picture is left out."""
    stripes = np.zeros((160, 200, 3), np.uint8)
    stripes[:, (np.arange(200) // 16) % 2 == 0] = 200
    for name, picture in (("originals", stripes), ("teacher", 255 - stripes)):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a.png"), picture)
    options = {"scale": 4, "patch_sizes": (12,), "seed": 0, "teachers": [tmp_path / "teacher"]}
    source = PatchSource([tmp_path / "originals"], **options, reduced=1.0)
    edges = []
    for step in range(8):
        hr, target, lr, _ = source.batch(step, 4)
        assert np.array_equal(hr, target)
        for big, small in zip(hr, lr, strict=True):
            assert np.abs(bicubic_downscale(big, 4).astype(int) - small)[2:-2, 2:-2].max() <= 1
            along = big.astype(int)[:, :, 1] if np.ptp(big[0]) > np.ptp(big[:, 0]) else big.astype(int)[:, :, 1].T
            edges.append(int((np.abs(np.diff((along[0] > 100).astype(int))) > 0).sum()))
    assert min(edges) <= 3 < 5 <= max(edges), "stripes of 16 pixels become 8 to 16 wide"
    taught = PatchSource([tmp_path / "originals"], **options, reduced=0.5)
    batches = [taught.batch(step, 4) for step in range(8)]
    shares = [np.array_equal(a, b) for hr, target, *_ in batches for a, b in zip(hr, target, strict=True)]
    assert 0.2 < np.mean(shares) < 0.8


def test_colours_are_permuted_in_all_pictures_of_a_patch(folder: Path) -> None:
    options = {"scale": 4, "patch_sizes": (8,), "seed": 0}
    plain, permuted = PatchSource([folder], **options), PatchSource([folder], **options, permuted=1.0)
    (hr, *_), _, (lr, *_), _ = plain.batch(0, 1)
    (other_hr, *_), _, (other_lr, *_), _ = permuted.batch(0, 1)
    orders = [order for order in itertools.permutations(range(3)) if np.array_equal(hr[..., order], other_hr)]
    assert any(np.array_equal(lr[..., order], other_lr) for order in orders)
    seen = {tuple(permuted.batch(step, 1).hr.mean(axis=(0, 1, 2)).argsort()) for step in range(40)}
    assert len(seen) > 2


def test_batches_depend_on_seed_and_step_alone(folder: Path) -> None:
    source = PatchSource([folder], scale=4, patch_sizes=(8,), seed=0)
    streamed = list(source.stream(3, 6, 4))
    for step, (hr, _, lr, _) in zip(range(3, 6), streamed, strict=True):
        assert np.array_equal(source.batch(step, 4)[0], hr)
        assert np.array_equal(source.batch(step, 4).lr, lr)
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
    assert len(source.pictures) == 3
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


def with_teacher(folder: Path, teacher: Path, name: str, value: int = 0) -> None:
    """A teacher's picture of one value for an original of the folder."""
    hr = crop_to_multiple(read_rgb(folder / name), 4)
    (teacher / name).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str((teacher / name).with_suffix(".jpg")), np.full_like(hr, value))


@pytest.fixture
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [tmp_path_factory.mktemp("teacher"), tmp_path_factory.mktemp("teacher")]


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_a_teachers_picture_is_mixed_into_the_target(
    folder: Path, teachers: list[Path], weight: float, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "sub").mkdir()
    (folder / "2.png").rename(folder / "sub" / "2.png")
    with_teacher(folder, teachers[0], "sub/2.png", 40)
    with_teacher(folder, teachers[1], "1.png", 80)
    options = {"scale": 4, "patch_sizes": (8,), "seed": 0}
    plain = PatchSource([folder], **options)
    source = PatchSource([folder], **options, teachers=teachers, teacher_weight=weight)
    assert source.taught == 2
    assert "1 of 3 pictures have no teacher's picture" in caplog.text
    for picture, original, value in zip(source.pictures, plain.pictures, (None, 80, 40), strict=True):
        assert np.array_equal(picture.lr, original.lr), "LR comes from the original"
        assert np.array_equal(picture.hr, original.hr)
        wanted = original.hr if value is None else weight * value + (1 - weight) * original.hr
        assert np.abs(picture.target - wanted).max() <= 0.5
    assert source.digest != plain.digest
    moved = PatchSource([folder / "sub"], **options, teachers=teachers)
    assert moved.taught == 0, "of another subfolder"


def test_a_teachers_picture_of_another_size_is_refused_by_name(folder: Path, teachers: list[Path]) -> None:
    teacher = teachers[0]
    cv2.imwrite(str(teacher / "1.png"), noise_picture(90, 71))
    with pytest.raises(TrainingError, match=r"1\.png has 90×71 pixels, its original 88×68"):
        PatchSource([folder], scale=4, patch_sizes=(8,), seed=0, teachers=[teacher])
    with pytest.raises(TrainingError, match="does not exist"):
        PatchSource([folder], scale=4, patch_sizes=(8,), seed=0, teachers=[teacher / "none"])


def test_photo_patches_are_degraded_and_say_how(folder: Path) -> None:
    plain = PatchSource([folder], scale=4, patch_sizes=(12,), seed=0)
    source = PatchSource([folder], scale=4, patch_sizes=(12,), seed=0, photo=PhotoDegradations(clean=0.3))
    clean = Degradation().vector()
    seen = {True: 0, False: 0}
    for step in range(10):
        batch, again = source.batch(step, 4), source.batch(step, 4)
        assert all(np.array_equal(a, b) for a, b in zip(batch, again, strict=True)), "drawn from seed and step"
        for target, lr, vector in zip(batch.target, batch.lr, batch.degradation, strict=True):
            bicubic = bicubic_downscale(target, 4).astype(int)
            untouched = np.abs(bicubic - lr)[2:-2, 2:-2].max() <= 1
            seen[untouched] += 1
            if np.array_equal(vector, clean):
                assert untouched
    assert min(seen.values()) > 0
    first = plain.batch(0, 4)
    assert (first.degradation == clean).all()


def test_photo_patches_lie_where_their_targets_lie(tmp_path: Path) -> None:
    """A mild degradation leaves LR close to the target's own twin, in all orientations and up to the border."""
    smooth = cv2.GaussianBlur(noise_picture(48, 56)[:, :, :1], (0, 0), 4)
    grey = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)
    cv2.imwrite(str(tmp_path / "a.png"), grey)
    mild = PhotoDegradations(
        clean=0.0, blur=1.0, blur_sigma=(0.5, 1.0), gaussian=0.0, poisson=0.0, jpeg=0.5, jpeg_quality=(98, 100)
    )
    source = PatchSource([tmp_path], scale=4, patch_sizes=(8,), seed=0, photo=mild)
    for step in range(8):
        batch = source.batch(step, 4)
        for target, lr in zip(batch.target, batch.lr, strict=True):
            twin = bicubic_downscale(target, 4).astype(int)

            def distance(down: int, right: int, lr: np.ndarray = lr, twin: np.ndarray = twin) -> float:
                return float(np.abs(np.roll(lr, (down, right), (0, 1)) - twin)[2:-2, 2:-2].mean())

            assert distance(0, 0) < min(distance(1, 0), distance(-1, 0), distance(0, 1), distance(0, -1))


def png_of(side: int) -> bytes:
    """A one-bit PNG of `side`² white pixels: its header is true, and its data take next to nothing."""
    row = zlib.compressobj(9)
    data = b"".join(row.compress(b"\0" + b"\xff" * ((side + 7) // 8)) for _ in range(side)) + row.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


UNUSABLE = ("large", "giant", "cut", "text", "empty", "header", "memory")


@pytest.fixture
def unusable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one picture of each kind that cannot be used."""
    folder = tmp_path / "unusable"
    folder.mkdir()
    whole = cv2.imencode(".png", noise_picture(64, 64))[1].tobytes()
    (folder / "large.png").write_bytes(png_of(12_000))  # beyond our limit, below Pillow's
    (folder / "giant.png").write_bytes(png_of(50_000))
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("a picture of nothing")
    (folder / "empty.png").touch()
    (folder / "header.png").write_bytes(whole[:33])
    (folder / "memory.png").write_bytes(cv2.imencode(".png", noise_picture(96, 96))[1].tobytes())
    decoded = data._decoded

    def without_memory(image: object) -> np.ndarray:
        if image.size == (96, 96):
            raise MemoryError
        return decoded(image)

    monkeypatch.setattr(data, "_decoded", without_memory)
    return folder


def test_every_picture_that_cannot_be_used_is_named_once_and_left_out(
    folder: Path, unusable: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (alone := folder / "alone").mkdir()
    for path in folder.glob("*.png"):
        path.rename(alone / path.name)
    source = PatchSource([alone], scale=4, patch_sizes=(8,), seed=0)
    started = time.monotonic()
    both = PatchSource([alone, unusable], scale=4, patch_sizes=(8,), seed=0)
    assert time.monotonic() - started < 60
    assert len(both.pictures) == len(source.pictures) == 3
    assert both.digest == source.digest, "a run goes on beside them"
    for name in UNUSABLE:
        assert caplog.text.count(f"{name}.png") == 1, name
    with pytest.raises(TrainingError, match="none of the 7 pictures can be used"):
        PatchSource([unusable], scale=4, patch_sizes=(8,), seed=0)


def test_a_teachers_picture_that_cannot_be_used_leaves_the_original_as_target(
    folder: Path, unusable: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken = folder / "taken"
    taken.mkdir()
    for name in UNUSABLE:
        cv2.imwrite(str(taken / f"{name}.png"), noise_picture(64, 64))
    cv2.imwrite(str(unusable / "fine.png"), np.zeros((64, 64, 3), np.uint8))
    cv2.imwrite(str(taken / "fine.png"), noise_picture(64, 64))
    source = PatchSource([taken], scale=4, patch_sizes=(8,), seed=0, teachers=[unusable])
    assert source.taught == 1
    assert sum(np.array_equal(picture.target, picture.hr) for picture in source.pictures) == len(UNUSABLE)
    for name in UNUSABLE:
        assert caplog.text.count(f"{name}.png") == 1, name


def test_validation_goes_on_without_pictures_that_cannot_be_used(
    tmp_path: Path, unusable: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unusable.rename(tmp_path / "HR")
    with pytest.raises(TrainingError, match="none of the 7 pictures"):
        load_pairs(tmp_path, 4)
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / "HR" / f"{name}.png"), noise_picture(64, 64))
    (tmp_path / "LRx4").mkdir()
    (tmp_path / "LRx4" / "b.png").write_bytes(b"nonsense")
    cv2.imwrite(str(tmp_path / "HR" / "dot.png"), noise_picture(4, 4))
    caplog.clear()
    assert len(load_pairs(tmp_path, 4)) == 1, "b has an LR picture that cannot be read"
    assert len(load_pairs(tmp_path, 4, photo=True)) == 2 * len(TEST_DEGRADATIONS)
    for name in (*UNUSABLE, "dot"):
        assert caplog.text.count(f"{name}.png") == 2, "once for each call"


def test_a_large_picture_is_downscaled_in_little_memory() -> None:
    """Float copies of it would take four times its bytes, and one is read per core."""
    hr = np.zeros((4096, 4096, 3), np.uint8)
    tracemalloc.start()
    bicubic_downscale(hr, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * hr.nbytes
