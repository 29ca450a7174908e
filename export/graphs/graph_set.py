"""All ONNX graphs of one network: traced, simplified, accounted for, and for int8 quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ProofError
from .accounting import SMALLEST, account, fingerprint
from .kind import GraphKind, GraphSpec
from .simplify import simplify
from .trace import trace

__all__ = ["GraphSet", "Int8Form"]

Progress = Callable[[str], None]


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {key: value.detach().cpu().numpy() for key, value in tensors.items()}


class Int8Form(Protocol):
    """A quantized decoder on its way into graphs."""

    traced: nn.Module
    """The fused network for tracing. Its decoder holds the quantized weights as floats."""

    def __call__(self, *sample: Tensor) -> Tensor:
        """Compute in torch, fake-quantized, what engines compute. Arguments and result are those of `Network.decode`."""
        ...

    def insert(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The traced graph with quantize and dequantize nodes."""
        ...

    def check_execution(self, graph: bytes) -> None:
        """Raise `ProofError` if an engine runs too little of the graph in int8."""
        ...


class GraphSet:
    """The graphs of one network. Making them raises `ExportError` or `ProofError`."""

    models: dict[str, onnx.ModelProto]
    """File name → graph."""
    unsimplified: list[str]
    """Graphs whose simplification was not safe."""

    def __init__(self, kind: GraphKind[Any], *, single_graph: bool, progress: Progress = lambda step: None) -> None:
        self.kind, self.progress = kind, progress
        fused = kind.network.fuse()
        self.unsimplified = []
        self.training_only = {fingerprint(value): key for key, value in _arrays(kind.network.training_only()).items()}
        derived = kind.network.derived()
        self.deployed = {fingerprint(value) for value in (*kind.constants, *(each.numpy() for each in derived.constants))}
        self.absorbed = derived.absorbed
        self.neutral: set[str] = set()
        weights = self._deploy(fused)
        self.found: dict[str, set[str]] = {}
        self.single_graph = single_graph and kind.has_single_graph
        self.models = {spec.name: self._graph(spec) for spec in kind.parts(fused)}
        self.beside_decoder = set(self.models) - {"decoder.onnx"}
        """Graphs that int8 does not change."""
        _check_holds("the graphs", self._held(*self.models), weights)
        if self.single_graph:
            self.models["model.onnx"] = self._graph(kind.whole("model.onnx", fused))
            _check_holds("model.onnx", self._held("model.onnx"), weights)

    def _held(self, *names: str) -> set[str]:
        """Fingerprints of the weights that these graphs hold together."""
        return set().union(*(self.found[name] for name in names))

    def _deploy(self, network: nn.Module) -> dict[str, str]:
        """Allow the network's weights in graphs. Returns key → fingerprint of those that must be in them (`SMALLEST`)."""
        weights = {}
        for key, value in _arrays(network.state_dict()).items():
            mark = fingerprint(value)
            if value.size >= SMALLEST and key not in self.absorbed:
                weights[key] = mark
            self.deployed.add(mark)
            if value.size and value.flat[0] in (0, 1) and (value == value.flat[0]).all():
                self.neutral.add(mark)  # a simplifier may drop a product with ones or a sum with zeros
        return weights

    def add_int8(self, form: Int8Form) -> None:
        """Make the int8 graphs: first in float, accounted for like the others, then with quantize nodes."""
        weights = self._deploy(form.traced)
        specs = [self.kind.int8_decoder(form.traced)]
        if self.single_graph:
            specs.append(self.kind.whole("model.int8.onnx", form.traced))
        models = {spec.name: self._graph(spec) for spec in specs}
        _check_holds("the graphs of int8", self._held("decoder.int8.onnx", *self.beside_decoder), weights)
        if self.single_graph:
            _check_holds("model.int8.onnx", self._held("model.int8.onnx"), weights)
        self.models |= {name: form.insert(model) for name, model in models.items()}

    def _graph(self, spec: GraphSpec) -> onnx.ModelProto:
        name = spec.name
        self.progress(f"trace {name}")
        plain = trace(spec.module, spec.inputs, spec.output, spec.axes)
        rng = np.random.RandomState(0)
        feeds = []
        for batch, *sides in ((1, 24, 20), (2, 13, 7)) if spec.unit == 1 else ((1, spec.unit, 2 * spec.unit),):
            feed = {}
            for key, value in spec.inputs.items():
                shape = list(value.shape)
                for axis, size in zip(spec.axes[key], (batch, *sides), strict=False):
                    shape[axis] = size
                low, high = (0, 256) if value.dtype == torch.uint8 else (-1 if value.min() < 0 else 0, 1)
                feed[key] = rng.uniform(low, high, shape).astype(value.numpy().dtype)
            feeds.append(feed)
        self.found[name] = account(plain, name, self.deployed, self.training_only)
        model, simplified = simplify(plain, feeds, name)
        if simplified:
            try:
                left_out = self.found[name] - account(model, name, self.deployed, self.training_only)
                simplified = left_out <= self.neutral
            except ProofError:  # a simplifier may merge weights into constants that match no weight
                simplified = False
        if not simplified:
            self.unsimplified.append(name)
        return model if simplified else plain


def _check_holds(name: str, found: set[str], weights: Mapping[str, str]) -> None:
    if lacking := [key for key, mark in weights.items() if mark not in found]:
        raise ProofError(f"{name} lack the weight {lacking[0]}")
