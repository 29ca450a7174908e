"""OpenVINO IR of the single graph."""

from __future__ import annotations

from pathlib import Path

import openvino as ov

from ...runtime.engines.openvino_engine import shared_core

__all__ = ["to_ir"]


def to_ir(graph: bytes, folder: Path, stem: str) -> dict[str, bytes]:
    """`STEM.xml` and `STEM.bin` of an ONNX graph, float32 weights kept as they are; `folder` is for scratch files."""
    model = shared_core().read_model(graph)
    ov.save_model(model, folder / f"{stem}.xml", compress_to_fp16=False)
    return {name: (folder / name).read_bytes() for name in (f"{stem}.xml", f"{stem}.bin")}
