"""`rdsr bench quality`: PSNR and SSIM of bundles, ONNX files and torch checkpoints on data sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ...runtime.engines import BACKENDS, Backend
from ...runtime.errors import EngineError, OptionError, RdsrError
from ...runtime.host import cpu
from ...runtime.metrics import psnr_drop, psnr_rgb, psnr_y, ssim_y
from ...runtime.pictures.arrays import from_graph, to_graph
from ...runtime.pictures.formats import read_picture
from ...runtime.upscaler import Upscaler
from ..errors import BenchmarkError, CandidateError
from ..subjects.find import Subject
from ..subjects.onnx_model import OnnxModel
from .datasets import Dataset, find_dataset

__all__ = [
    "Candidate",
    "QualityRow",
    "bicubic",
    "bundle",
    "measure",
    "of_subject",
    "onnx_file",
    "quality",
    "torch_checkpoint",
]

Rgb = NDArray[np.uint8]
_SAMPLE = Path(__file__).parents[2] / "export" / "samples" / "LRx4" / "portrait.png"
_PROBE = 48


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Something that upscales H×W×3 uint8 RGB pictures."""

    model: str
    """As it was named by the user."""
    backend: str
    precision: str
    scale: int
    run: Callable[[Rgb], Rgb]
    weights: str = "trained"
    """"random" where figures of quality mean nothing, "given" where nothing is known, "none" where there are none."""


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
    """How LR was made: "bicubic", which is the data set's own, or one of `TEST_DEGRADATIONS`."""
    worst_psnr_y: float
    """The lowest PSNR-Y of a single picture."""
    psnr_drop_db: float | None = None
    """PSNR-Y that the same model has in float32, minus this one's; None where that was not asked for."""
    worst_drop_db: float | None = None
    """The largest drop of a single picture."""


def bundle(name: str | None, *, backend: str, precision: str, threads: int | None, seed: int = 0) -> Candidate:
    """A bundle folder, or the default bundle for None."""
    upscaler = Upscaler.load(name, backend=backend, precision=precision, threads=threads, seed=seed)
    effective = upscaler.effective
    scale = upscaler.bundle.manifest.scale
    weights = upscaler.bundle.manifest.weights
    return Candidate(name or "default", effective.backend, effective.precision, scale, upscaler, weights)


def onnx_file(path: Path, *, backend: str, threads: int | None) -> Candidate:
    """Any ONNX graph with one picture input: N×H×W×3 uint8, or N×3×H×W float32 in [0, 1] or [0, 255], which is found out.

    Run in float32, or in the int8 of its own quantize nodes. Raises `BenchmarkError` for what is no such graph.
    """
    if backend not in ("auto", *BACKENDS):
        raise OptionError(f"backend must be auto, {' or '.join(BACKENDS)}, not {backend!r}")
    if not path.is_file():
        raise BenchmarkError(f"cannot read {path}: there is no such file")
    engine: Backend = "openvino" if backend == "openvino" or path.suffix.lower() == ".xml" else "onnxruntime"
    model = OnnxModel(path, backend=engine, precision="fp32", threads=threads or cpu.available_threads())
    height, width = (side or _PROBE for side in model.input.fixed)
    sample = read_picture(_SAMPLE).pixels
    fill = [(0, max(0, side - have)) for side, have in zip((height, width), sample.shape[:2], strict=True)]
    lr = np.ascontiguousarray(np.pad(sample, [*fill, (0, 0)], mode="wrap")[:height, :width])
    try:
        model.find_range(lr)
        scale = model(lr[None]).shape[1] // height
    except EngineError as error:
        raise BenchmarkError(f"{path} cannot be benchmarked: {error}") from error

    def run(picture: Rgb) -> Rgb:
        return model(picture[None])[0]

    return Candidate(str(path), engine, "int8" if model.input.quantized else "fp32", scale, run, "given")


def of_subject(
    found: Subject, *, backend: str, precisions: Sequence[str], threads: int | None
) -> tuple[list[Candidate], list[str]]:
    """What `rdsr bench latency --model` takes, in each precision where it has several; and a sentence for what fails."""
    candidates: dict[str, Candidate] = {}  # by precision: "auto" may be one of the others
    failures = []
    for precision in precisions:
        try:
            candidate = _of_subject(found, backend, precision, threads)
        except RdsrError as error:
            failures.append(f"{found.model} cannot be measured: {' '.join(str(error).split())}")
        else:
            candidates[candidate.precision] = candidate
    return list(candidates.values()), list(dict.fromkeys(failures))


def _of_subject(found: Subject, backend: str, precision: str, threads: int | None) -> Candidate:
    name = found.model
    if found.failure is not None:
        raise BenchmarkError(found.failure)
    if found.kind == "bicubic":
        return bicubic(4)
    if found.kind == "onnx":
        if found.weights == "random":
            raise BenchmarkError("it stands for a published network with random weights, whose pictures are noise")
        return dataclasses.replace(onnx_file(Path(str(found.path)), backend=backend, threads=threads), model=name)
    return dataclasses.replace(bundle(found.path, backend=backend, precision=precision, threads=threads), model=name)


def torch_checkpoint(name: str, *, threads: int | None, seed: int = 0) -> Candidate:
    """A checkpoint run by torch itself, eager, float32, as trained (unfused)."""
    import torch

    from ...export.graphs import graph_kind
    from ...models.registry import load_model, resolve_checkpoint

    loaded = load_model(resolve_checkpoint(name))
    torch.set_num_threads(threads or cpu.available_threads())
    kind = graph_kind(loaded.network, seed)

    def run(lr: Rgb) -> Rgb:
        with torch.no_grad():
            return from_graph(kind.upscale(torch.from_numpy(to_graph(lr))).numpy(), lr)

    return Candidate(name, "torch-eager", "fp32", loaded.network.scale, run, loaded.weights)


def bicubic(scale: int) -> Candidate:
    """OpenCV's bicubic enlargement (a = −0.75), the floor that every network has to beat."""

    def run(lr: Rgb) -> Rgb:
        return cv2.resize(lr, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)

    return Candidate("bicubic", "opencv", "uint8", scale, run, "none")


def measure(candidate: Candidate, dataset: Dataset, against: Candidate | None = None) -> QualityRow:
    """Run one candidate over one data set; `against` is what its drop is counted from.

    Raises `CandidateError` where the candidate fails, `BenchmarkError` where the data set is at fault.
    """
    values = []
    drops = []
    for name, lr, hr in dataset:
        try:
            sr = candidate.run(lr)
        except RdsrError as error:
            raise CandidateError(f"{candidate.model} on {dataset.name}: {error}") from error
        border = dataset.scale
        try:
            if against is not None:
                drops.append(psnr_drop(psnr_y(against.run(lr), hr, border), psnr_y(sr, hr, border)))
            values.append((psnr_y(sr, hr, border), ssim_y(sr, hr, border), psnr_rgb(sr, hr, border)))
        except ValueError as error:
            raise BenchmarkError(f"{name} of {dataset.name} cannot be measured: {error}") from error
    means = np.mean(values, axis=0)
    return QualityRow(
        dataset=dataset.name,
        images=len(values),
        scale=dataset.scale,
        model=candidate.model,
        backend=candidate.backend,
        precision=candidate.precision,
        psnr_y=round(float(means[0]), 4),
        ssim_y=round(float(means[1]), 5),
        psnr_rgb=round(float(means[2]), 4),
        weights=candidate.weights,
        degradation=dataset.degradation or "bicubic",
        worst_psnr_y=round(min(v[0] for v in values), 4),
        psnr_drop_db=round(float(np.mean(drops)), 4) if drops else None,
        worst_drop_db=round(max(drops), 4) if drops else None,
    )


def quality(
    candidates: Sequence[Candidate],
    datasets: Sequence[Path],
    progress: Callable[[str], None] = lambda what: None,
    against: Mapping[str, Candidate] | None = None,
    degradations: Sequence[str | None] = (None,),
) -> tuple[list[QualityRow], list[str]]:
    """Every candidate on every data set, and a sentence for each candidate that fails on one.

    Raises `BenchmarkError` where a data set is at fault; they are found before the first picture runs. `against`: model →
    what its drops are counted from. `degradations`: see `find_dataset`.
    """
    jobs = [
        (candidate, find_dataset(root, candidate.scale, degradation))
        for root in datasets
        for degradation in degradations
        for candidate in candidates
    ]
    rows, failures = [], []
    for candidate, dataset in jobs:
        progress(f"{candidate.model} on {dataset.name}{f', {dataset.degradation}' if dataset.degradation else ''}")
        try:
            rows.append(measure(candidate, dataset, (against or {}).get(candidate.model)))
        except CandidateError as error:
            failures.append(str(error))
    return rows, failures
