"""The inputs that a bundle is proven on: small pictures that the package carries, and noise, in awkward sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..models.degradation import bicubic_downscale, crop_to_multiple
from ..runtime.bundle.proof import OWN, Case, Proof
from ..runtime.metrics import psnr_y
from ..runtime.pictures.arrays import from_graph, to_graph
from ..runtime.pictures.formats import read_picture
from .errors import ProofError
from .graphs import GraphKind
from .int8.calibration import CalibrationPicture
from .int8.forms import Decoder, fake_quantized

__all__ = ["SAMPLES", "build_proof", "sample_pictures", "with_int8"]

SAMPLES = Path(__file__).parent / "samples"
NOISE_SIZES = ((1, 1), (1, 9), (61, 1), (5, 3), (17, 33), (40, 24))
"""Height and width of the noise inputs: single pixels, one-pixel-wide, odd, and square multiples of nothing."""
_NOISE = 255 / 10 ** (30 / 20) / (219 / 255)
"""Grey levels, the same in all three colours, that make 30 dB on luma of 16 … 235."""
LARGE = (130, 151)
"""A picture larger than any training patch."""


def sample_pictures(scale: int) -> dict[str, NDArray[np.uint8]]:
    """HR pictures (H×W×3 RGB uint8, sides multiples of `scale`) that the package carries, by name."""
    pictures = {}
    for path in sorted((SAMPLES / "HR").glob("*.png")):
        pictures[path.stem] = crop_to_multiple(read_picture(path).pixels, scale)
    return pictures


def build_proof(kind: GraphKind[Any], judging: Sequence[CalibrationPicture] = (), *, random_weights: bool = False) -> Proof:
    """Run the torch model, as it came from the checkpoint, over all inputs.

    `judging`: pictures beside the package's own that the bundle is measured on now, but does not carry.
    `random_weights`: originals mean nothing to such a network, and no difference would show against them. Its own float
    output, made as good as 30 dB by noise, takes their place. A drop is then what the difference from the float output would
    cost a network of that quality.
    """
    scale = kind.network.scale
    originals = sample_pictures(scale)
    pictures = {name: (bicubic_downscale(hr, scale), hr) for name, hr in originals.items()}
    portrait = pictures["portrait"][0]
    fill = [(0, max(0, LARGE[0] - portrait.shape[0])), (0, max(0, LARGE[1] - portrait.shape[1])), (0, 0)]
    inputs: list[tuple[str, NDArray[np.uint8], NDArray[np.uint8] | None]] = [
        (f"picture-{name}", lr, hr) for name, (lr, hr) in pictures.items()
    ]
    inputs.append(("picture-large", np.pad(portrait, fill, mode="symmetric")[: LARGE[0], : LARGE[1]], None))
    rng = np.random.RandomState(0)
    inputs += [(f"noise-{h}x{w}", rng.randint(0, 256, (h, w, 3)).astype(np.uint8), None) for h, w in NOISE_SIZES]
    named = [(OWN, *entry) for entry in inputs]
    named += [(picture.dataset, f"{picture.dataset}-{picture.name}", picture.lr, picture.hr) for picture in judging]
    cases = []
    for dataset, name, lr, hr in named:
        with torch.no_grad():
            output = kind.upscale(torch.from_numpy(to_graph(lr))).numpy()
        if not np.isfinite(output).all():
            raise ProofError(f"the torch model itself gives NaN or infinity on {name}, so there is nothing to prove against")
        if hr is not None and random_weights:
            hr = _with_noise(from_graph(output, lr))
        quality = None if hr is None else psnr_y(from_graph(output, lr), hr, scale)
        expected = np.ascontiguousarray(output[0].transpose(1, 2, 0))
        cases.append(Case(name=name, lr=lr, expected=expected, hr=hr, psnr_y=quality, dataset=dataset))
    return Proof(tuple(cases), kind.seed)


def _with_noise(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture that `picture` has a PSNR-Y of 30 dB against (more where it clips)."""
    noise = np.random.RandomState(0).normal(0, _NOISE, picture.shape[:2])[:, :, None]
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


def with_int8(proof: Proof, kind: GraphKind[Any], decode: Decoder, *, drop: float, max_drop: float) -> Proof:
    """The proof with the fake-quantized decoder's output for every case, and the gate."""
    cases = []
    for case in proof.cases:
        picture = fake_quantized(kind, decode, case.lr)
        quality = None if case.hr is None else psnr_y(picture, case.hr, kind.network.scale)
        cases.append(dataclasses.replace(case, expected_int8=picture, psnr_y_int8=quality))
    return dataclasses.replace(proof, cases=tuple(cases), int8_drop_db=float(drop), int8_max_drop_db=float(max_drop))
