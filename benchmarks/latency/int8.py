"""`rdsr bench int8`: how much faster int8 is than float32, and how near it comes to what the machine can do."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.bundle import Bundle
from ...runtime.engines import BACKENDS, Precision, load_session
from ...runtime.host import cpu
from ...runtime.timing import interleaved_medians
from ...runtime.upscaler import Upscaler
from ..errors import BenchmarkError
from ..subjects.find import checkpoint_of
from .flops import bundle_gflops
from .peaks import STACK_CHANNELS, STACK_DEPTH, convolution_stack

__all__ = ["Int8Row", "measure_int8"]

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Int8Row:
    """One engine at one size. Times are medians in milliseconds over rounds in which every row ran once."""

    model: str
    weights: str
    """"trained", or "random": right for times, meaningless for quality."""
    engine: str
    size: tuple[int, int]
    """LR height and width."""
    threads: int
    rounds: int
    fp32_ms: float
    """The whole network as one graph, a uint8 array to a uint8 array."""
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
    """An `Upscaler` called with the array, in int8: encoder, reverse process and decoder one after the other."""
    call_overhead: float
    """call_ms / int8_ms − 1."""


def measure_int8(
    model: str,
    *,
    sizes: Sequence[tuple[int, int]] = ((128, 128), (272, 480)),
    threads: int | None = None,
    rounds: int = 10,
    progress: Progress = lambda what: None,
) -> list[Int8Row]:
    """Time `model` (a checkpoint, a shipped model's name, or a preset's name for random weights) on both engines.

    Raises `BenchmarkError` for what is none of these, and what export raises.
    """
    from ...export.exporter import ExportOptions, export_checkpoint

    threads = threads or cpu.available_threads()
    with tempfile.TemporaryDirectory() as scratch:
        progress("export")
        checkpoint, loaded = checkpoint_of(model, Path(scratch))
        output = Path(scratch) / "bundle"
        # The gate is about quality, of which random weights have none; what is timed is the same.
        options = ExportOptions(checkpoint=checkpoint, output=output, precisions=("fp32", "int8"), max_psnr_drop=1e3)
        if not export_checkpoint(options).passed:
            raise BenchmarkError(f"{model} is not timed: its export failed the proof")
        bundle = Bundle(output)
        rows = []
        for height, width in sizes:
            progress(f"timing at {height}×{width}")
            times = interleaved_medians(_calls(bundle, threads, height, width), rounds=rounds, warmup=2)
            gflop = bundle_gflops(bundle, height, width)
            stack = 2 * STACK_DEPTH * 9 * STACK_CHANNELS**2 * height * width / 1e9
            for engine in BACKENDS:
                fp32, int8, bare, call = (times[engine, what] for what in ("fp32", "int8", "stack", "call"))
                throughput, possible = 1e3 * gflop / int8, 1e3 * stack / bare
                rows.append(
                    Int8Row(
                        model,
                        loaded.weights,
                        engine,
                        (height, width),
                        threads,
                        rounds,
                        round(fp32, 2),
                        round(int8, 2),
                        round(fp32 / int8, 3),
                        round(bare, 2),
                        round(throughput, 1),
                        round(possible, 1),
                        round(throughput / possible, 3),
                        round(call, 2),
                        round(call / int8 - 1, 4),
                    )
                )
        return rows


def _calls(bundle: Bundle, threads: int, height: int, width: int) -> dict[tuple[str, str], Callable[[], object]]:
    """(engine, what) → one call."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    features = rng.integers(0, 256, (1, STACK_CHANNELS, height, width), dtype=np.uint8)
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for engine in BACKENDS:
        graphs: dict[str, tuple[bytes, Precision, Mapping[str, NDArray[Any]]]] = {
            "fp32": (bundle.graph("model"), "fp32", {"image": picture[None]}),
            "int8": (bundle.graph("model_int8"), "int8", {"image": picture[None]}),
            "stack": (convolution_stack(), "int8", {"x": features}),
        }
        for what, (graph, precision, inputs) in graphs.items():
            session = load_session(graph, backend=engine, precision=precision, threads=threads)
            calls[engine, what] = partial(session.run, inputs)
        upscaler = Upscaler.load(bundle.path, backend=engine, precision="int8", threads=threads)
        calls[engine, "call"] = partial(upscaler, picture)
    return calls
