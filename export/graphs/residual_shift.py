"""Graphs of residual-shift networks: encoder, one step of the reverse process, decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...models.interface import ResidualShiftNetwork
from ...runtime.bundle.operators_shift import LARGEST_TILE
from ...runtime.bundle.proof import Tolerances
from ...runtime.pipelines.residual_shift import ResidualShiftPipeline
from ...runtime.pipelines.shift_process import INPUT, Shift, noise_field, padded, reflected
from .kind import GraphKind, GraphSpec, NetworkGraph, from_picture, to_picture

__all__ = ["ResidualShiftGraphs"]


class EncoderGraph(NetworkGraph):
    """`lr` N×3×H×W float32 in [0, 1] → `latent` N×C×H×W. Sides are multiples of `size_multiple`, here and below."""

    def forward(self, lr: Tensor) -> Tensor:
        return self.network.encode(lr)


class StepGraph(NetworkGraph):
    """`latent` N×C×H×W, `lr` N×3×H×W, `time` N, `input_scale` N, and `noise_map` N×1×H×W if it is taken → `estimate`."""

    def forward(self, latent: Tensor, lr: Tensor, time: Tensor, input_scale: Tensor, *noise: Tensor) -> Tensor:
        return self.network.estimate(latent, lr, time, input_scale, *noise)


class LatentDecoderGraph(NetworkGraph):
    """`latent` N×C×H×W → `sr` N×3×sH×sW float32, not clipped."""

    def forward(self, latent: Tensor) -> Tensor:
        return self.network.draw(latent)


class WholeNetwork(NetworkGraph):
    """`image` 1×H×W×3 uint8 → `upscaled` 1×sH×sW×3 uint8, for torch alone: noise as large as the picture is drawn inside."""

    def __init__(self, network: nn.Module, seed: int) -> None:
        super().__init__(network)
        self.seed = seed

    def forward(self, image: Tensor) -> Tensor:
        lr = from_picture(image)
        return to_picture(self.network.decode(lr, latent_of(self.network, lr, self.seed)))


def pad(lr: Tensor, unit: int) -> Tensor:
    """Mirror the right and bottom edge until both sides are multiples of `unit`."""
    height, width = lr.shape[2:]
    down, across = padded(height, width, unit)
    rows, columns = (torch.from_numpy(reflected(0, *sides)) for sides in ((down, height), (across, width)))
    return lr[:, :, rows][:, :, :, columns]


def latent_of(
    network: ResidualShiftNetwork, lr: Tensor, seed: int, stages: dict[str, NDArray[np.float32]] | None = None
) -> Tensor:
    """1×3×H×W LR in [0, 1], a whole picture → the latent that the reverse process ends on, padded.

    `stages` gets the latents on the way: "latent" (of the LR picture), and of the first and the last call "fromN" and "toN".
    """
    lr = pad(lr, network.size_multiple)
    sides = lr.shape[2:]

    def field(name: str | int, channels: int = network.latent_channels) -> Tensor:
        return torch.from_numpy(noise_field(seed, name, channels, *sides))

    extra = [field(INPUT, network.noise_channels)] if network.noise_channels else []
    latent = network.encode(lr)
    z = latent + network.first_noise * field("start")
    if stages is not None:
        stages["latent"] = latent.numpy()
    for number, call in enumerate(network.calls):
        estimate = network.estimate(z, lr, torch.tensor([float(call.time)]), torch.tensor([call.input_scale]), *extra)
        if stages is not None and number in (0, len(network.calls) - 1):
            stages |= {f"from{number}": z.numpy(), f"to{number}": estimate.numpy()}
        shift = Shift(*dataclasses.astuple(call))
        z = torch.from_numpy(shift(z.numpy(), estimate.numpy(), lambda number=number: field(number).numpy()))  # type: ignore[misc]
    return z


class ResidualShiftGraphs(GraphKind[ResidualShiftNetwork]):
    """Encoder, step and decoder. There is no single graph: its noise would have the size of one picture."""

    name = ResidualShiftPipeline.kind
    condition_names = ("latent",)
    has_single_graph = False
    tolerances = Tolerances(fp32_max_abs_err=5e-5)
    int8_unasked = False  # it takes longer than all else, and loses 0.51 dB at the released size with random weights

    @property
    def section(self) -> dict[str, Any]:
        network = self.network
        return {
            "calls": [list(dataclasses.astuple(call)) for call in network.calls],
            "first_noise": network.first_noise,
            "latent_channels": network.latent_channels,
            "noise_channels": network.noise_channels,
            "size_multiple": network.size_multiple,
            "values": dict(network.values_held),
        }

    def condition(self, lr: Tensor) -> tuple[Tensor, ...]:
        return (latent_of(self.network, lr, self.seed),)

    def prove(self, lr: Tensor) -> tuple[Tensor, Mapping[str, NDArray[np.float32]]]:
        stages: dict[str, NDArray[np.float32]] = {}
        z = latent_of(self.network, lr, self.seed, stages)
        stages["codes"] = self.network.codes(z).numpy()
        return self.network.decode(lr, z), stages

    def crop(self, lr: NDArray[np.uint8]) -> tuple[int, int]:
        unit = self.network.size_multiple
        if min(lr.shape[:2]) <= LARGEST_TILE:
            return min(lr.shape[0], unit), min(lr.shape[1], unit)
        return unit + 6, 2 * unit - 9

    def parts(self, network: ResidualShiftNetwork) -> list[GraphSpec]:
        unit = network.size_multiple
        lr, latent = torch.rand(1, 3, unit, 2 * unit), torch.randn(1, network.latent_channels, unit, 2 * unit)
        call = network.calls[0]
        numbers = {"time": torch.tensor([float(call.time)]), "input_scale": torch.tensor([call.input_scale])}
        step = {"latent": latent, "lr": lr, **numbers}
        if network.noise_channels:
            step["noise_map"] = torch.randn(1, network.noise_channels, unit, 2 * unit)
        return [
            GraphSpec("encoder.onnx", EncoderGraph(network), {"lr": lr}, "latent", unit),
            GraphSpec("step.onnx", StepGraph(network), step, "estimate", unit),
            GraphSpec("decoder.onnx", LatentDecoderGraph(network), {"latent": latent}, "sr", unit),
        ]

    def int8_decoder(self, network: nn.Module) -> GraphSpec:
        """From latents to pictures in float32, as in other precisions. The encoder stays float: its errors change codes."""
        unit = self.network.size_multiple
        latent = torch.randn(1, self.network.latent_channels, unit, 2 * unit)
        return GraphSpec("decoder.int8.onnx", LatentDecoderGraph(network), {"latent": latent}, "sr", unit)

    def whole(self, name: str, network: nn.Module) -> GraphSpec:
        return GraphSpec(name, WholeNetwork(network, self.seed), {}, "upscaled")
