"""Published efficient super-resolution networks to compare with: our time, their published or elsewhere measured quality.

The repository holds nobody else's code or weights. A peer is our own implementation of a published structure, ×4 and as
deployed, with random weights. Its time on an engine is the published network's. Its pictures are noise, so a report may
only show published PSNR beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...atomic import atomic_write
from ..errors import BenchmarkError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["PEERS", "Peer", "export_peer", "peer", "published"]


@dataclasses.dataclass(frozen=True)
class Peer:
    """A published ×4 network and its figures. Figures that we could not confirm are left out."""

    name: str
    params_m: float
    """Published parameters in millions, of the deployed form if training uses another."""
    psnr_y: Mapping[str, float]
    """Published PSNR-Y in dB by data set ("Set5", "Set14", "B100")."""
    source: str
    """Paper and venue, and who measured if it was not the authors. (We measured with weights that are not ours to give.)"""

    def build(self) -> nn.Module:
        """The network in eval mode, with the same weights each time; N×3×H×W in [0, 1] → N×3×4H×4W, H and W at least 15."""
        import torch

        from .peer_networks import NETWORKS, spread_weights

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = NETWORKS[self.name]().eval()
            spread_weights(network)
        return network


_SPAN = "Swift Parameter-free Attention Network for Efficient Super-Resolution, CVPR 2024 Workshops (NTIRE)"
_RLFN = "Residual Local Feature Network for Efficient Super-Resolution, CVPR 2022 Workshops (NTIRE)"
_IMDN = "Lightweight Image Super-Resolution with Information Multi-distillation Network, ACM Multimedia 2019"
_RFDN = "Residual Feature Distillation Network for Lightweight Image Super-Resolution, ECCV 2020 Workshops (AIM)"
_MEASURED = "PSNR of the released weights, measured by us on AVX2"
_LIST = (
    # We did not have SPAN's tables at ×4. The parameter counts are the paper's as others quote them.
    Peer("span", 0.498, {"Set5": 32.20}, f"{_SPAN}; PSNR as others measured it"),
    Peer("span-s", 0.426, {}, _SPAN),
    Peer("span-28", 0.151, {"Set5": 31.73, "Set14": 28.40, "B100": 27.45}, f"{_SPAN}; {_MEASURED}"),
    Peer("disp", 0.163, {"Set5": 31.94, "Set14": 28.46, "B100": 27.48}, f"DISP, a plain stack with SiLU; {_MEASURED}"),
    Peer("rlfn", 0.543, {"Set5": 32.24, "Set14": 28.62, "B100": 27.60}, _RLFN),
    Peer(
        "rlfn-ntire", 0.317, {"Set5": 32.10, "Set14": 28.60, "B100": 27.58}, f"{_RLFN}, the challenge's entry; {_MEASURED}"
    ),
    # We did not have RLFN-S's row of the paper's table either. Its parameter count is from memory.
    Peer("rlfn-s", 0.470, {}, _RLFN),
    Peer("imdn", 0.715, {"Set5": 32.21, "Set14": 28.58, "B100": 27.56}, _IMDN),
    Peer("rfdn", 0.550, {"Set5": 32.24, "Set14": 28.61, "B100": 27.57}, _RFDN),
    # The challenge's winner, judged there on DIV2K only. Its parameter count is from memory too.
    Peer("e-rfdn", 0.433, {}, _RFDN),
)
PEERS = {entry.name: entry for entry in _LIST}


def peer(name: str) -> Peer:
    """The peer of that name. Raises `BenchmarkError`, which lists the known ones."""
    if name not in PEERS:
        raise BenchmarkError(f"{name} is not a known peer ({', '.join(PEERS)})")
    return PEERS[name]


def export_peer(name: str, target: Path) -> None:
    """Write a peer with random weights as ONNX: "lr" N×3×H×W float32 in [0, 1] → "sr" N×3×4H×4W, with free N, H and W.

    H and W are at least 15 for the peers with spatial attention (rlfn, rlfn-s, e-rfdn).
    Raises `BenchmarkError` for an unknown name, `OutputError` if the file cannot be written, and what tracing raises.
    """
    network = peer(name).build()

    import torch

    from ...export.graphs.trace import trace

    lr, sr = {0: "batch", 2: "height", 3: "width"}, {0: "batch", 2: "sr_height", 3: "sr_width"}
    model = trace(network, {"lr": torch.zeros(1, 3, 32, 40)}, "sr", {"lr": lr, "sr": sr})
    atomic_write(target, model.SerializeToString())


def published(names: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Published PSNR-Y of the named peers, for a report. A peer without a confirmed figure has no row.

    Raises `BenchmarkError` for an unknown name.
    """
    rows = [
        {"model": each.name, "psnr_y": dict(each.psnr_y), "source": "published", "note": each.source}
        for each in map(peer, names)
        if each.psnr_y
    ]
    return {"peers": rows}
