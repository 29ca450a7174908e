"""What an `Upscaler` says of itself and of what it did."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

__all__ = ["Effective", "FileResult", "Result"]


@dataclasses.dataclass(frozen=True)
class Effective:
    """What an `Upscaler` really runs 8-bit pictures with."""

    backend: str
    """"openvino" or "onnxruntime"."""
    precision: str
    """"fp32", "bf16" or "int8"."""
    threads: int
    """Threads of the engine."""
    isa: str
    """Vector instruction sets of this CPU, e.g. "avx512+vnni+bf16+amx"."""
    reason: str
    """Why this engine and this precision."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One upscaled picture and what it ran in."""

    picture: NDArray[Any]
    """sH×sW×C of the input's kind."""
    backend: str
    precision: str
    ms: float
    """Wall-clock milliseconds."""


@dataclasses.dataclass(frozen=True)
class FileResult:
    """One upscaled file."""

    input: Path
    output: Path
    size_in: tuple[int, int]
    """Height and width."""
    size_out: tuple[int, int]
    backend: str
    precision: str
    ms: float
    """Wall-clock milliseconds of the upscaling, without reading and writing the files."""
