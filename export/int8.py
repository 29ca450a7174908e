"""int8 in an export: pictures to calibrate and judge with, the quantized decoder, the report, the time it saves."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ..models.interface import LatentPriorNetwork
from ..models.rdsr.calibrate import sample_of
from ..models.rdsr.network import RDSR
from ..models.rdsr.quantized import QuantizedDecoder
from ..runtime import cpu
from ..runtime.bundle import Bundle
from ..runtime.engines import BACKENDS
from ..runtime.metrics import psnr_y
from ..runtime.pipeline import Pipeline, initial_noise
from ..runtime.proof import Proof
from .calibration import CalibrationPicture
from .cases import fake_quantized, sample_pictures
from .errors import ExportError
from .quantize import Original, Quantized, as_tensor, quantize, trained

__all__ = ["Int8Timing", "as_rdsr", "drop_by_dataset", "make_int8", "measure_time"]

Progress = Callable[[str], None]
_TIMED = (128, 128)
_ROUNDS = 5


def make_int8(
    network: RDSR,
    proof: Proof,
    calibration: Sequence[CalibrationPicture],
    *,
    post_training: bool,
    max_drop: float,
    progress: Progress,
) -> Quantized:
    """The quantized decoder of a network: the one that training left in its checkpoint, or a post-training one.

    Ranges come from the calibration pictures that are not held back, and from the small ones that the package carries, so
    that no folder of blank pictures decides alone. The proof's pictures judge.
    """
    noise = torch.from_numpy(initial_noise(proof.seed, network.latent_size))
    chosen = [(picture.lr, picture.hr) for picture in calibration if not picture.held_back]
    own = {case.name: case for case in proof.cases}
    for name, hr in sample_pictures(network.scale).items():
        chosen.append((own[f"picture-{name}"].lr, hr))
    originals = [Original(sample_of(network, lr, noise), as_tensor(hr)) for lr, hr in chosen]

    def judge(decoder: QuantizedDecoder) -> float:
        drops = []
        for case in proof.cases:
            if case.hr is not None and case.psnr_y is not None:
                picture = fake_quantized(cast(LatentPriorNetwork, network), decoder, case.lr, noise)
                drops.append(case.psnr_y - psnr_y(picture, case.hr, network.scale))
        return float(np.mean(drops))

    if network.quantized is not None and not post_training:
        progress("quantize: as trained")
        return trained(network.quantized, originals, judge)
    return quantize(network, originals, judge, max_drop=max_drop, progress=progress)


def drop_by_dataset(proof: Proof, calibration: Sequence[CalibrationPicture]) -> list[dict[str, Any]]:
    """PSNR-Y drop of the fake-quantized model on each set of pictures, mean and worst."""
    owner = {f"{picture.dataset}-{picture.name}": picture.dataset for picture in calibration}
    drops: dict[str, list[float]] = {}
    for case in proof.cases:
        if case.psnr_y is not None and case.psnr_y_int8 is not None:
            drops.setdefault(owner.get(case.name, "samples"), []).append(case.psnr_y - case.psnr_y_int8)
    return [
        {
            "dataset": name,
            "images": len(values),
            "psnr_drop_db": round(float(np.mean(values)), 4),
            "worst_psnr_drop_db": round(max(values), 4),
        }
        for name, values in drops.items()
    ]


@dataclasses.dataclass(frozen=True)
class Int8Timing:
    """Medians of whole calls in milliseconds, a uint8 array to a uint8 array."""

    engine: str
    size: tuple[int, int]
    threads: int
    fp32_ms: float
    int8_ms: float


def measure_time(folder: Path) -> tuple[Int8Timing, ...]:
    """Time float32 against int8 on every engine, interleaved, at 128×128 LR."""
    threads = cpu.available_threads()
    picture = np.random.default_rng(0).integers(0, 256, (*_TIMED, 3), dtype=np.uint8)
    rows = []
    for engine in BACKENDS:
        pipelines = [
            Pipeline(Bundle(folder), backend=engine, precision=precision, threads=threads, seed=0)
            for precision in ("fp32", "int8")
        ]
        times: list[list[float]] = [[], []]
        for index in range(_ROUNDS + 1):
            for pipeline, taken in zip(pipelines, times, strict=True):
                started = time.perf_counter()
                pipeline.picture(picture)
                if index:  # the first round warms up
                    taken.append((time.perf_counter() - started) * 1e3)
        fp32, int8 = (round(statistics.median(taken), 2) for taken in times)
        rows.append(Int8Timing(engine, _TIMED, threads, fp32, int8))
    return tuple(rows)


def as_rdsr(network: object, arch: str) -> RDSR:
    """The network, if it is one that int8 is made for; `ExportError` otherwise."""
    if not isinstance(network, RDSR):
        raise ExportError(f"{arch} networks have no int8 form yet; leave int8 out of --precision")
    return network
