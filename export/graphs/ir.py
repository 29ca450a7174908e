"""OpenVINO IR of the single graph."""

from __future__ import annotations

from pathlib import Path

import openvino as ov

from ...runtime.engines.openvino_engine import shared_core

__all__ = ["to_ir"]


def to_ir(graph: bytes, folder: Path, stem: str) -> dict[str, bytes]:
    """Content of `STEM.xml` and `STEM.bin` for an ONNX graph, weights kept in float32. `folder` is for scratch files."""
    model = shared_core().read_model(graph)
    ov.save_model(model, folder / f"{stem}.xml", compress_to_fp16=False)
    return {name: (folder / name).read_bytes() for name in (f"{stem}.xml", f"{stem}.bin")}
