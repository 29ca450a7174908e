"""What the reverse process of residual shifts is made of: its steps, its noise, and the mirrored edge of the picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["INPUT", "Shift", "noise_field", "padded", "reflected"]

Float = NDArray[np.float32]
INPUT = "input"
"""Name of the noise that the network itself takes; that of the process has the number of its call, or "start"."""


@dataclasses.dataclass(frozen=True)
class Shift:
    """One call of the network: z ← `of_estimate`·ẑ0 + `of_latent`·z + `noise`·ε."""

    time: float
    input_scale: float
    of_estimate: float
    of_latent: float
    noise: float

    def __call__(self, z: Float, estimate: Float, field: Callable[[], Float]) -> Float:
        """z after the call. `field` gives ε, and is not called where none is needed."""
        after = np.float32(self.of_estimate) * estimate
        if self.of_latent:
            after += np.float32(self.of_latent) * z
        if self.noise:
            after += np.float32(self.noise) * field()
        return after


def noise_field(seed: int, name: str | int, channels: int, height: int, width: int) -> Float:
    """1×C×H×W standard normal noise for a whole picture, the same on every machine.

    The stream of `RandomState` is frozen (NEP 19). `name`: "start", "input", or the number of a call from 0; each has a
    stream of its own.
    """
    number = {"start": 0, INPUT: 1}.get(name) if isinstance(name, str) else 2 + name
    assert number is not None
    stream = np.random.RandomState([seed, number])
    field = np.empty((1, channels, height, width), np.float32)
    for row in range(height):  # row by row: the stream gives float64
        field[0, :, row] = stream.standard_normal((width, channels)).T
    return field


def reflected(start: int, stop: int, length: int) -> NDArray[np.int64]:
    """Positions 0 … length − 1 that stand for `start` … `stop` − 1: mirrored at the last one, and again at the first one.

    The released samplers mirror once, which is not defined where more than length − 1 positions are missing.
    """
    period = max(1, 2 * (length - 1))
    positions = np.arange(start, stop) % period
    return np.minimum(positions, period - positions) if length > 1 else np.zeros(stop - start, np.int64)


def padded(height: int, width: int, unit: int) -> tuple[int, int]:
    """Sides rounded up to multiples of `unit`."""
    return -(-height // unit) * unit, -(-width // unit) * unit
