"""`rdsr bench prior`: what the latent prior and the seed do to the picture, measured on a trained checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.metrics import psnr_y
from ...runtime.pictures.arrays import from_graph, to_graph
from ...runtime.pipelines.latent_prior import initial_noise
from ..errors import BenchmarkError
from .datasets import find_dataset

__all__ = ["PriorRow", "measure_prior"]

Rgb = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class PriorRow:
    """One way to come by the latent prior, over a data set; differences are against whole pictures with seed 0."""

    prior: str
    """Where z comes from."""
    psnr_y: float
    """Mean over the pictures, dB."""
    change_db: float
    """Mean change of PSNR-Y."""
    largest_change_db: float
    """Change of PSNR-Y of the picture that changes most, signed."""
    largest_difference: int
    """Grey levels, of any pixel and channel."""
    changed_pixels: float
    """Share of pixels and channels that differ at all."""


def measure_prior(
    checkpoint: str,
    root: Path,
    *,
    windows: Sequence[int] = (24, 48, 96),
    seeds: int = 10,
    degradations: Sequence[str] = (),
    threads: int,
    progress: Callable[[str], None] = lambda what: None,
) -> list[PriorRow]:
    """Rows for whole pictures, local windows of some LR sides, LPE (which sees HR), foreign priors, seeds, and z_T = 0.

    `degradations`: each picture comes once under each of these, instead of its own LR. Windows at the right and bottom edge
    are smaller where the side does not divide the picture. Runs the torch network in float32.

    Raises `CheckpointError`, `UnsupportedModelError` and `BenchmarkError`.
    """
    if any(side < 1 for side in windows):
        raise BenchmarkError(f"a window needs at least 1 LR pixel a side, not {min(windows)}")
    if seeds < 1:
        raise BenchmarkError(f"at least 1 seed is needed, not {seeds}")
    import torch

    from ...models.interface import LatentPriorNetwork
    from ...models.photo_degradation import TEST_DEGRADATIONS, Degradation
    from ...models.registry import load_model, resolve_checkpoint

    torch.set_num_threads(threads)
    loaded: Any = load_model(resolve_checkpoint(checkpoint)).network
    if not issubclass(type(loaded), LatentPriorNetwork):
        raise BenchmarkError(f"{checkpoint} has no latent prior to measure")
    network: Any = loaded.fuse()
    ways = degradations or (None,)
    datasets = [find_dataset(root, loaded.scale, degradation) for degradation in ways]
    dataset = datasets[0]
    pictures = [picture for same in zip(*datasets, strict=True) for picture in same]
    vectors = [(TEST_DEGRADATIONS[way] if way else Degradation()).vector() for way in ways]
    told = [torch.from_numpy(vector)[None] for _ in range(len(pictures) // len(ways)) for vector in vectors]
    noises = {f"seed {seed}": torch.from_numpy(initial_noise(seed, network.latent_size)) for seed in range(seeds)}
    noises["zero as initial latent"] = torch.zeros(1, network.latent_size)

    def prior(lr: Any, noise: str = "seed 0") -> Any:
        return network.latent_prior(lr, noises[noise])

    with torch.no_grad():
        tensors = [torch.from_numpy(to_graph(lr)) for _, lr, _ in pictures]
        own = [prior(lr) for lr in tensors]
        mean = torch.stack(own).mean(dim=0)
        whole = [_picture(network, lr, z) for lr, z in zip(tensors, own, strict=True)]
        rows = []

        def add(name: str, results: Iterable[Rgb]) -> None:
            progress(name)
            try:
                rows.append(_compare(name, list(results), whole, [hr for _, _, hr in pictures], dataset.scale))
            except ValueError as error:  # a picture of no more than the cropped border
                raise BenchmarkError(f"a picture of {dataset.name} cannot be measured: {error}") from error

        add("whole picture, seed 0", whole)
        for side in windows:
            add(f"windows of {side}×{side} LR pixels", (_by_windows(network, lr, prior, side) for lr in tensors))
        if loaded.lpe is not None:
            originals = [torch.from_numpy(to_graph(hr)) for _, _, hr in pictures]
            triples = zip(tensors, originals, told, strict=True)
            seen = (_picture(network, lr, loaded.lpe(lr, hr, degradation)) for lr, hr, degradation in triples)
            add("LPE, which sees the original", seen)
        if len(pictures) > 1:
            # With several degradations the pictures come one after the other, each under all of them.
            for shift, name in _foreign(len(ways)).items():
                shifted = own[shift:] + own[:shift]
                add(name, (_picture(network, lr, z) for lr, z in zip(tensors, shifted, strict=True)))
        add("mean over the data set", (_picture(network, lr, mean) for lr in tensors))
        for name in list(noises)[1:]:
            add(name, (_picture(network, lr, prior(lr, name)) for lr in tensors))
    return rows


def _foreign(degradations: int) -> dict[int, str]:
    """By how many pictures the priors are shifted → what that is called."""
    if degradations == 1:
        return {1: "another picture's"}
    return {
        degradations + 1: "another picture's, of another degradation",
        degradations: "another picture's, of the same degradation",
    }


def _picture(network: Any, lr: Any, z: Any) -> Rgb:
    """8-bit RGB of one decoded picture."""
    return np.asarray(from_graph(network.decode(lr, z).numpy(), np.empty((1, 1, 3), dtype=np.uint8)))


def _by_windows(network: Any, lr: Any, prior: Callable[[Any], Any], side: int) -> Rgb:
    """Every window decoded with the prior of its own pixels; the halo makes the rest as in the whole picture."""
    height, width = lr.shape[-2:]
    halo, scale = network.receptive_radius, network.scale
    result = np.empty((height * scale, width * scale, 3), dtype=np.uint8)
    for top in range(0, height, side):
        for left in range(0, width, side):
            bottom, right = min(top + side, height), min(left + side, width)
            y, x = max(0, top - halo), max(0, left - halo)
            tile = _picture(network, lr[..., y : bottom + halo, x : right + halo], prior(lr[..., top:bottom, left:right]))
            inner = tile[(top - y) * scale : (bottom - y) * scale, (left - x) * scale : (right - x) * scale]
            result[top * scale : bottom * scale, left * scale : right * scale] = inner
    return result


def _compare(name: str, results: list[Rgb], whole: list[Rgb], originals: list[Rgb], scale: int) -> PriorRow:
    pairs = list(zip(results, whole, originals, strict=True))
    values = np.array([psnr_y(result, hr, scale) for result, _, hr in pairs])
    changes = values - np.array([psnr_y(base, hr, scale) for _, base, hr in pairs])
    differences = [np.abs(result.astype(np.int16) - base) for result, base, _ in pairs]
    return PriorRow(
        prior=name,
        psnr_y=round(float(values.mean()), 4),
        change_db=round(float(changes.mean()), 4),
        largest_change_db=round(float(changes[np.abs(changes).argmax()]), 4),
        largest_difference=max(int(d.max()) for d in differences),
        changed_pixels=round(float(np.mean([np.count_nonzero(d) / d.size for d in differences])), 5),
    )
