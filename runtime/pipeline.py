"""The three graphs of a bundle run one after the other: condition encoder, reverse process, decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

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
        sessions = {
            role: load_session(
                bundle.graph(role), backend=backend, precision=precision if role == "decoder" else "fp32", threads=threads
            )
            for role in ("encoder", "reverse", "decoder")
        }
        self._encoder, self._reverse, self._decoder = sessions.values()

    def prior(self, lr: Float) -> Float:
        """1×3×H×W LR in [0, 1] → 1×latent prior z of the whole picture."""
        features = self._only(self._encoder.run({"lr": lr}), "encoder", rank=4)
        z = self._only(self._reverse.run({"pooled": pool(features), "noise": self._noise}), "reverse", rank=2)
        return z

    def run(self, lr: Float) -> Float:
        """1×3×H×W LR in [0, 1] → 1×3×sH×sW SR, not clipped."""
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
