"""Bring a network of others to the form that is traced: branches merged, normalization folded, nothing written in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["branched", "fold_normalization", "merge", "use_merged", "use_traceable"]
_SAME = 1e-6
"""Largest difference, of the largest value, that folding makes; where it is larger, normalization stays."""


class _PartOfChannels(nn.Module):
    """A convolution of the first channels, the others as they are (PLKSR)."""

    def __init__(self, conv: nn.Conv2d, count: int, residual: bool) -> None:
        super().__init__()
        self.conv, self.count, self.residual = conv, count, residual

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, : self.count]
        changed = self.conv(first)
        return torch.cat([changed + first if self.residual else changed, x[:, self.count :]], 1)


def _window_mask(window: int, shift: int, size: tuple[Any, Any], dtype: torch.dtype | None = None) -> Tensor:
    """What shifted window attention adds to its products in each window of `size`: 0 inside a region, -100 across regions.

    windows × window² × window². Computed without writing into slices, which graphs do element by element.
    """
    sides = []
    for side in size:
        places = torch.arange(side).float()
        ends = (side - window, side - shift)
        last, beyond = (torch.clamp(places - end + 1, 0, 1) for end in ends)
        sides.append((last + beyond).view(-1, window))  # windows × window
    rows, columns = sides
    regions = 3 * rows[:, None, :, None] + columns[None, :, None, :]
    regions = regions.reshape(-1, window * window)
    differ = regions[:, None] - regions[:, :, None]
    mask: Tensor = -100 * torch.clamp(differ * differ, 0, 1)
    return mask if dtype is None else mask.to(dtype)


def use_traceable(network: nn.Module) -> None:
    """Put what graphs can hold in the place of what writes into its input or into slices."""
    for parent in list(network.modules()):
        window, shift = (getattr(parent, name, None) for name in ("window_size", "shift_size"))
        if callable(getattr(parent, "calculate_mask", None)) and isinstance(window, int) and isinstance(shift, int):
            parent.calculate_mask = partial(_window_mask, window, shift)  # type: ignore[assignment]
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "PLKConv2d":
                plk: Any = child
                setattr(parent, name, _PartOfChannels(plk.conv, plk.idx, bool(getattr(plk, "with_idt", False))))


def branched(network: nn.Module) -> list[nn.Module]:
    """The blocks that train with branches and compute through one merged convolution (SPAN's `Conv3XC`)."""
    return [module for module in network.modules() if isinstance(getattr(module, "eval_conv", None), nn.Conv2d)]


def merge(block: nn.Module) -> nn.Conv2d:
    """The merged convolution of such a block, brought up to its branches."""
    getattr(block, "update_params", lambda: None)()
    return cast(nn.Conv2d, block.eval_conv)


def use_merged(network: nn.Module) -> None:
    """Put the merged convolution in the place of every block of `branched`."""
    blocks = branched(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if any(child is block for block in blocks):
                setattr(parent, name, merge(child))


@torch.no_grad()
def fold_normalization(network: nn.Module, run: Callable[[Tensor], Tensor], picture: Tensor) -> int:
    """Fold each batch normalization into the convolution whose output it reads. Returns their number.

    Those whose convolution something else reads, too, stay. `run` computes with the network, `picture`: 1×3×H×W that
    it takes.
    """
    made: dict[int, nn.Conv2d] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    alive = []  # ids of tensors are theirs as long as they live

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        alive.append(output)
        if isinstance(module, nn.Conv2d):
            made[id(output)] = module
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])], module))

    hooks = [each.register_forward_hook(note) for each in network.modules() if isinstance(each, (nn.Conv2d, nn.BatchNorm2d))]
    before = run(picture)
    for hook in hooks:
        hook.remove()
    count = 0
    for convolution, normalization in pairs:
        folded = fuse_conv_bn_eval(convolution, normalization)
        kept = convolution.weight, convolution.bias
        convolution.weight, convolution.bias = folded.weight, folded.bias
        identity = nn.Identity()
        _replace(network, normalization, identity)
        if bool(((run(picture) - before).abs() <= _SAME * before.abs().max()).all()):
            count += 1
        else:
            convolution.weight, convolution.bias = kept
            _replace(network, identity, normalization)
    return count


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for module in network.modules():
        for name, child in list(module.named_children()):
            if child is old:
                setattr(module, name, new)
