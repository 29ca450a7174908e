"""`rdsr bench quality`: PSNR and SSIM of bundles, ONNX files and torch checkpoints on data sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..runtime import cpu
from ..runtime.arrays import from_graph, to_graph
from ..runtime.engines import BACKENDS, Backend, load_session
from ..runtime.errors import OptionError
from ..runtime.metrics import psnr_drop, psnr_rgb, psnr_y, ssim_y
from ..runtime.upscaler import Upscaler
from .datasets import Dataset, find_dataset
from .errors import BenchmarkError

__all__ = ["Candidate", "QualityRow", "bicubic", "bundle", "measure", "onnx_file", "quality", "torch_checkpoint"]

Rgb = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Something that upscales H×W×3 uint8 RGB pictures."""

    model: str
    """As it was named by the user."""
    backend: str
    precision: str
    scale: int
    run: Callable[[Rgb], Rgb]


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
    return Candidate(name or "default", effective.backend, effective.precision, scale, upscaler)


def onnx_file(path: Path, *, backend: str, threads: int | None) -> Candidate:
    """Any ONNX graph with one picture input: N×H×W×3 uint8, or N×3×H×W float32 in [0, 1]; run in float32."""
    if backend not in ("auto", *BACKENDS):
        raise OptionError(f"backend must be auto, {' or '.join(BACKENDS)}, not {backend!r}")
    if not path.is_file():
        raise BenchmarkError(f"cannot read {path}: there is no such file")
    engine: Backend = "openvino" if backend == "openvino" else "onnxruntime"
    try:
        # By path, not from memory: a user's own graph may have its weights in a file beside it.
        session = load_session(path, backend=engine, precision="fp32", threads=threads or cpu.available_threads())
        name, layout = _picture_input(path)

        def run(lr: Rgb) -> Rgb:
            if layout == "nhwc":
                return np.asarray(session.run({name: lr[None]})[0][0])
            return np.asarray(from_graph(session.run({name: to_graph(lr)})[0], lr))

        probe = run(np.zeros((16, 24, 3), dtype=np.uint8))
    except BenchmarkError:
        raise
    except Exception as error:  # engines raise many kinds for a file that is no graph, or not of the size they need
        raise BenchmarkError(f"{path} cannot be benchmarked: {error}") from error
    scale = probe.shape[0] // 16
    if probe.shape != (16 * scale, 24 * scale, 3) or scale < 1:
        raise BenchmarkError(f"{path} turns a 16×24 picture into one of shape {probe.shape}, which is no upscaling")
    return Candidate(str(path), engine, "fp32", scale, run)


def _picture_input(path: Path) -> tuple[str, str]:
    """Name and layout of the graph's one input."""
    import onnxruntime as ort

    inputs = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()
    if len(inputs) == 1 and len(inputs[0].shape) == 4:
        shape, kind = inputs[0].shape, inputs[0].type
        if kind == "tensor(uint8)" and shape[3] == 3:
            return inputs[0].name, "nhwc"
        if kind == "tensor(float)" and shape[1] == 3:
            return inputs[0].name, "nchw"
    found = "; ".join(f"{i.name}: {i.type} {i.shape}" for i in inputs)
    raise BenchmarkError(f"{path} needs one input of N×H×W×3 uint8 or N×3×H×W float32, has {found}")


def torch_checkpoint(name: str, *, threads: int | None, seed: int = 0) -> Candidate:
    """A checkpoint run by torch itself, eager, float32, as trained (unfused)."""
    import torch

    from ..models.registry import load_model, resolve_checkpoint
    from ..runtime.pipeline import initial_noise

    loaded = load_model(resolve_checkpoint(name))
    torch.set_num_threads(threads or cpu.available_threads())
    network: Any = loaded.network
    noise = torch.from_numpy(initial_noise(seed, network.latent_size))

    def run(lr: Rgb) -> Rgb:
        with torch.no_grad():
            return from_graph(network(torch.from_numpy(to_graph(lr)), noise).numpy(), lr)

    return Candidate(name, "torch-eager", "fp32", network.scale, run)


def bicubic(scale: int) -> Candidate:
    """OpenCV's bicubic enlargement (a = −0.75), the floor that every network has to beat."""

    def run(lr: Rgb) -> Rgb:
        return cv2.resize(lr, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)

    return Candidate("bicubic", "opencv", "uint8", scale, run)


def measure(candidate: Candidate, dataset: Dataset, against: Candidate | None = None) -> QualityRow:
    """Run one candidate over one data set; `against` is what its drop is counted from."""
    values = []
    drops = []
    for name, lr, hr in dataset:
        sr = candidate.run(lr)
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
        worst_psnr_y=round(min(v[0] for v in values), 4),
        psnr_drop_db=round(float(np.mean(drops)), 4) if drops else None,
        worst_drop_db=round(max(drops), 4) if drops else None,
    )


def quality(
    candidates: Sequence[Candidate],
    datasets: Sequence[Path],
    progress: Callable[[str], None] = lambda what: None,
    against: Mapping[str, Candidate] | None = None,
) -> list[QualityRow]:
    """Every candidate on every data set, data sets found before the first picture runs. Raises `BenchmarkError`.

    `against`: model → what its drops are counted from.
    """
    jobs = [(candidate, find_dataset(root, candidate.scale)) for root in datasets for candidate in candidates]
    rows = []
    for candidate, dataset in jobs:
        progress(f"{candidate.model} on {dataset.name}")
        rows.append(measure(candidate, dataset, (against or {}).get(candidate.model)))
    return rows
