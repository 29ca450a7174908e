"""Which engine and which precision a bundle runs in on this machine, and why."""

from __future__ import annotations

from ..bundle import Bundle, Manifest
from ..engines import BACKENDS, PRECISIONS, Backend, Precision, supported_precisions
from ..errors import BundleError, EngineError, OptionError
from ..host import cpu
from .speed import Timing, int8_against_float

__all__ = ["MAX_INT8_DROP_DB", "choose"]

MAX_INT8_DROP_DB = 0.02
"""Largest PSNR drop of an int8 variant that `auto` puts up with."""
_ORDER: dict[Precision, tuple[Backend, ...]] = {
    # Decoders of 8 to 30 convolutions at 128×128 LR, two threads: ONNX Runtime takes 0.55 to 0.87 of OpenVINO's time on a
    # Xeon with AMX, and the two are equal on an EPYC; new sizes stall it less as well.
    "fp32": ("onnxruntime", "openvino"),
    "bf16": ("openvino",),
    # `rdsr bench runtime`: where sizes vary, the two take the same time within a twentieth, but OpenVINO stalls at each size
    # that it has not seen, starts three times as slowly and needs twice the memory.
    "int8": ("onnxruntime", "openvino"),
}
"""Engines of a precision, the one that serves better first."""
_FASTER: tuple[Backend, ...] = ("openvino", "onnxruntime")
"""Engines for a decoder that attends over the whole picture: DiffIR at 128×128, two threads, takes OpenVINO 3.5 s in float32
and 2.3 in int8, ONNX Runtime 4.1 and 3.6, beside which no stall counts."""


def choose(bundle: Bundle, backend: str, precision: str) -> tuple[Backend, Precision, str]:
    """Engine and precision for what was asked (or "auto"), with the reason.

    Raises `OptionError` for what cannot be had on this machine, `BundleError` where the bundle has no proven variant.
    """
    if backend not in ("auto", *BACKENDS):
        raise OptionError(f"backend must be auto, {' or '.join(BACKENDS)}, not {backend!r}")
    if precision not in ("auto", *PRECISIONS):
        raise OptionError(f"precision must be auto, {', '.join(PRECISIONS)}, not {precision!r}")
    if backend != "auto" and precision != "auto" and precision not in supported_precisions(backend):
        raise OptionError(f"{backend} has no {precision} convolution on CPUs; use openvino for {precision}")
    if precision == "bf16" and not cpu.has_bf16():
        raise OptionError("this CPU has no bf16 arithmetic; use fp32")
    if precision == "auto":
        chosen, reason = _precision(bundle, backend)
    else:
        chosen, reason = precision, "asked for"  # type: ignore[assignment]
    manifest = bundle.manifest
    engine = _engine(manifest, backend, chosen)
    if backend != "auto":
        why = "asked for"
    elif engine != _order(manifest, chosen)[0] or chosen == "bf16":
        why = f"proven at {chosen}"
    else:
        why = f"new sizes stall it least at {chosen}" if engine == "onnxruntime" else "the faster one for such a network"
    reasons = [f"{chosen}: {reason}", f"{engine}: {why}"]
    if not manifest.proven(chosen, engine):
        have = ", ".join(manifest.precisions) or "none"
        raise BundleError(f"the bundle {bundle.path} has no proven {chosen} variant for {engine}; proven are: {have}")
    return engine, chosen, "; ".join(reasons)


def _order(manifest: Manifest, precision: Precision) -> tuple[Backend, ...]:
    return _FASTER if manifest.tile_rule == "overlap" else _ORDER[precision]


def _engine(manifest: Manifest, backend: str, precision: Precision) -> Backend:
    """The engine asked for, or the first in order that is proven at this precision."""
    if backend != "auto":
        return backend  # type: ignore[return-value]
    order = _order(manifest, precision)
    return next((engine for engine in order if manifest.proven(precision, engine)), order[0])


def _precision(bundle: Bundle, backend: str) -> tuple[Precision, str]:
    """int8 where the CPU is made for it and it costs nothing to speak of; else bf16; else the faster of int8 and float32.

    What is not proven is not chosen; a bundle that has int8 alone runs in int8, whatever it loses.
    """
    manifest = bundle.manifest
    int8, fp32 = _engine(manifest, backend, "int8"), _engine(manifest, backend, "fp32")
    drop = manifest.psnr_drop("int8", int8)
    native = cpu.has_vnni(capped=int8 == "openvino")
    limit = "" if cpu.isa_cap() is None else f" (ONEDNN_MAX_CPU_ISA={cpu.isa_cap()})"
    vnni_limit = limit if int8 == "openvino" else ""  # ONNX Runtime knows no such limit
    if not manifest.proven("int8", int8):
        no_int8 = "the bundle has no proven int8 variant" + ("" if backend == "auto" else f" for {backend}")
    elif not drop <= MAX_INT8_DROP_DB:
        no_int8 = f"int8 loses {drop:.3f} dB, more than {MAX_INT8_DROP_DB}"
    elif native:
        return "int8", f"the CPU multiplies 8-bit numbers natively, and it loses {max(drop, 0):.3f} dB"
    else:
        no_int8 = ""
    if backend == "onnxruntime":
        no_bf16 = "onnxruntime has no bf16 convolution"
    elif not cpu.has_bf16():
        no_bf16 = f"the CPU has no bf16{limit}"
    elif not manifest.proven("bf16", "openvino"):
        no_bf16 = "the bundle has no proven bf16 variant"
    else:
        return (
            "bf16",
            f"the CPU multiplies it natively, the bundle's proof passed, and {no_int8 or f'there is no VNNI{vnni_limit}'}",
        )
    if not manifest.proven("fp32", fp32):
        alone = "the bundle has no other proven variant" + ("" if backend == "auto" else f" for {backend}")
        return ("int8", alone) if manifest.proven("int8", int8) else ("fp32", no_int8)
    if no_int8:
        return "fp32", f"{no_int8}, and {no_bf16}"
    try:
        return _faster(int8_against_float(bundle, int8, fp32), vnni_limit)
    except EngineError as error:
        return "fp32", f"int8 cannot be timed here ({error})"


def _faster(timing: Timing, limit: str) -> tuple[Precision, str]:
    shown = f"{timing.int8_ms:.1f} ms against {timing.fp32_ms:.1f} ms of fp32"
    if timing.int8_ms < timing.fp32_ms:
        return "int8", f"the CPU has no VNNI{limit}, its int8 is still the faster one here ({shown})"
    return "fp32", f"the CPU has no VNNI{limit}, and its int8 is no faster here ({shown})"
