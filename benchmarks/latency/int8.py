"""Measure `rdsr bench int8`: how much faster int8 is than float32, and how near it comes to the machine's best."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ...runtime.bundle import Bundle
from ...runtime.engines import BACKENDS
from ...runtime.host import cpu
from ...runtime.timing import interleaved_medians
from ...runtime.upscaler import Upscaler
from ..errors import BenchmarkError
from ..subjects.find import checkpoint_of
from .flops import bundle_gflops
from .peaks import STACK_CHANNELS, convolution_stack, engine_call, stack_gflop

__all__ = ["Int8Row", "measure_int8"]


@dataclasses.dataclass(frozen=True)
class Int8Row:
    """One engine at one size. Times are medians in milliseconds over rounds; every round runs every row once."""

    model: str
    weights: str
    """"trained", or "random": right for times, meaningless for quality."""
    engine: str
    size: tuple[int, int]
    """LR height and width."""
    threads: int
    rounds: int
    fp32_ms: float
    """The whole network as one graph, from a uint8 array to a uint8 array."""
    int8_ms: float
    speedup: float
    """fp32_ms / int8_ms."""
    stack_ms: float
    """A bare int8 stack of 30 convolutions of 64 channels on the same engine and size."""
    int8_gflops: float
    """Throughput of the int8 network, 10⁹ operations a second."""
    stack_gflops: float
    share_of_stack: float
    """int8_gflops / stack_gflops."""
    call_ms: float
    """An `Upscaler` in int8 called with the array: encoder, reverse process and decoder one after the other."""
    call_overhead: float
    """call_ms / int8_ms − 1."""


def measure_int8(
    model: str,
    *,
    sizes: Sequence[tuple[int, int]] = ((128, 128), (272, 480)),
    threads: int | None = None,
    rounds: int = 10,
    progress: Callable[[str], None] = lambda step: None,
) -> list[Int8Row]:
    """Time `model` (a checkpoint, a shipped model's name, or a preset's name for random weights) on both engines.

    Raises `BenchmarkError` if it is none of these or its export fails the proof, and what export raises.
    """
    from ...export.exporter import ExportOptions, export_checkpoint

    threads = threads or cpu.available_threads()
    with tempfile.TemporaryDirectory() as scratch:
        progress("export")
        checkpoint, loaded = checkpoint_of(model, Path(scratch))
        output = Path(scratch) / "bundle"
        # No limit to the loss of quality: random weights have no quality, and times do not depend on it.
        options = ExportOptions(checkpoint=checkpoint, output=output, precisions=("fp32", "int8"), max_psnr_drop=1e3)
        if not export_checkpoint(options).passed:
            raise BenchmarkError(f"{model} is not timed: its export failed the proof")
        rows = []
        for height, width in sizes:
            progress(f"timing at {height}×{width}")
            bundle = Bundle(output)
            times = interleaved_medians(_calls(bundle, threads, height, width), rounds=rounds, warmup=2)
            for engine in BACKENDS:
                fp32, int8, stack, call = (times[engine, what] for what in ("fp32", "int8", "stack", "call"))
                rate = 1e3 * bundle_gflops(bundle, height, width) / int8
                best = 1e3 * stack_gflop(height, width) / stack
                row = Int8Row(
                    model=model,
                    weights=loaded.weights,
                    engine=engine,
                    size=(height, width),
                    threads=threads,
                    rounds=rounds,
                    fp32_ms=round(fp32, 2),
                    int8_ms=round(int8, 2),
                    speedup=round(fp32 / int8, 3),
                    stack_ms=round(stack, 2),
                    int8_gflops=round(rate, 1),
                    stack_gflops=round(best, 1),
                    share_of_stack=round(rate / best, 3),
                    call_ms=round(call, 2),
                    call_overhead=round(call / int8 - 1, 4),
                )
                rows.append(row)
        return rows


def _calls(bundle: Bundle, threads: int, height: int, width: int) -> dict[tuple[str, str], Callable[[], object]]:
    """Load every engine; return (engine, what) → a function that makes one call."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = {"image": picture[None]}
    features = {"x": rng.integers(0, 256, (1, STACK_CHANNELS, height, width), dtype=np.uint8)}
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for engine in BACKENDS:
        upscaler = Upscaler.load(bundle.path, backend=engine, precision="int8", threads=threads)
        calls |= {
            (engine, "fp32"): engine_call(bundle.graph("model"), image, engine, "fp32", threads),
            (engine, "int8"): engine_call(bundle.graph("model_int8"), image, engine, "int8", threads),
            (engine, "stack"): engine_call(convolution_stack(), features, engine, "int8", threads),
            (engine, "call"): partial(upscaler, picture),
        }
    return calls
