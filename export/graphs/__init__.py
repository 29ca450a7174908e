"""Make checked ONNX graphs of a torch network. Each process kind has one module."""

from __future__ import annotations

from typing import Any

from ...models.interface import DirectNetwork, LatentPriorNetwork, Network, ResidualShiftNetwork
from ..errors import ExportError
from .direct import DirectGraphs
from .kind import GraphKind
from .latent_prior import LatentPriorGraphs
from .residual_shift import ResidualShiftGraphs

__all__ = ["GraphKind", "graph_kind"]

_KINDS: dict[type[Any], type[GraphKind[Any]]] = {
    LatentPriorNetwork: LatentPriorGraphs,
    DirectNetwork: DirectGraphs,
    ResidualShiftNetwork: ResidualShiftGraphs,
}


def graph_kind(network: Network, seed: int) -> GraphKind[Any]:
    """The graphs of a network, by its process kind. Raises `ExportError` if the network cannot be exported."""
    for base, kind in _KINDS.items():
        if isinstance(network, base):
            return kind(network, seed)
    raise ExportError(f"a {type(network).__name__} belongs to no process kind that can be exported")
