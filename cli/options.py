"""Options that several commands share. An option with few values is a `Literal` or an enum, so that `--help` lists them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = [
    "ArchOption", "AutoencoderOption", "BackendOption", "BundleOption", "BundlesOption", "CompressionOption",
    "DegradationOption", "DeviceOption", "Engine", "FormatOption",
    "FramesOption", "JsonOption", "LosslessOption", "MaxPixelsOption", "MemoryLimitOption", "PrecisionOption",
    "QualityOption", "ScaleOption", "SeedOption", "SizeOption", "ThreadsOption",
]  # fmt: skip

JsonOption = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout, nothing else.")]
ArchOption = Annotated[str | None, typer.Option(help="Name of the architecture; default: detected from the keys.")]
AutoencoderOption = Annotated[Path | None, typer.Option(help="Checkpoint of the autoencoder, for ResShift, SinSR and RSD.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads; default: all that affinity and quota allow.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the initial latent.")]
Backend = Literal["auto", "openvino", "onnxruntime"]
Precision = Literal["auto", "fp32", "bf16", "int8"]
PictureFormat = Literal["png", "jpg", "webp", "tif", "avif", "bmp"]
Frames = Literal["first", "all"]
Device = Literal["auto", "cpu", "cuda"]


class Degradation(StrEnum):
    """Ways of `find_dataset` to make LR from HR. Importing them here would make `--help` slow."""

    BICUBIC = "bicubic"
    NOISE = "noise"
    BLUR = "blur"
    JPEG = "jpeg"
    MIXED = "mixed"


class Engine(StrEnum):
    """Engines of `rdsr bench latency`."""

    TORCH_EAGER = "torch-eager"
    TORCH_COMPILE = "torch-compile"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    OPENCV = "opencv"


BundleOption = Annotated[str | None, typer.Option("--bundle", help="Bundle folder; default: the package's own.")]
BundlesOption = Annotated[
    list[str] | None, typer.Option("--bundle", help="Bundle folder; default: the package's own. May be repeated.")
]
SizeOption = Annotated[list[str] | None, typer.Option("--size", help="HxW of the LR picture; may be repeated.")]
BackendOption = Annotated[Backend, typer.Option(help="Inference engine.")]
MemoryLimitOption = Annotated[
    str | None, typer.Option(help="Limit of all memory, pictures included, e.g. 256MiB; tiles are cut to fit.")
]
PrecisionOption = Annotated[Precision, typer.Option(help="Precision for 8-bit pictures; others run in fp32.")]
DeviceOption = Annotated[Device, typer.Option(help="Where to train.")]
DegradationOption = Annotated[
    list[Degradation] | None,
    typer.Option(help="Make LR from HR in this fixed way; may be repeated. It needs no LR folder."),
]
ScaleOption = Annotated[
    float | None, typer.Option(help="How many times larger, above 0 and up to the network's own scale, the default.")
]
FormatOption = Annotated[
    PictureFormat | None, typer.Option("--format", help="Format of the outputs; default: by suffix, as the input.")
]
QualityOption = Annotated[int | None, typer.Option(help="1 to 100, for JPEG, WebP and AVIF; default: 95 (AVIF: 85).")]
LosslessOption = Annotated[bool, typer.Option("--lossless", help="Write WebP and AVIF without loss.")]
CompressionOption = Annotated[
    int | None, typer.Option(help="0 to 9, for PNG and TIFF: higher is smaller and slower; default: 1 (TIFF: 6).")
]
FramesOption = Annotated[
    Frames, typer.Option(help="Of animations and files of several pages: the first picture, or all, numbered.")
]
MaxPixelsOption = Annotated[
    int | None, typer.Option(min=1, help="Most pixels of an input; default: as many as the memory allows.")
]
