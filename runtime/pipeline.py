"""The three graphs of a bundle run one after the other: condition encoder, reverse process, decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import from_graph, to_graph
from .bundle import Bundle
from .engines import Backend, Precision, load_session
from .errors import BundleError, EngineError

__all__ = ["Pipeline", "initial_noise", "pool"]

Float = NDArray[np.float32]


def initial_noise(seed: int, latent_size: int) -> Float:
    """1×latent standard normal noise for a seed of 0 … 2³²−1; the same on every machine and NumPy version.

    `RandomState` is NumPy's frozen generator, whose stream never changes (NEP 19).
    """
    return np.random.RandomState(seed).standard_normal((1, latent_size)).astype(np.float32)


def pool(features: Float) -> Float:
    """1×C×h×w condition features → 1×C mean, summed in float64; every cell weighs the same, padded or not."""
    cells = features.shape[2] * features.shape[3]
    return (features.sum(axis=(2, 3), dtype=np.float64) / cells).astype(np.float32)


class Pipeline:
    """A bundle loaded into one engine at one precision. Safe to call from many threads."""

    def __init__(self, bundle: Bundle, *, backend: Backend, precision: Precision, threads: int, seed: int) -> None:
        """Raises `BundleError` for a damaged bundle, `EngineError` where the engine cannot run it."""
        self.backend: Backend = backend
        self.precision: Precision = precision
        self._scale = bundle.manifest.scale
        self._noise = initial_noise(seed, bundle.manifest.latent_size)
        # Only the decoder pays for speed; the latent prior is computed in float32 whatever the precision.
        precisions: dict[str, Precision] = {"encoder": "fp32", "reverse": "fp32", "decoder": precision}
        self._encoder, self._reverse, self._decoder = (
            load_session(bundle.graph(bundle.manifest.role(role, kind)), backend=backend, precision=kind, threads=threads)
            for role, kind in precisions.items()
        )

    def prior(self, lr: Float) -> Float:
        """1×3×H×W LR in [0, 1] → 1×latent prior z of the whole picture."""
        features = self._only(self._encoder.run({"lr": lr}), "encoder", rank=4)
        z = self._only(self._reverse.run({"pooled": pool(features), "noise": self._noise}), "reverse", rank=2)
        return z

    def picture(self, colour: NDArray[Any]) -> NDArray[Any]:
        """H×W×1 or H×W×3 of a supported dtype → the same kind, `scale` times larger; int8 takes uint8 alone."""
        lr = to_graph(colour)
        return self._picture(colour, lr) if self.precision == "int8" else from_graph(self.run(lr), colour)

    def _picture(self, colour: NDArray[np.uint8], lr: Float) -> NDArray[np.uint8]:
        """Through the int8 decoder, whose ends are 8-bit pictures."""
        rgb = colour if colour.shape[2] == 3 else np.repeat(colour, 3, axis=2)
        outputs = self._decoder.run({"image": rgb[None], "z": self.prior(lr)})
        wanted = (1, rgb.shape[0] * self._scale, rgb.shape[1] * self._scale, 3)
        if len(outputs) != 1 or outputs[0].shape != wanted or outputs[0].dtype != np.uint8:
            raise EngineError(f"the int8 decoder on {self.backend} does not give one uint8 output of shape {wanted}")
        larger: NDArray[np.uint8] = outputs[0][0]
        if colour.shape[2] == 3:
            return larger
        return np.rint(larger.mean(axis=2, keepdims=True)).astype(np.uint8)

    def run(self, lr: Float) -> Float:
        """1×3×H×W LR in [0, 1] → 1×3×sH×sW SR, not clipped; not for int8."""
        sr = self._only(self._decoder.run({"lr": lr, "z": self.prior(lr)}), "decoder", rank=4)
        wanted = (1, 3, lr.shape[2] * self._scale, lr.shape[3] * self._scale)
        if sr.shape != wanted:
            raise EngineError(f"the decoder on {self.backend} gave an output of shape {sr.shape}, not {wanted}")
        return sr

    @staticmethod
    def _only(outputs: list[NDArray[Any]], role: str, *, rank: int) -> Float:
        """A graph's one float32 output; bundles are untrusted, so its number, type and rank are checked."""
        if len(outputs) != 1 or outputs[0].ndim != rank or outputs[0].dtype != np.float32:
            raise BundleError(f"the {role} graph of the bundle does not give one float32 output of {rank} dimensions")
        return outputs[0]
