"""All ONNX graphs of one network: traced, simplified, every constant accounted for, int8 ones quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..models.interface import LatentPriorNetwork
from ..runtime.pipeline import initial_noise
from .accounting import SMALLEST, account, fingerprint
from .errors import ProofError
from .graphs import DecoderGraph, EncoderGraph, PictureDecoderGraph, ReverseGraph, SingleGraph
from .int8_form import Int8Form
from .simplify import simplify
from .trace import trace

__all__ = ["GraphSet"]

Progress = Callable[[str], None]


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {key: value.detach().cpu().numpy() for key, value in tensors.items()}


_PLANE = {0: "batch", 2: "height", 3: "width"}
_LARGE_PLANE = {0: "batch", 2: "height_out", 3: "width_out"}
_PICTURE = {0: "batch", 1: "height", 2: "width"}
_LARGE_PICTURE = {0: "batch", 1: "height_out", 2: "width_out"}


class GraphSet:
    """Traces, simplifies and accounts for the graphs of one network."""

    models: dict[str, onnx.ModelProto]
    """File name → graph."""
    unsimplified: list[str]
    """Graphs whose simplification was not safe."""

    def __init__(
        self,
        network: nn.Module,
        seed: int,
        *,
        single_graph: bool,
        progress: Progress = lambda step: None,
    ) -> None:
        self.original = cast(LatentPriorNetwork, network)
        self.fused = self.original.fuse()
        self.parts = cast(LatentPriorNetwork, self.fused)
        self.noise = initial_noise(seed, self.parts.latent_size)
        self.progress = progress
        self.unsimplified: list[str] = []
        self.training_only = {fingerprint(value): key for key, value in _arrays(self.original.training_only()).items()}
        self.deployed: set[str] = {fingerprint(self.noise)}
        self.neutral: set[str] = set()
        self.weights = self._deploy(self.fused)
        self.found: dict[str, set[str]] = {}
        self.single_graph = single_graph
        self.models = self._build()
        self._check_totals()

    def _deploy(self, network: nn.Module) -> dict[str, str]:
        """Let the network's weights be in graphs; key → fingerprint of those that are large enough to be accounted for."""
        weights = {}
        for key, value in _arrays(network.state_dict()).items():
            mark = fingerprint(value)
            if value.size >= SMALLEST:
                weights[key] = mark
            self.deployed.add(mark)
            if value.size and value.flat[0] in (0, 1) and (value == value.flat[0]).all():
                self.neutral.add(mark)  # a simplifier may leave out what multiplies by ones or adds zeros
        return weights

    def _build(self) -> dict[str, onnx.ModelProto]:
        lr, z = torch.rand(1, 3, 24, 20), torch.randn(1, self.parts.latent_size)
        pooled = torch.rand(1, self.parts.condition_channels)
        models = {
            "encoder.onnx": self._graph(
                "encoder.onnx",
                EncoderGraph(self.fused),
                {"lr": lr},
                "features",
                {"lr": _PLANE, "features": {0: "batch", 2: "cells_high", 3: "cells_wide"}},
            ),
            "reverse.onnx": self._graph(
                "reverse.onnx",
                ReverseGraph(self.fused),
                {"pooled": pooled, "noise": z},
                "z",
                {"pooled": {0: "batch"}, "noise": {0: "batch"}, "z": {0: "batch"}},
            ),
            "decoder.onnx": self._graph(
                "decoder.onnx",
                DecoderGraph(self.fused),
                {"lr": lr, "z": z},
                "sr",
                {"lr": _PLANE, "z": {0: "batch"}, "sr": _LARGE_PLANE},
            ),
        }
        if self.single_graph:
            models["model.onnx"] = self._single("model.onnx", self.fused)
        return models

    def _single(self, name: str, network: nn.Module) -> onnx.ModelProto:
        return self._graph(
            name,
            SingleGraph(network, torch.from_numpy(self.noise)),
            {"image": torch.randint(0, 256, (1, 24, 20, 3), dtype=torch.uint8)},
            "upscaled",
            {"image": _PICTURE, "upscaled": _LARGE_PICTURE},
        )

    def add_int8(self, form: Int8Form) -> None:
        """Make the int8 graphs: their float form, accounted for like the others, and only then quantize nodes put in."""
        network = form.traced(self.fused)
        weights = self._deploy(network)
        z = torch.randn(1, self.parts.latent_size)
        models = {
            "decoder.int8.onnx": self._graph(
                "decoder.int8.onnx",
                PictureDecoderGraph(network),
                {"image": torch.randint(0, 256, (1, 24, 20, 3), dtype=torch.uint8), "z": z},
                "upscaled",
                {"image": _PICTURE, "z": {0: "batch"}, "upscaled": _LARGE_PICTURE},
            )
        }
        if self.single_graph:
            models["model.int8.onnx"] = self._single("model.int8.onnx", network)
        held = self.found["decoder.int8.onnx"] | self.found["encoder.onnx"] | self.found["reverse.onnx"]
        _check_holds("the int8 decoder, the encoder and the reverse process", held, weights)
        if self.single_graph:
            _check_holds("model.int8.onnx", self.found["model.int8.onnx"], weights)
        self.models |= {name: form.insert(model) for name, model in models.items()}

    def _graph(
        self, name: str, module: nn.Module, inputs: dict[str, Tensor], output: str, dynamic: dict[str, dict[int, str]]
    ) -> onnx.ModelProto:
        self.progress(f"trace {name}")
        plain = trace(module, inputs, output, dynamic)
        rng = np.random.RandomState(0)
        feeds = []
        for batch, *sides in ((1, 24, 20), (2, 13, 7)):
            feed = {}
            for key, value in inputs.items():
                shape = list(value.shape)
                for axis, size in zip(dynamic[key], (batch, *sides), strict=False):
                    shape[axis] = size
                low, high = (0, 256) if value.dtype == torch.uint8 else (-1, 1)
                feed[key] = rng.uniform(low, high, shape).astype(value.numpy().dtype)
            feeds.append(feed)
        self.found[name] = account(plain, name, self.deployed, self.training_only)
        model, simplified = simplify(plain, feeds, name)
        if simplified:
            try:
                left_out = self.found[name] - account(model, name, self.deployed, self.training_only)
                simplified = left_out <= self.neutral
            except ProofError:  # a simplifier may merge weights into constants that nobody can account for
                simplified = False
        if not simplified:
            self.unsimplified.append(name)
        return model if simplified else plain

    def _check_totals(self) -> None:
        """The three graphs together hold every deployed weight; the single graph holds them all, and the noise."""
        three = self.found["encoder.onnx"] | self.found["reverse.onnx"] | self.found["decoder.onnx"]
        _check_holds("the three graphs", three, self.weights)
        if "model.onnx" in self.found:
            _check_holds("model.onnx", self.found["model.onnx"], self.weights)


def _check_holds(name: str, found: set[str], weights: Mapping[str, str]) -> None:
    if lacking := [key for key, mark in weights.items() if mark not in found]:
        raise ProofError(f"{name} lack the weight {lacking[0]}")
