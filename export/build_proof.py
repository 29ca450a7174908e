"""The inputs that a bundle is proven on: the package's own small pictures, and noise in awkward sizes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..models.downscaling import bicubic_downscale, crop_to_multiple
from ..runtime.bundle.proof import OWN, Case, Proof
from ..runtime.metrics import psnr_y
from ..runtime.pictures.arrays import from_graph, to_graph
from ..runtime.pictures.reading import read_picture
from .errors import ProofError
from .graphs import GraphKind
from .int8.calibration import CalibrationPicture
from .int8.forms import Decoder, fake_quantized

logger = logging.getLogger(__name__)
__all__ = ["SAMPLES", "build_proof", "sample_pictures", "with_int8"]

SAMPLES = Path(__file__).parent / "samples"
NOISE_SIZES = ((1, 1), (1, 9), (61, 1), (5, 3), (17, 33), (40, 24))
"""Heights and widths of the noise inputs: a single pixel, one pixel wide or high, odd, not square."""
_NOISE = 255 / 10 ** (30 / 20) / (219 / 255)
"""Standard deviation in grey levels, equal in all three colours, of noise that gives 30 dB on luma of 16 … 235."""
_NO_PICTURE = 12.0
"""PSNR-Y below which an output has nothing to do with the original, and the drop from it means nothing."""
_WORDS = "the network's %s is only %.1f dB like the original: int8 is judged by what it changes, not by that picture"
LARGE = (130, 151)
"""Height and width of a picture larger than any training patch."""


def sample_pictures(scale: int) -> dict[str, NDArray[np.uint8]]:
    """HR pictures (H×W×3 RGB uint8, sides multiples of `scale`) that the package carries, by name."""
    paths = sorted((SAMPLES / "HR").glob("*.png"))
    return {path.stem: crop_to_multiple(read_picture(path).pixels, scale) for path in paths}


def build_proof(kind: GraphKind[Any], judging: Sequence[CalibrationPicture] = (), *, random_weights: bool = False) -> Proof:
    """Run the torch model, as it came from the checkpoint, over all inputs.

    `judging`: more pictures to measure the bundle on. The bundle does not carry them.
    `random_weights`: against an original, the output of such a network is so far off that no drop would show. Its own float
    output plus noise of 30 dB takes the place of the original. A drop is then the cost to a network of that quality. The
    same holds for pictures that a network turns into something below 12 dB.
    Raises `ProofError` if the model gives NaN or infinity.
    """
    scale = kind.network.scale
    pictures = {name: (bicubic_downscale(hr, scale), hr) for name, hr in sample_pictures(scale).items()}
    inputs: list[tuple[str, str, NDArray[np.uint8], NDArray[np.uint8] | None]] = [
        (OWN, f"picture-{name}", lr, hr) for name, (lr, hr) in pictures.items()
    ]
    portrait = pictures["portrait"][0]
    fill = [(0, max(0, LARGE[0] - portrait.shape[0])), (0, max(0, LARGE[1] - portrait.shape[1])), (0, 0)]
    inputs.append((OWN, "picture-large", np.pad(portrait, fill, mode="symmetric")[: LARGE[0], : LARGE[1]], None))
    rng = np.random.RandomState(0)
    inputs += [(OWN, f"noise-{h}x{w}", rng.randint(0, 256, (h, w, 3)).astype(np.uint8), None) for h, w in NOISE_SIZES]
    inputs += [(picture.dataset, f"{picture.dataset}-{picture.name}", picture.lr, picture.hr) for picture in judging]
    cases = []
    for dataset, name, lr, hr in inputs:
        height, width = kind.crop(lr)
        lr, hr = lr[:height, :width], None if hr is None else hr[: height * scale, : width * scale]
        with torch.no_grad():
            result, stages = kind.prove(torch.from_numpy(to_graph(lr)))
        output = result.numpy()
        if not np.isfinite(output).all():
            raise ProofError(f"the torch model gives NaN or infinity on {name}, so there is nothing to prove against")
        quality = None
        if hr is not None:
            picture = from_graph(output, lr)
            quality = psnr_y(picture, hr, scale)
            if random_weights or quality < _NO_PICTURE:
                if not random_weights:
                    logger.warning(_WORDS, name, quality)
                hr = _with_noise(picture)
                quality = psnr_y(picture, hr, scale)
        expected = np.ascontiguousarray(output[0].transpose(1, 2, 0))
        cases.append(Case(name=name, lr=lr, expected=expected, hr=hr, psnr_y=quality, dataset=dataset, stages=stages))
    return Proof(tuple(cases), kind.seed, kind.tolerances)


def _with_noise(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`picture` with noise, so that their PSNR-Y is 30 dB (more if values are clipped)."""
    noise = np.random.RandomState(0).normal(0, _NOISE, picture.shape[:2])[:, :, None]
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


def with_int8(proof: Proof, kind: GraphKind[Any], decode: Decoder, *, drop: float, max_drop: float) -> Proof:
    """The proof with the fake-quantized decoder's output for every case, and the gate, both in dB PSNR-Y."""
    cases = []
    for case in proof.cases:
        picture = fake_quantized(kind, decode, case.lr)
        quality = None if case.hr is None else psnr_y(picture, case.hr, kind.network.scale)
        cases.append(dataclasses.replace(case, expected_int8=picture, psnr_y_int8=quality))
    return dataclasses.replace(proof, cases=tuple(cases), int8_drop_db=float(drop), int8_max_drop_db=float(max_drop))
