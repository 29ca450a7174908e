"""One addressed file: read, upscaled, written; and what became of it, in plain values that travel between machines."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import PurePosixPath

from ..errors import CancelledError, EngineError, OptionError, PictureError, RdsrError
from ..host.cancel import Cancel
from ..pictures.formats import WriteOptions, format_of
from ..upscaler import Upscaler
from .addresses import AddressedFile, read_address, write_address

__all__ = ["Outcome", "outcome_of"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one file. `error` says why nothing did."""

    input: str
    output: str
    size_in: tuple[int, int] | None = None
    """Height and width."""
    size_out: tuple[int, int] | None = None
    backend: str = ""
    precision: str = ""
    ms: float = 0.0
    decode_ms: float = 0.0
    encode_ms: float = 0.0
    warnings: tuple[str, ...] = ()
    input_sha256: str = ""
    output_sha256: str = ""
    error: str | None = None
    bad_input: bool = False
    """Whether the picture or an option is at fault, rather than the machine."""


def outcome_of(
    upscaler: Upscaler, file: AddressedFile, write: WriteOptions, max_pixels: int | None, cancel: Cancel | None = None
) -> Outcome:
    """Upscale one file. What is wrong with it is its outcome. Raises `EngineError` and `CancelledError`."""
    try:
        content = read_address(file.input)
        out = io.BytesIO()
        named = dataclasses.replace(write, format=format_of(PurePosixPath(file.output), write.format).name)
        done = upscaler.file(content, out, options=named, max_pixels=max_pixels, cancel=cancel)
        larger = out.getvalue()
        write_address(file.output, larger)
    except (EngineError, CancelledError):
        raise
    except RdsrError as error:
        sentence = str(error) if file.input in str(error) else f"{file.input}: {error}"
        bad_input = isinstance(error, (PictureError, OptionError))
        return Outcome(file.input, file.output, error=sentence, bad_input=bad_input)
    except MemoryError:
        return Outcome(file.input, file.output, error=f"{file.input}: there is not enough memory")
    return Outcome(
        file.input, file.output, done.size_in, done.size_out, done.backend, done.precision,
        done.ms, done.decode_ms, done.encode_ms, done.warnings,
        hashlib.sha256(content).hexdigest(), hashlib.sha256(larger).hexdigest(),
    )  # fmt: skip
