"""Degradations of photos: each step, repeatable draws, and the vector for the latent prior encoder."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from rdsr.models.degradation import TEST_DEGRADATIONS, VECTOR_SIZE, Degradation, PhotoDegradations, degrade_for_test
from rdsr.models.downscaling import KERNELS, bicubic_downscale, downscale
from rdsr.tests.conftest import picture

RNG = np.random.default_rng
SMOOTH = cv2.GaussianBlur(picture(128, 160), (0, 0), 2)
GREY = np.full((256, 256, 3), 120, np.uint8)


def test_nothing_but_the_kernel_is_the_bicubic_degradation() -> None:
    assert Degradation().clean
    assert Degradation(grey_noise=True).clean, "without noise its colour does not count"
    assert not Degradation(kernel="area").clean
    assert np.array_equal(Degradation().apply(SMOOTH, 4, RNG(0)), bicubic_downscale(SMOOTH, 4))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_kernels_keep_what_is_constant_and_area_is_the_mean(kernel: str, scale: int) -> None:
    assert np.allclose(downscale(np.full((24, 36, 3), 77, np.float32), scale, kernel), 77, atol=1e-3)
    large = picture(24, 36).astype(np.float32)
    mean = large.reshape(24 // scale, scale, 36 // scale, scale, 3).mean(axis=(1, 3))
    assert np.allclose(downscale(large, scale, "area"), mean, atol=1e-2)


def test_blur_spreads_a_point_as_far_as_its_sigmas_say() -> None:
    point = np.zeros((128, 128, 3), np.uint8)
    point[62:66, 62:66] = 255
    for sigma, angle in (((4.0, 4.0), 0.0), ((5.0, 2.0), 0.0), ((5.0, 2.0), math.pi / 2)):
        wide = Degradation(sigma=sigma, angle=angle)._blurred(point.astype(np.float32))[:, :, 0].astype(np.float64)
        y, x = np.mgrid[:128, :128] - 63.5
        along, across = (float((wide * axis**2).sum() / wide.sum()) for axis in (x, y))
        expected = sigma if angle == 0 else sigma[::-1]
        box = (4**2 - 1) / 12
        assert along == pytest.approx(expected[0] ** 2 + box, rel=0.1)
        assert across == pytest.approx(expected[1] ** 2 + box, rel=0.1)


def test_noise_has_the_size_and_the_colour_that_it_says() -> None:
    coloured = Degradation(gaussian=10.0).apply(GREY, 4, RNG(0)).astype(float) - 120
    assert coloured.std() == pytest.approx(10, rel=0.05)
    assert abs(np.corrcoef(coloured[..., 0].ravel(), coloured[..., 1].ravel())[0, 1]) < 0.1
    grey = Degradation(gaussian=10.0, grey_noise=True).apply(GREY, 4, RNG(0)).astype(float)
    assert (grey[..., 0] == grey[..., 1]).all()
    for value in (40, 160):
        flat = np.full((256, 256, 3), value, np.uint8)
        for same in (False, True):
            noise = Degradation(poisson=0.8, grey_noise=same).apply(flat, 4, RNG(0)).astype(float) - value
            assert noise.var() == pytest.approx(0.8 * value, rel=0.1), "the variance grows with the light"


def test_jpeg_is_worse_at_lower_quality_and_may_come_twice() -> None:
    clean = bicubic_downscale(SMOOTH, 4).astype(float)
    errors = [np.abs(Degradation(jpeg=jpeg).apply(SMOOTH, 4, RNG(0)) - clean).mean() for jpeg in ((95,), (40,), (10,))]
    assert errors == sorted(errors)
    once, twice = (Degradation(jpeg=jpeg).apply(SMOOTH, 4, RNG(0)) for jpeg in ((30,), (30, 90)))
    assert not np.array_equal(once, twice)


def test_the_margin_is_enough() -> None:
    """The middle of a window equals the middle of the whole picture."""
    large = cv2.GaussianBlur(picture(400, 400), (0, 0), 1)
    for degradation in (
        Degradation(kernel="bilinear"),
        Degradation(sigma=(4.0, 1.0), angle=0.5),
        Degradation(sigma=(3.0, 3.0)),
    ):
        margin = degradation.margin(4)
        whole = degradation.apply(large, 4, RNG(0))[40:60, 40:60]
        start, stop = (40 - margin) * 4, (60 + margin) * 4
        part = degradation.apply(large[start:stop, start:stop], 4, RNG(0))[margin:-margin, margin:-margin]
        assert np.abs(part.astype(int) - whole).max() <= 1


def test_draws_repeat_and_cover_every_step() -> None:
    settings = PhotoDegradations()
    drawn = [settings.draw(RNG((0, step))) for step in range(2000)]
    assert drawn == [settings.draw(RNG((0, step))) for step in range(2000)]
    degraded = [d for d in drawn if not d.clean]
    absent = (1 - settings.blur) * (1 - settings.gaussian) * (1 - settings.poisson) * (1 - settings.jpeg)
    nothing = absent * settings.kernels[0]  # share of patches that are not meant to be clean, but get no step
    assert 1 - len(degraded) / 2000 == pytest.approx(settings.clean + (1 - settings.clean) * nothing, abs=0.02)
    shares = {
        "blur": np.mean([max(d.sigma) > 0 for d in degraded]),
        "gaussian": np.mean([d.gaussian > 0 for d in degraded]),
        "poisson": np.mean([d.poisson > 0 for d in degraded]),
        "jpeg": np.mean([len(d.jpeg) > 0 for d in degraded]),
    }
    for name, share in shares.items():
        assert share == pytest.approx(getattr(settings, name) / (1 - nothing), abs=0.04), name
    assert {d.kernel for d in degraded} == set(KERNELS)
    assert {len(d.jpeg) for d in degraded} == {0, 1, 2}
    low, high = settings.blur_sigma
    assert all(low <= s <= high for d in degraded for s in d.sigma if s)
    assert all(settings.jpeg_quality[0] <= q <= settings.jpeg_quality[1] for d in degraded for q in d.jpeg)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("blur", 1.5),
        ("clean", True),
        ("blur_sigma", (3.0, 1.0)),
        ("jpeg_quality", (0, 50)),
        ("kernels", (0, 0, 0)),
        ("blurr", 1),
    ],
)
def test_settings_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        PhotoDegradations.from_dict({field: value})


def test_the_vector_tells_every_parameter_and_absence_apart() -> None:
    absent = Degradation().vector()
    assert absent.shape == (VECTOR_SIZE,)
    assert (absent[[0, 1, 2, 3, 7, 8, 9, 10, 11]] == 0).all()
    changes = (
        {"sigma": (2.0, 2.0)}, {"kernel": "area"}, {"gaussian": 5.0}, {"poisson": 0.5}, {"jpeg": (50,)}, {"jpeg": (50, 60)},
        {"gaussian": 5.0, "grey_noise": True}, {"sigma": (3.0, 1.0)}, {"sigma": (3.0, 1.0), "angle": 1.0},
    )  # fmt: skip
    vectors = [Degradation(**change).vector() for change in changes]
    assert len({vector.tobytes() for vector in [absent, *vectors]}) == len(changes) + 1
    assert all(np.isfinite(vector).all() and np.abs(vector).max() <= 1 for vector in vectors)
    quarter = Degradation(sigma=(3.0, 1.0), angle=math.pi / 2).vector()
    assert np.allclose(Degradation(sigma=(1.0, 3.0)).vector(), quarter, atol=1e-6), "the same blur in other words"


@pytest.mark.parametrize("name", TEST_DEGRADATIONS)
def test_fixed_degradations_are_the_same_every_time(name: str) -> None:
    one = degrade_for_test(SMOOTH, 4, name, "kodim01")
    assert one.shape == (32, 40, 3)
    assert np.array_equal(one, degrade_for_test(SMOOTH, 4, name, "kodim01"))
    assert not np.array_equal(one, bicubic_downscale(SMOOTH, 4))
    if TEST_DEGRADATIONS[name].gaussian:
        assert not np.array_equal(one, degrade_for_test(SMOOTH, 4, name, "kodim02")), "each picture has its own noise"
