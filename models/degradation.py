"""Degradations of photos from HR to LR: blur, resampling, noise and JPEG, drawn at random or fixed for tests."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

from .base_config import BaseConfig, is_number
from .downscaling import KERNELS, Kernel, downscale, to_8_bits

__all__ = ["JPEG_BLOCK", "TEST_DEGRADATIONS", "VECTOR_SIZE", "Degradation", "PhotoDegradations", "degrade_for_test"]

Rgb = NDArray[np.uint8]
_MIDDLE_GREY = 128
_LARGEST_SIGMA = 8.0
"""Largest sigma of a blur in HR pixels, and the largest that `Degradation.vector` distinguishes."""
VECTOR_SIZE = 12
"""Length of `Degradation.vector`."""
JPEG_BLOCK = 16
"""Side in pixels of a block that JPEG compresses as one: 8 in brightness, 16 in colour at 4:2:0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Degradation:
    """One degradation from HR to LR. The steps run in the order of the fields; a field at its default means no such step."""

    sigma: tuple[float, float] = (0.0, 0.0)
    """Gaussian blur: standard deviations along and across `angle`, in HR pixels."""
    angle: float = 0.0
    """Direction of the first sigma, in radians, counted from the rows' direction downwards."""
    kernel: Kernel = "bicubic"
    """Antialiased resampling kernel."""
    gaussian: float = 0.0
    """Standard deviation of Gaussian noise, in grey levels."""
    poisson: float = 0.0
    """Variance of Poisson noise per grey level of brightness, in grey levels."""
    grey_noise: bool = False
    """Whether the noise is the same in all three channels."""
    jpeg: tuple[int, ...] = ()
    """JPEG qualities (1 … 100) of one or two compressions, 4:2:0."""

    @property
    def clean(self) -> bool:
        """Whether this is the plain bicubic degradation."""
        return dataclasses.replace(self, grey_noise=False) == Degradation()

    def margin(self, scale: int) -> int:
        """LR pixels around a patch that its pixels depend on. Of several JPEGs, only the blocks of one count."""
        return math.ceil(3 * max(self.sigma) / scale) + 2 + (JPEG_BLOCK if self.jpeg else 0)

    def apply(self, hr: Rgb, scale: int, rng: np.random.Generator) -> Rgb:
        """H×W×3 uint8 → (H/scale)×(W/scale)×3 uint8. `ValueError` if a side is no multiple of `scale`."""
        picture = downscale(self._blurred(hr.astype(np.float32)), scale, self.kernel)
        lr = to_8_bits(self._noisy(picture, rng))
        for quality in self.jpeg:
            lr = _through_jpeg(lr, quality)
        return lr

    def _blurred(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        along, across = self.sigma
        if max(along, across) == 0:
            return picture
        radius = math.ceil(3 * max(along, across))
        size = 2 * radius + 1
        if along == across:
            return np.asarray(cv2.GaussianBlur(picture, (size, size), along, borderType=cv2.BORDER_REFLECT), np.float32)
        kernel = _gaussian_kernel(radius, along, across, self.angle)
        return np.asarray(cv2.filter2D(picture, -1, kernel, borderType=cv2.BORDER_REFLECT), np.float32)

    def _noisy(self, picture: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        shape = (*picture.shape[:2], 1 if self.grey_noise else picture.shape[2])
        if self.poisson:
            light = picture.mean(axis=2, keepdims=True) if self.grey_noise else picture
            light = np.maximum(light, 0.0) / np.float32(self.poisson)
            picture = picture + ((rng.poisson(light) - light) * self.poisson).astype(np.float32)
        if self.gaussian:
            picture = picture + rng.standard_normal(shape, dtype=np.float32) * np.float32(self.gaussian)
        return picture

    def vector(self) -> NDArray[np.float32]:
        """The parameters as `VECTOR_SIZE` numbers, for the latent prior encoder.

        An absent step has the values of strength zero, which no present step has. A network that guesses a blur under noise
        then makes only small errors. (With −1 for absent steps, guesses fell between −1 and the true value.)

        | index | number | range | absent |
        |---|---|---|---|
        | 0, 1 | logarithm of the blur's larger and smaller sigma, 0.2 … 8 HR pixels | 0 … 1 | 0 |
        | 2, 3 | cosine and sine of twice the angle, times 1 − smaller/larger sigma | −1 … 1 | 0 |
        | 4, 5, 6 | resampling kernel: bicubic, bilinear, area; next to nothing depends on it | 0 or 0.25 | |
        | 7 | standard deviation of all noise at middle grey; 25 grey levels are 1 | at least 0 | 0 |
        | 8 | share of Poisson noise in that variance | 0 … 1 | 0 |
        | 9 | 1 if the noise is grey | 0 or 1 | 0 |
        | 10, 11 | 1 − quality/100 of the stronger and of the weaker JPEG | 0 … 1 | 0 |
        """
        values = np.zeros(VECTOR_SIZE, np.float32)
        large, small = max(self.sigma), min(self.sigma)
        if large > 0:
            values[0:2] = [_log_share(large), _log_share(small)]
            direction = self.angle if self.sigma[0] >= self.sigma[1] else self.angle + math.pi / 2
            values[2:4] = np.array([math.cos(2 * direction), math.sin(2 * direction)]) * (1 - small / large)
        values[4:7] = [0.25 * (self.kernel == kernel) for kernel in KERNELS]
        variance = self.gaussian**2 + self.poisson * _MIDDLE_GREY
        if variance > 0:
            values[7:10] = [math.sqrt(variance) / 25, self.poisson * _MIDDLE_GREY / variance, float(self.grey_noise)]
        strengths = sorted((1 - quality / 100 for quality in self.jpeg[:2]), reverse=True)
        values[10 : 10 + len(strengths)] = strengths
        return values


def _log_share(sigma: float) -> float:
    return math.log(max(sigma, 0.2) / 0.2) / math.log(_LARGEST_SIGMA / 0.2)


def _gaussian_kernel(radius: int, along: float, across: float, angle: float) -> NDArray[np.float32]:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    # A Gaussian with a sigma below a third of a pixel cannot be sampled on the grid: the kernel becomes a line.
    kernel = np.exp(-0.5 * ((u / max(along, 0.3)) ** 2 + (v / max(across, 0.3)) ** 2))
    return np.asarray(kernel / kernel.sum(), np.float32)


def _through_jpeg(picture: Rgb, quality: int) -> Rgb:
    done, data = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR) if done else None
    assert decoded is not None, "a picture in memory can be compressed"
    return np.ascontiguousarray(decoded[:, :, ::-1], np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotoDegradations(BaseConfig):
    """Distribution of the degradations of training patches: the `[photo]` table of a config.

    All probabilities except `clean` are those of a patch that is not clean. Steps are independent. `ValueError` names the
    field that is out of range.
    """

    clean: float = 0.1
    """Probability that a patch is only downscaled, with the bicubic kernel."""
    kernels: tuple[float, float, float] = (0.6, 0.2, 0.2)
    """Shares of the resampling kernels bicubic, bilinear and area."""
    blur: float = 0.6
    """Probability of a blur."""
    blur_sigma: tuple[float, float] = (0.4, 4.0)
    """Range of its sigma in HR pixels; uniform."""
    anisotropic: float = 0.5
    """Probability that a blur has a second sigma, drawn from the same range, and a direction."""
    gaussian: float = 0.4
    """Probability of Gaussian noise."""
    gaussian_sigma: tuple[float, float] = (1.0, 25.0)
    """Range of its standard deviation in grey levels; uniform."""
    poisson: float = 0.2
    """Probability of Poisson noise."""
    poisson_scale: tuple[float, float] = (0.05, 2.0)
    """Range of its variance per grey level of brightness; the square root is uniform."""
    grey_noise: float = 0.4
    """Probability that noise is the same in all channels."""
    jpeg: float = 0.6
    """Probability of a JPEG compression."""
    jpeg_quality: tuple[float, float] = (30, 95)
    """Range of its quality; uniform."""
    jpeg_twice: float = 0.25
    """Probability that a second compression follows the first."""

    def __post_init__(self) -> None:
        for name in ("clean", "blur", "anisotropic", "gaussian", "poisson", "grey_noise", "jpeg", "jpeg_twice"):
            if not is_number(getattr(self, name)) or not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a number from 0 to 1, not {getattr(self, name)!r}")
        for name, low, high in (
            ("blur_sigma", 0.1, _LARGEST_SIGMA),
            ("gaussian_sigma", 0.0, 255.0),
            ("poisson_scale", 0.0, 100.0),
            ("jpeg_quality", 1, 100),
        ):
            ends = self._numbers(name, 2)
            if not ends or not low <= ends[0] <= ends[1] <= high:
                raise ValueError(f"{name} must be two rising numbers from {low} to {high}, not {getattr(self, name)!r}")
        shares = self._numbers("kernels", len(KERNELS))
        if not shares or min(shares) < 0 or sum(shares) <= 0:
            raise ValueError(f"kernels must be {len(KERNELS)} shares, for {', '.join(KERNELS)}, not {self.kernels!r}")

    def _numbers(self, name: str, count: int) -> tuple[float, ...]:
        """The field's `count` numbers, now as a tuple; empty if it holds something else."""
        values = getattr(self, name)
        if not isinstance(values, (tuple, list)) or len(values) != count or not all(is_number(v) for v in values):
            return ()
        object.__setattr__(self, name, tuple(values))
        return tuple(values)

    def draw(self, rng: np.random.Generator) -> Degradation:
        """A random degradation. It depends only on the state of the generator."""
        # All numbers are drawn in any case, so that the probability of a step does not change the other steps.
        chance = rng.random(9)
        amount = rng.random(6)
        kernel = KERNELS[int(np.searchsorted(np.cumsum(self.kernels) / sum(self.kernels), rng.random(), side="right"))]
        if chance[0] < self.clean:
            return Degradation()
        sigma, angle = (0.0, 0.0), 0.0
        if chance[1] < self.blur:
            first = _between(self.blur_sigma, amount[0])
            anisotropic = chance[2] < self.anisotropic
            sigma = (first, _between(self.blur_sigma, amount[1]) if anisotropic else first)
            angle = math.pi * chance[3] if anisotropic else 0.0
        gaussian = _between(self.gaussian_sigma, amount[2]) if chance[4] < self.gaussian else 0.0
        low, high = self.poisson_scale
        poisson = _between((low**0.5, high**0.5), amount[3]) ** 2 if chance[5] < self.poisson else 0.0
        jpeg: tuple[int, ...] = ()
        if chance[6] < self.jpeg:
            qualities = tuple(round(_between(self.jpeg_quality, share)) for share in amount[4:6])
            jpeg = qualities if chance[8] < self.jpeg_twice else qualities[:1]
        grey = bool(chance[7] < self.grey_noise)
        return Degradation(
            sigma=sigma, angle=angle, kernel=kernel, gaussian=gaussian, poisson=poisson, grey_noise=grey, jpeg=jpeg
        )


def _between(ends: tuple[float, float], share: float) -> float:
    return float(ends[0] + (ends[1] - ends[0]) * share)


TEST_DEGRADATIONS: Mapping[str, Degradation] = MappingProxyType(
    {
        "noise": Degradation(gaussian=12.0),
        "blur": Degradation(sigma=(3.2, 1.8), angle=math.pi / 6),
        "jpeg": Degradation(jpeg=(50,)),
        "mixed": Degradation(sigma=(1.8, 1.8), kernel="bilinear", gaussian=5.0, poisson=0.2, jpeg=(70,)),
    }
)
"""The four fixed degradations with which networks for photos are measured."""


def degrade_for_test(hr: Rgb, scale: int, degradation: str, picture: str) -> Rgb:
    """LR of a whole test picture (H×W×3 uint8) under one of `TEST_DEGRADATIONS`; every call gives the same.

    `picture` is the picture's name, which seeds its noise. `ValueError` if a side of `hr` is no multiple of `scale`.
    """
    rng = np.random.default_rng((zlib.crc32(degradation.encode()), zlib.crc32(picture.encode())))
    return TEST_DEGRADATIONS[degradation].apply(hr, scale, rng)
