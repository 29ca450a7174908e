"""Read networks of others through spandrel (extra `[foreign]`).

spandrel (https://github.com/chaiNNer-org/spandrel, MIT) knows the architectures by the keys of their checkpoints. It gets
tensors that `checkpoint.py` has read, so no pickle runs.
"""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, UnsupportedModelError
from .budget import Budget
from .network import Foreign, ForeignConfig

__all__ = ["UnknownToSpandrelError", "read_foreign"]

SCALES = (1, 2, 3, 4, 8)
_MISSING_KERNELS = 50
"""More than torchvision has."""
_PURPOSES = ("SR", "FaceSR", "Restoration")


class UnknownToSpandrelError(UnsupportedModelError):
    """spandrel knows no architecture with these keys."""


def read_foreign(tensors: Callable[[], Mapping[str, Tensor]]) -> Foreign:
    """A network with these weights, as float32. `tensors` reads them, which is not done without spandrel.

    Raises `UnsupportedModelError`, which names what is not supported, `CheckpointError`, and `ModuleNotFoundError` without
    spandrel.
    """
    registry = _spandrel()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about what their code does
        network = _read(registry, tensors())
    warnings.filterwarnings("ignore", message="torch.meshgrid")  # which their code calls in an old way
    return network


def _read(registry: Any, tensors: Mapping[str, Tensor]) -> Foreign:
    from spandrel import ImageModelDescriptor, ModelTiling, canonicalize_state_dict
    from spandrel import UnsupportedModelError as Unknown

    try:
        with Budget(tensors):
            found = registry.load(canonicalize_state_dict(dict(tensors)))
    except Unknown:
        raise UnknownToSpandrelError from None
    except Exception as error:  # crafted or unusual sizes end anywhere in its code
        raise CheckpointError(f"spandrel cannot build this network: {' '.join(str(error).split())}") from error
    name = str(found.architecture.id)
    if not isinstance(found, ImageModelDescriptor) or found.purpose not in _PURPOSES:
        raise UnsupportedModelError(f"{name} is a network for {found.purpose.lower()}, not for super-resolution")
    if (found.input_channels, found.output_channels) != (3, 3):
        raise UnsupportedModelError(
            f"this {name} takes {found.input_channels} and gives {found.output_channels} channels; only RGB is supported"
        )
    if found.scale not in SCALES:
        raise UnsupportedModelError(f"this {name} has the scale {found.scale}; supported are {', '.join(map(str, SCALES))}")
    needs = found.size_requirements
    if needs.square:
        raise UnsupportedModelError(f"this {name} takes square pictures only")
    config = ForeignConfig(
        architecture=name,
        scale=found.scale,
        minimum=needs.minimum,
        multiple=needs.multiple_of,
        whole=found.tiling is ModelTiling.INTERNAL,
    )
    network = Foreign(config, found.model.float(), found._call_fn).eval().requires_grad_(False)
    lr = network.example()
    try:
        shape = network.decode(lr).shape
    except Exception as error:  # as above
        raise CheckpointError(f"this {name} cannot run: {' '.join(str(error).split())}") from error
    if shape != (1, 3, lr.shape[2] * found.scale, lr.shape[3] * found.scale):
        raise UnsupportedModelError(
            f"this {name} turns {list(lr.shape)} into {list(shape)}, which is no upscaling by {found.scale}"
        )
    return network


def _spandrel() -> Any:
    """Its registry of architectures. Raises `ModuleNotFoundError`, of which the command line makes a sentence."""
    for _ in range(_MISSING_KERNELS):
        try:
            importlib.import_module("torchvision")
            break
        except RuntimeError as error:
            # torchvision's kernels were built for another torch. Super-resolution needs none of them, but torchvision is
            # imported only if they are declared. Whoever calls one in this process is told that it has no implementation.
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            if not _DECLARED:
                _DECLARED.append(torch.library.Library("torchvision", "DEF"))  # type: ignore[no-untyped-call]
            _DECLARED[0].define(f"{missing[1]}(Tensor x) -> Tensor")
            for module in [each for each in sys.modules if each.split(".")[0] == "torchvision"]:
                del sys.modules[module]
    return importlib.import_module("spandrel").MAIN_REGISTRY


_DECLARED: list[Any] = []
"""The library of declared operators, which are gone when nobody holds it."""
