"""The int8 part of an export: choose the pictures, quantize the decoder, report the PSNR drop and the time saved."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
from .any_network import quantize_any
from .calibration import CalibrationPicture
from .forms import fake_quantized
from .post_training import Original, Progress, Quantized, quantize, trained

__all__ = ["drop_by_dataset", "make_int8", "measure_time"]

_TIMED = (128, 128)
_ROUNDS = 5
_SECONDS = 10.0
"""No round begins after this time: heavy networks take seconds a call."""
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

    A network with an `int8_form` is quantized its own way, all others by `quantize_any`.

    Ranges come from the calibration pictures that are not held back, and from the package's own small pictures, so that
    a folder of blank pictures cannot decide by itself. The held-back pictures judge. Without any, the package's own judge:
    fifteen to thirty ranges can hardly be fitted to them.
    """
    network: Network = kind.network
    chosen = [_cropped(kind, picture) for picture in calibration if not picture.held_back]
    chosen += [(case.lr, case.hr) for case in proof.cases if case.dataset == OWN and case.hr is not None]
    samples = with_hard_edges([sample_of(lr, kind.condition) for lr, _ in chosen], kind.condition)

    def judge(form: Int8Form) -> float:
        drops = []
        for case in proof.judging:
            assert case.hr is not None
            assert case.psnr_y is not None
            drops.append(psnr_drop(case.psnr_y, psnr_y(fake_quantized(kind, form, case.lr), case.hr, network.scale)))
        return float(np.mean(drops))

    originals = [
        Original(sample, twin, torch.from_numpy(to_graph(hr)))
        for sample, twin, (_, hr) in zip(samples, samples[len(chosen) :], chosen, strict=False)
    ]
    if (quantizer := network.int8_form) is None:
        return quantize_any(network.fuse(), originals, judge, max_drop=max_drop, progress=progress)
    if quantizer.trained is not None and not post_training:
        progress("quantize: as trained")
        return trained(quantizer, quantizer.trained, originals, judge)
    return quantize(quantizer, originals, judge, max_drop=max_drop, progress=progress)


def _cropped(kind: GraphKind[Any], picture: CalibrationPicture) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """LR and HR of the part that the kind takes."""
    height, width = kind.crop(picture.lr)
    scale = kind.network.scale
    return picture.lr[:height, :width], picture.hr[: height * scale, : width * scale]


def drop_by_dataset(proof: Proof) -> list[dict[str, Any]]:
    """PSNR-Y drop in dB of the fake-quantized model on each set of pictures, mean and worst."""
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


def measure_time(folder: Path) -> list[dict[str, Any]]:
    """Time the staged bundle in float32 and int8 on each engine, interleaved, at 128×128 LR.

    A row is the median time of a whole call, from uint8 array to uint8 array, in milliseconds (`fp32_ms`, `int8_ms`).
    """
    threads = cpu.available_threads()
    picture = np.random.default_rng(0).integers(0, 256, (*_TIMED, 3), dtype=np.uint8)
    rows = []
    for engine in BACKENDS:  # one after the other: networks of hundreds of millions of weights take gigabytes in each
        calls = {}
        for precision in _COMPARED:
            pipeline = load_pipeline(Bundle(folder), backend=engine, precision=precision, threads=threads, seed=0)
            calls[precision] = partial(pipeline.picture, picture)
        medians = interleaved_medians(calls, rounds=_ROUNDS, budget=_SECONDS)
        times = {f"{precision}_ms": round(medians[precision], 2) for precision in _COMPARED}
        rows.append({"engine": engine, "size": _TIMED, "threads": threads} | times)
    return rows
