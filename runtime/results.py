"""The answers of an `Upscaler`: how it runs, and its results."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

__all__ = ["Effective", "FileResult", "Result"]


@dataclasses.dataclass(frozen=True)
class Effective:
    """How an `Upscaler` really runs 8-bit pictures."""

    backend: str
    """"openvino" or "onnxruntime"."""
    precision: str
    """"fp32", "bf16" or "int8"."""
    threads: int
    """Number of the engine's threads."""
    isa: str
    """Vector instruction sets of this CPU, e.g. "avx512+vnni+bf16+amx"."""
    reason: str
    """Reason for this engine and this precision."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One upscaled picture, and the engine and precision that ran it."""

    picture: NDArray[Any]
    """sH×sW×C, of the input's kind."""
    backend: str
    precision: str
    ms: float
    """Wall-clock milliseconds."""


@dataclasses.dataclass(frozen=True)
class FileResult:
    """One upscaled file."""

    input: Path
    """"-" for content that was not read from a file; likewise `output`."""
    output: Path
    size_in: tuple[int, int]
    """Height and width."""
    size_out: tuple[int, int]
    backend: str
    precision: str
    ms: float
    """Wall-clock milliseconds of the upscaling, without reading and writing the files."""
    decode_ms: float = 0.0
    """Of reading the picture; 0 where it passed through in strips, which are read and written while others are upscaled."""
    encode_ms: float = 0.0
    warnings: tuple[str, ...] = ()
    """What users should know about the picture, a sentence each."""
    frames: int = 1
    """Pages in the output."""
