"""Choose the engine and the precision in which a bundle runs on this machine, and say why."""

from __future__ import annotations

from ..arguments import shown
from ..bundle import Bundle, Manifest
from ..engines import BACKENDS, PRECISIONS, Backend, Precision, supported_precisions
from ..errors import BundleError, EngineError, OptionError
from ..host import cpu
from .graph_times import faster_engine, faster_engines
from .speed import int8_against_float

__all__ = ["MAX_DROP_DB", "choose"]

MAX_DROP_DB = 0.02
"""Largest PSNR drop, in dB, of an int8 or bf16 variant that `auto` accepts."""
_ORDER: dict[Precision, tuple[Backend, ...]] = {
    # Decoders of 8 to 30 convolutions at 128×128 LR with two threads: ONNX Runtime takes 0.55 to 0.87 of OpenVINO's time on
    # a Xeon with AMX, and as long on an EPYC. It also stalls less at new sizes.
    "fp32": ("onnxruntime", "openvino"),
    "bf16": ("openvino",),
    # `rdsr bench runtime` with varying sizes: both take the same time within a twentieth, but OpenVINO stalls at each new
    # size, takes three times as long to start and needs twice the memory.
    "int8": ("onnxruntime", "openvino"),
}
"""Engines for each precision, the better one for a service first."""
_FASTER: tuple[Backend, ...] = ("openvino", "onnxruntime")
"""Engines for a decoder that attends over the whole picture, the faster one first; beside such times no stall counts.

DiffIR at 128×128 LR with two threads: OpenVINO 3.5 s in float32 and 2.3 s in int8, ONNX Runtime 4.1 s and 3.6 s."""


def choose(bundle: Bundle, backend: str, precision: str) -> tuple[Backend, Precision, str]:
    """Engine and precision for the options (each may be "auto"), with the reason.

    Raises `OptionError` if this machine cannot run them, `BundleError` if the bundle has no proven variant for them.
    """
    if backend not in ("auto", *BACKENDS):
        raise OptionError(f"backend must be auto, {' or '.join(BACKENDS)}, not {shown(backend)}")
    if precision not in ("auto", *PRECISIONS):
        raise OptionError(f"precision must be auto, {', '.join(PRECISIONS)}, not {shown(precision)}")
    if backend != "auto" and precision != "auto" and precision not in supported_precisions(backend):
        raise OptionError(f"{backend} has no {precision} convolution on CPUs; use openvino for {precision}")
    if precision == "bf16" and not cpu.has_bf16():
        raise OptionError("this CPU has no bf16 arithmetic; use fp32")
    chosen: Precision = precision  # type: ignore[assignment]
    reason, manifest = "asked for", bundle.manifest
    if precision == "auto":
        chosen, reason = _precision(bundle, backend)
    engine = _engine(manifest, backend, chosen)
    known = faster_engine(manifest, "decoder", chosen)
    if backend != "auto":
        why = "asked for"
    elif known is not None:
        why = " against ".join(f"{seconds:.2f} s" for seconds in sorted(known[1].values())) + " for the decoder here"
    elif engine != _order(manifest, chosen)[0] or chosen == "bf16":
        why = f"proven at {chosen}"
    else:
        why = "fewest stalls on unseen sizes" if engine == "onnxruntime" else "the faster one for such a network"
    if backend == "auto":
        why += "".join(f", but {role} in {other}" for role, other in faster_engines(manifest, engine, chosen).items())
    reasons = [f"{chosen}: {reason}", f"{engine}: {why}"]
    if not manifest.proven(chosen, engine):
        have = ", ".join(manifest.precisions) or "none"
        raise BundleError(f"the bundle {bundle.path} has no proven {chosen} variant for {engine}; proven are: {have}")
    return engine, chosen, "; ".join(reasons)


def _order(manifest: Manifest, precision: Precision) -> tuple[Backend, ...]:
    order = _FASTER if manifest.tile_rule == "overlap" else _ORDER[precision]
    if (known := faster_engine(manifest, "decoder", precision)) is not None:
        order = (known[0], *(engine for engine in order if engine != known[0]))
    return order


def _engine(manifest: Manifest, backend: str, precision: Precision) -> Backend:
    """The requested engine, or the first in order that is proven at this precision."""
    if backend != "auto":
        return backend  # type: ignore[return-value]
    order = _order(manifest, precision)
    return next((engine for engine in order if manifest.proven(precision, engine)), order[0])


def _precision(bundle: Bundle, backend: str) -> tuple[Precision, str]:
    """int8 if the CPU multiplies it natively and its PSNR drop is small; else bf16; else the faster of int8 and float32.

    Only proven precisions are chosen. A bundle that has nothing but int8 runs in int8, however large its drop is.
    """
    manifest = bundle.manifest
    int8, fp32 = _engine(manifest, backend, "int8"), _engine(manifest, backend, "fp32")
    drop = manifest.psnr_drop("int8", int8)
    native = cpu.has_vnni(capped=int8 == "openvino")
    limit = "" if cpu.isa_cap() is None else f" (ONEDNN_MAX_CPU_ISA={cpu.isa_cap()})"
    vnni_limit = limit if int8 == "openvino" else ""  # ONNX Runtime knows no such limit
    if not manifest.proven("int8", int8):
        no_int8 = "the bundle has no proven int8 variant" + ("" if backend == "auto" else f" for {backend}")
    elif not drop <= MAX_DROP_DB:
        no_int8 = f"int8 loses {drop:.3f} dB, more than {MAX_DROP_DB}"
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
    elif not (bf16_drop := manifest.psnr_drop("bf16", "openvino")) <= MAX_DROP_DB:
        no_bf16 = f"bf16 loses {bf16_drop:.3f} dB, more than {MAX_DROP_DB}"
    else:
        why_not = no_int8 or f"there is no VNNI{vnni_limit}"
        return "bf16", f"the CPU multiplies it natively, the bundle's proof passed, and {why_not}"
    if not manifest.proven("fp32", fp32):
        alone = "the bundle has no other proven variant" + ("" if backend == "auto" else f" for {backend}")
        return ("int8", alone) if manifest.proven("int8", int8) else ("fp32", no_int8)
    if no_int8:
        return "fp32", f"{no_int8}, and {no_bf16}"
    try:
        timing = int8_against_float(bundle, int8, fp32)
    except EngineError as error:
        return "fp32", f"int8 cannot be timed here ({error})"
    shown = f"{timing.int8_ms:.1f} ms against {timing.fp32_ms:.1f} ms of fp32"
    if timing.int8_ms < timing.fp32_ms:
        return "int8", f"the CPU has no VNNI{vnni_limit}, but int8 is still faster here ({shown})"
    return "fp32", f"the CPU has no VNNI{vnni_limit}, and int8 is no faster here ({shown})"
