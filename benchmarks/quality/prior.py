"""`rdsr bench prior`: how the latent prior and the seed change the picture, measured on a trained checkpoint."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.metrics import psnr_y
from ...runtime.pictures.arrays import from_graph, to_graph
from ...runtime.pipelines.latent_prior import initial_noise
from ...runtime.tiling.tiles import Tile, cells
from ..errors import BenchmarkError
from .datasets import BICUBIC, find_dataset

__all__ = ["PriorRow", "measure_prior"]

Rgb = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class PriorRow:
    """A data set decoded with one source of the latent prior, compared with priors of whole pictures and seed 0."""

    prior: str
    """Source of the latent prior."""
    psnr_y: float
    """Mean over the pictures, dB."""
    change_db: float
    """Mean change of PSNR-Y."""
    largest_change_db: float
    """Signed change of PSNR-Y of the picture that changes most."""
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
    """Measure priors of whole pictures, of windows of some LR sides, of LPE (which sees HR), of other pictures and seeds.

    `windows` and `seeds` are at least 1. `degradations`: use each picture once under each of these, instead of its own LR.
    Windows at the right and bottom edge may be smaller. Runs the torch network in float32.

    Raises `CheckpointError`, `UnsupportedModelError` and `BenchmarkError`.
    """
    import torch

    from ...models.degradation import TEST_DEGRADATIONS, Degradation
    from ...models.interface import LatentPriorNetwork
    from ...models.registry import load_model, resolve_checkpoint

    torch.set_num_threads(threads)
    loaded: Any = load_model(resolve_checkpoint(checkpoint)).network
    if not issubclass(type(loaded), LatentPriorNetwork):
        raise BenchmarkError(f"{checkpoint} has no latent prior to measure")
    network: Any = loaded.fuse()
    ways = degradations or (None,)
    datasets = [find_dataset(root, loaded.scale, way) for way in ways]
    # Each picture comes under all degradations before the next picture.
    pictures = list(itertools.chain.from_iterable(zip(*datasets, strict=True)))
    originals = [hr for _, _, hr in pictures]
    noises = {f"seed {seed}": torch.from_numpy(initial_noise(seed, network.latent_size)) for seed in range(seeds)}
    noises["zero as initial latent"] = torch.zeros(1, network.latent_size)

    def prior(lr: Any, noise: str = "seed 0") -> Any:
        return network.latent_prior(lr, noises[noise])

    def decoded(priors: Iterable[Any]) -> Iterable[Rgb]:
        return (_decode(network, lr, z) for lr, z in zip(tensors, priors, strict=True))

    with torch.no_grad():
        tensors = [torch.from_numpy(to_graph(lr)) for _, lr, _ in pictures]
        own = [prior(lr) for lr in tensors]
        whole = list(decoded(own))
        rows = []

        def add(name: str, results: Iterable[Rgb]) -> None:
            progress(name)
            try:
                rows.append(_compare(name, list(results), whole, originals, loaded.scale))
            except ValueError as error:  # a picture of no more than the cropped border
                raise BenchmarkError(f"a picture of {datasets[0].name} cannot be measured: {error}") from error

        add("whole picture, seed 0", whole)
        for side in windows:
            add(f"windows of {side}×{side} LR pixels", (_by_windows(network, lr, prior, side) for lr in tensors))
        if loaded.lpe is not None:
            vectors = [torch.from_numpy(TEST_DEGRADATIONS.get(way or BICUBIC, Degradation()).vector())[None] for way in ways]
            seen = zip(tensors, (torch.from_numpy(to_graph(hr)) for hr in originals), itertools.cycle(vectors), strict=False)
            add("LPE, which sees the original", decoded(itertools.starmap(loaded.lpe, seen)))
        if len(pictures) > 1:
            shifts = {"another": len(ways) + 1, "the same": len(ways)} if len(ways) > 1 else {"": 1}
            for kind, shift in shifts.items():
                name = f"another picture's, of {kind} degradation" if kind else "another picture's"
                add(name, decoded(own[shift:] + own[:shift]))
        add("mean over the data set", decoded([torch.stack(own).mean(dim=0)] * len(own)))
        for name in list(noises)[1:]:
            add(name, decoded(prior(lr, name) for lr in tensors))
    return rows


def _decode(network: Any, lr: Any, z: Any) -> Rgb:
    """One picture as H×W×3 uint8."""
    return np.asarray(from_graph(network.decode(lr, z).numpy(), np.empty((1, 1, 3), dtype=np.uint8)))


def _by_windows(network: Any, lr: Any, prior: Callable[[Any], Any], side: int) -> Rgb:
    """Decode every window with the prior of its own pixels; its halo makes the rest as in the whole picture."""
    height, width = lr.shape[-2:]
    halo, scale = network.receptive_radius, network.scale
    result = np.empty((height * scale, width * scale, 3), dtype=np.uint8)
    for rows, columns in itertools.product(cells(height, side, halo), cells(width, side, halo)):
        tile = Tile(rows, columns)
        z = prior(lr[..., rows.start : rows.stop, columns.start : columns.stop])
        result[tile.target(scale)] = _decode(network, lr[..., *tile.read], z)[tile.inner(scale)]
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
