"""int8 in an export: pictures to calibrate and judge with, the quantized decoder, the report, the time it saves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...models.int8.samples import sample_of, with_hard_edges
from ...models.interface import Network
from ...runtime.bundle import Bundle
from ...runtime.bundle.proof import OWN, Proof
from ...runtime.engines import BACKENDS, Precision
from ...runtime.host import cpu
from ...runtime.metrics import psnr_drop, psnr_y
from ...runtime.pictures.arrays import to_graph
from ...runtime.pipelines import load_pipeline
from ...runtime.timing import interleaved_medians
from ..graphs import GraphKind
from ..graphs.graph_set import Int8Form
from .calibration import CalibrationPicture
from .forms import fake_quantized
from .post_training import Original, Quantized, quantize, quantize_any, trained

__all__ = ["Int8Timing", "drop_by_dataset", "make_int8", "measure_time"]

Progress = Callable[[str], None]
_TIMED = (128, 128)
_ROUNDS = 5
_SECONDS = 10.0
"""After which no further round is begun: heavy networks take seconds a call."""
_COMPARED: tuple[Precision, ...] = ("fp32", "int8")


def make_int8(
    kind: GraphKind[Any],
    proof: Proof,
    calibration: Sequence[CalibrationPicture],
    *,
    post_training: bool,
    max_drop: float,
    progress: Progress,
) -> Quantized:
    """The quantized decoder of a network: the one that training left in its checkpoint, or a post-training one.

    A network with an `int8_form` has remedies of its own; for others one way fits them all (`quantize_any`).

    Ranges come from the calibration pictures that are not held back, and from the small ones that the package carries, so
    that no folder of blank pictures decides alone. The pictures that were held back judge; without any, the package's own,
    on which fifteen to thirty ranges are hardly fitted.
    """
    network: Network = kind.network
    chosen = [(picture.lr, picture.hr) for picture in calibration if not picture.held_back]
    chosen += [(case.lr, case.hr) for case in proof.cases if case.dataset == OWN and case.hr is not None]
    samples = with_hard_edges([sample_of(lr, kind.condition) for lr, _ in chosen], kind.condition)

    def judge(form: Int8Form) -> float:
        drops = []
        for case in proof.judging:
            assert case.hr is not None
            assert case.psnr_y is not None
            picture = fake_quantized(kind, form, case.lr)
            drops.append(psnr_drop(case.psnr_y, psnr_y(picture, case.hr, network.scale)))
        return float(np.mean(drops))

    if (quantizer := network.int8_form) is None:
        return quantize_any(network, samples, judge, progress)
    originals = [
        Original(sample, twin, torch.from_numpy(to_graph(hr)))
        for sample, twin, (_, hr) in zip(samples, samples[len(chosen) :], chosen, strict=False)
    ]

    if quantizer.trained is not None and not post_training:
        progress("quantize: as trained")
        return trained(quantizer, quantizer.trained, originals, judge)
    return quantize(quantizer, originals, judge, max_drop=max_drop, progress=progress)


def drop_by_dataset(proof: Proof) -> list[dict[str, Any]]:
    """PSNR-Y drop of the fake-quantized model on each set of pictures, mean and worst."""
    drops: dict[str, list[float]] = {}
    for case in proof.cases:
        if case.psnr_y is not None and case.psnr_y_int8 is not None:
            drops.setdefault(case.dataset, []).append(psnr_drop(case.psnr_y, case.psnr_y_int8))
    judging = {case.dataset for case in proof.judging}
    return [
        {
            "dataset": name,
            "images": len(values),
            "judges": name in judging,
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
    calls = {}
    for engine in BACKENDS:
        for precision in _COMPARED:
            pipeline = load_pipeline(Bundle(folder), backend=engine, precision=precision, threads=threads, seed=0)
            calls[engine, precision] = partial(pipeline.picture, picture)
    medians = interleaved_medians(calls, rounds=_ROUNDS, budget=_SECONDS)
    return tuple(
        Int8Timing(engine, _TIMED, threads, *(round(medians[engine, precision], 2) for precision in _COMPARED))
        for engine in BACKENDS
    )
