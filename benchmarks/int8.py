"""`rdsr bench int8`: how much faster int8 is than float32, and how near it comes to what the machine can do."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..runtime import cpu
from ..runtime.bundle import Bundle
from ..runtime.engines import BACKENDS, Precision, load_session
from ..runtime.timing import interleaved_medians
from ..runtime.upscaler import Upscaler
from .errors import BenchmarkError
from .flops import convolution_gflops

__all__ = ["Int8Row", "checkpoint_of", "convolution_stack", "measure_int8"]

Progress = Callable[[str], None]
STACK_CHANNELS = 64
STACK_DEPTH = 30


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


def convolution_stack(channels: int = STACK_CHANNELS, depth: int = STACK_DEPTH) -> bytes:
    """A QDQ graph of nothing but 3×3 convolutions and ReLU in int8: `x` 1×C×H×W uint8 → uint8, random weights."""
    rng = np.random.default_rng(0)
    gain = np.float32(1 / np.sqrt(9 * channels * 63 * 64 / 3 / 2))  # keeps the spread of activations from layer to layer
    constants = {"scale": np.float32(1 / 64), "zero": np.uint8(0), "weight_zero": np.zeros(channels, np.int8)}
    nodes = [helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["x0"])]
    for index in range(depth):
        kernel = rng.integers(-63, 64, (channels, channels, 3, 3)).astype(np.int8)
        constants |= {f"w{index}": kernel, f"s{index}": np.full(channels, gain)}
        nodes += [
            helper.make_node("DequantizeLinear", [f"w{index}", f"s{index}", "weight_zero"], [f"k{index}"], axis=0),
            helper.make_node("Conv", [f"x{index}", f"k{index}"], [f"y{index}"], kernel_shape=[3, 3], pads=[1] * 4),
            helper.make_node("Relu", [f"y{index}"], [f"r{index}"]),
            helper.make_node("QuantizeLinear", [f"r{index}", "scale", "zero"], [f"q{index}"]),
            helper.make_node("DequantizeLinear", [f"q{index}", "scale", "zero"], [f"x{index + 1}"]),
        ]
    nodes.pop()
    shape: list[str | int | None] = [1, channels, "height", "width"]
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(f"q{depth - 1}", TensorProto.UINT8, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


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
    from ..export.exporter import ExportOptions, export_checkpoint

    threads = threads or cpu.available_threads()
    with tempfile.TemporaryDirectory() as scratch:
        progress("export")
        checkpoint, weights, network = checkpoint_of(model, Path(scratch))
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
            gflop = convolution_gflops(network, height, width)
            stack = 2 * STACK_DEPTH * 9 * STACK_CHANNELS**2 * height * width / 1e9
            for engine in BACKENDS:
                fp32, int8, bare, call = (times[engine, what] for what in ("fp32", "int8", "stack", "call"))
                throughput, possible = 1e3 * gflop / int8, 1e3 * stack / bare
                rows.append(
                    Int8Row(
                        model,
                        weights,
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


def checkpoint_of(model: str, scratch: Path) -> tuple[Path, str, Any]:
    """(file, "trained" or "random", network) of a checkpoint, a shipped model or a preset."""
    import torch

    from ..models.checkpoint import save_checkpoint
    from ..models.rdsr import PRESETS, RDSR
    from ..models.registry import load_model, resolve_checkpoint

    path = resolve_checkpoint(model)
    if path.is_file():
        return path, "trained", load_model(path).network
    preset = model.removeprefix("rdsr-")
    if preset not in PRESETS:
        raise BenchmarkError(f"{model} is neither a checkpoint nor a shipped model nor a preset ({', '.join(PRESETS)})")
    torch.manual_seed(0)
    network = RDSR(PRESETS[preset])
    with torch.no_grad():
        for parameter in network.decoder.modulation.parameters():  # they start as zero, and zeros would be optimized away
            parameter.normal_(std=0.01)
    path = scratch / "random.safetensors"
    save_checkpoint(path, network.state_dict(), "rdsr", network.config.to_dict())
    return path, "random", network


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
