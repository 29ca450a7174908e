"""Keep code of others from building a network far larger than the checkpoint that it is built for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .probes import storage_of, tensors_in

__all__ = ["Budget"]

_VALUES, _SPARE_VALUES = 8, 2**26
"""Values that may be made for each stored one, and beside them (masks, tables, initial weights)."""
_CALLS, _SPARE_CALLS = 500, 50_000
"""Operations for each stored tensor, and beside them."""
_INDICES, _SPARE_INDICES = 8, 64
"""Largest number in a key for each stored tensor, and beside them: layers without weights are counted, too."""


class Budget(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, an operation beyond what these tensors explain raises `ValueError` before it takes memory.

    Sizes are read off keys and shapes, and a crafted one may say that there are a billion layers. Entering raises it, too.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensors = tensors
        self.values = _VALUES * sum(tensor.numel() for tensor in tensors.values()) + _SPARE_VALUES
        self.calls = _CALLS * len(tensors) + _SPARE_CALLS

    def __enter__(self) -> Budget:
        largest = _INDICES * len(self.tensors) + _SPARE_INDICES
        for key in self.tensors:
            if any(part.isdecimal() and int(part[:18]) > largest for part in key.split(".")):
                raise ValueError(f"{key[:80]} names more layers than {len(self.tensors)} tensors explain")
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls -= 1
        given = tensors_in((args, kwargs))
        sides = [side for each in args[:1] for side in (each if isinstance(each, (list, tuple)) else [each])]
        expected = 0 if given else math.prod(int(side) for side in sides if isinstance(side, (int, float)))
        self._check(expected)
        out = function(*args, **(kwargs or {}))
        known = {storage_of(each) for each in given}
        self.values -= sum(each.numel() for each in tensors_in(out) if storage_of(each) not in known)
        self._check(0)
        return out

    def _check(self, expected: int) -> None:
        if self.values < expected or self.calls < 0:
            raise ValueError("it would be far larger than what the file holds")
