"""`rdsr bench quality`: PSNR and SSIM of bundles, ONNX files and torch checkpoints on data sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ...runtime.engines import Backend
from ...runtime.errors import EngineError, RdsrError
from ...runtime.host import cpu
from ...runtime.metrics import psnr_drop, psnr_rgb, psnr_y, ssim_y
from ...runtime.pictures.arrays import from_graph, to_graph
from ...runtime.upscaler import Upscaler
from ..errors import BenchmarkError, CandidateError
from ..subjects.find import Subject
from ..subjects.onnx_model import OnnxModel
from ..subjects.photograph import photograph
from .datasets import BICUBIC, Dataset, find_dataset

__all__ = [
    "Candidate", "QualityRow", "bicubic", "bundle", "measure", "of_subject", "onnx_file", "quality", "torch_checkpoint",
]  # fmt: skip

Rgb = NDArray[np.uint8]
_PROBE = 48
"""LR pixels a side of the picture that shows a graph's value range and scale."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An upscaler of H×W×3 uint8 RGB pictures."""

    model: str
    """Name or path as the user gave it."""
    backend: str
    precision: str
    scale: int
    run: Callable[[Rgb], Rgb]
    weights: str = "trained"
    """"random" (its figures of quality mean nothing), "given" (unknown), "none" (it has no weights) or "trained"."""


@dataclasses.dataclass(frozen=True)
class QualityRow:
    """One model on one data set; dB and SSIM are means over the pictures."""

    dataset: str
    images: int
    scale: int
    model: str
    backend: str
    precision: str
    psnr_y: float
    ssim_y: float
    psnr_rgb: float
    weights: str
    """See `Candidate`."""
    degradation: str
    """How LR was made: "bicubic" for the data set's own LR, or one of `TEST_DEGRADATIONS`."""
    worst_psnr_y: float
    """The lowest PSNR-Y of a single picture."""
    psnr_drop_db: float | None = None
    """PSNR-Y of the same model in float32 minus this one's; None if it was not asked for."""
    worst_drop_db: float | None = None
    """The largest drop of a single picture."""


def bundle(name: str | None, *, backend: str, precision: str, threads: int | None) -> Candidate:
    """A bundle folder; None for the default bundle."""
    upscaler = Upscaler.load(name, backend=backend, precision=precision, threads=threads)
    effective, manifest = upscaler.effective, upscaler.bundle.manifest
    weights = manifest.weights
    return Candidate(name or "default", effective.backend, effective.precision, manifest.scale, upscaler, weights)


def onnx_file(path: Path, *, backend: str, threads: int | None) -> Candidate:
    """Any ONNX graph with one picture input: N×H×W×3 uint8, or N×3×H×W float32 in [0, 1] or [0, 255] (detected).

    Runs it in float32, or in the int8 of its own quantize nodes. Raises `BenchmarkError` for any other file.
    """
    engine: Backend = "openvino" if backend == "openvino" or path.suffix.lower() == ".xml" else "onnxruntime"
    model = OnnxModel(path, backend=engine, precision="fp32", threads=threads or cpu.available_threads())
    height, width = (side or _PROBE for side in model.input.fixed)
    lr = photograph(height, width)
    try:
        model.find_range(lr)
        scale = model(lr[None]).shape[1] // height
    except EngineError as error:
        raise BenchmarkError(f"{path} cannot be benchmarked: {error}") from error
    precision = "int8" if model.input.quantized else "fp32"
    return Candidate(str(path), engine, precision, scale, lambda picture: model(picture[None])[0], "given")


def of_subject(
    found: Subject, *, backend: str, precisions: Sequence[str], threads: int | None
) -> tuple[list[Candidate], list[str]]:
    """Candidates of a model that `find_subject` found, one per precision if it has several; and a sentence per failure."""
    candidates: dict[str, Candidate] = {}  # by precision: "auto" may be one of the others
    failures = []
    for precision in precisions:
        try:
            candidate = _of_subject(found, backend, precision, threads)
        except RdsrError as error:
            failures.append(f"{found.model} cannot be measured: {' '.join(str(error).split())}")
        else:
            candidates[candidate.precision] = dataclasses.replace(candidate, model=found.model)
    return list(candidates.values()), list(dict.fromkeys(failures))


def _of_subject(found: Subject, backend: str, precision: str, threads: int | None) -> Candidate:
    if found.failure is not None:
        raise BenchmarkError(found.failure)
    if found.kind == "bicubic":
        return bicubic(4)
    if found.kind == "onnx" and found.weights == "random":
        raise BenchmarkError("it stands for a published network with random weights, whose pictures are noise")
    if found.kind == "onnx":
        return onnx_file(Path(str(found.path)), backend=backend, threads=threads)
    return bundle(found.path, backend=backend, precision=precision, threads=threads)


def torch_checkpoint(name: str, *, threads: int | None) -> Candidate:
    """A checkpoint that torch itself runs: eager, float32, as trained (unfused), seed 0."""
    import torch

    from ...export.graphs import graph_kind
    from ...models.registry import load_model, resolve_checkpoint

    loaded = load_model(resolve_checkpoint(name))
    torch.set_num_threads(threads or cpu.available_threads())
    kind = graph_kind(loaded.network, 0)

    @torch.no_grad()
    def run(lr: Rgb) -> Rgb:
        return from_graph(kind.upscale(torch.from_numpy(to_graph(lr))).numpy(), lr)

    return Candidate(name, "torch-eager", "fp32", loaded.network.scale, run, loaded.weights)


def bicubic(scale: int) -> Candidate:
    """OpenCV's bicubic enlargement (a = −0.75), which every network has to beat."""

    def run(lr: Rgb) -> Rgb:
        return cv2.resize(lr, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)

    return Candidate("bicubic", "opencv", "uint8", scale, run, "none")


def measure(candidate: Candidate, dataset: Dataset, against: Candidate | None = None) -> QualityRow:
    """Run one candidate on one data set. With `against`, measure the drop from it, too.

    Raises `CandidateError` if the candidate fails, `BenchmarkError` if the data set is at fault.
    """
    border = dataset.scale
    values, drops = [], []
    for name, lr, hr in dataset:
        try:
            sr = candidate.run(lr)
        except RdsrError as error:
            raise CandidateError(f"{candidate.model} on {dataset.name}: {error}") from error
        try:
            values.append((psnr_y(sr, hr, border), ssim_y(sr, hr, border), psnr_rgb(sr, hr, border)))
            if against is not None:
                drops.append(psnr_drop(psnr_y(against.run(lr), hr, border), values[-1][0]))
        except ValueError as error:
            raise BenchmarkError(f"{name} of {dataset.name} cannot be measured: {error}") from error
    mean_psnr, mean_ssim, mean_rgb = np.mean(values, axis=0).tolist()
    return QualityRow(
        dataset=dataset.name,
        images=len(values),
        scale=dataset.scale,
        model=candidate.model,
        backend=candidate.backend,
        precision=candidate.precision,
        psnr_y=round(mean_psnr, 4),
        ssim_y=round(mean_ssim, 5),
        psnr_rgb=round(mean_rgb, 4),
        weights=candidate.weights,
        degradation=dataset.degradation or BICUBIC,
        worst_psnr_y=round(min(values)[0], 4),
        psnr_drop_db=round(float(np.mean(drops)), 4) if drops else None,
        worst_drop_db=round(max(drops), 4) if drops else None,
    )


def quality(
    candidates: Sequence[Candidate],
    datasets: Sequence[Path],
    progress: Callable[[str], None] = lambda what: None,
    against: Mapping[str, Candidate] | None = None,
    degradations: Sequence[str | None] = (None,),
    measured: Callable[[list[QualityRow]], None] = lambda rows: None,
) -> tuple[list[QualityRow], list[str]]:
    """Measure every candidate on every data set. Returns the rows, and a sentence for each candidate that fails on one.

    `against`: model → the candidate that its drops are measured from. `degradations`: see `find_dataset`.
    `measured` gets all rows so far after each.
    Raises `BenchmarkError` if a data set is at fault. Missing files are found before the first picture runs.
    """
    ways = [(root, degradation) for root in datasets for degradation in degradations]
    jobs = [(each, find_dataset(root, each.scale, degradation)) for root, degradation in ways for each in candidates]
    rows, failures = [], []
    for candidate, dataset in jobs:
        progress(f"{candidate.model} on {dataset.name}{f', {dataset.degradation}' if dataset.degradation else ''}")
        try:
            rows.append(measure(candidate, dataset, (against or {}).get(candidate.model)))
        except CandidateError as error:
            failures.append(str(error))
        else:
            measured(rows)
    return rows, failures
