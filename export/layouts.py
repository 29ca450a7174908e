"""Model repositories: the folders that OpenVINO Model Server and Triton Inference Server load as they are.

OpenVINO Model Server decodes pictures that are sent encoded itself, to BGR, so it gets a second model that takes and gives
BGR: https://docs.openvino.ai/2024/ovms_docs_binary_input_layout_and_shape.html.
Triton: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from ..runtime.bundle import Bundle
from ..runtime.engines.openvino_engine import shared_core
from .errors import ExportError
from .staging import check_new, staging_folder

__all__ = ["Layout", "lay_out"]

Layout = Literal["ovms", "triton"]
_VERSION = "1"
_MOUNTED = "/models"
"""Where the container images of both servers expect the folder."""


def lay_out(bundle: Bundle, target: Path, layout: Layout, name: str) -> tuple[str, ...]:
    """Write the single graphs of a bundle as a model repository, whole or not at all. Returns the names of its models.

    `name`: of the float model; "-int8" and "-bgr" follow for others.
    Raises `OutputExistsError`, and `ExportError` for a bundle without single graphs.
    """
    check_new(target)
    graphs = {name: "model"} | ({f"{name}-int8": "model_int8"} if "model_int8" in bundle.manifest.graphs else {})
    if "model" not in bundle.manifest.graphs:
        raise ExportError(
            f"networks of {bundle.manifest.arch} cannot be one graph, which model servers need; `rdsr serve` runs them"
        )
    with staging_folder(target) as folder:
        write = _ovms if layout == "ovms" else _triton
        models = write(bundle, graphs, folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        folder.rename(target.absolute())
    return models


def _ovms(bundle: Bundle, graphs: dict[str, str], folder: Path) -> tuple[str, ...]:
    """NAME/1/model.xml and .bin for each model, and the server's `config.json`."""
    entries = []
    for name, role in graphs.items():
        for suffix, reverse in (("", False), ("-bgr", True)):
            place = folder / f"{name}{suffix}" / _VERSION
            place.mkdir(parents=True)
            manifest = bundle.manifest
            model = shared_core().read_model(
                bundle.read(manifest.graphs[f"{role}_ir"]), bundle.read(manifest.graphs[f"{role}_ir_weights"])
            )
            ov.save_model(_in_bgr(model) if reverse else model, place / "model.xml", compress_to_fp16=False)
            config = {"name": f"{name}{suffix}", "base_path": f"{_MOUNTED}/{name}{suffix}", "layout": "NHWC"}
            entries.append({"config": config})
    (folder / "config.json").write_text(json.dumps({"model_config_list": entries}, indent=2) + "\n")
    return tuple(entry["config"]["name"] for entry in entries)


def _in_bgr(model: ov.Model) -> ov.Model:
    """The model between pictures in BGR."""
    image, result = model.input(), model.get_results()[0]
    takers = list(image.get_target_inputs())
    reversed_image = _reversed(image)
    for taker in takers:
        taker.replace_source_output(reversed_image)
    picture = result.input_value(0)
    names = picture.get_names()
    reversed_picture = _reversed(picture)
    picture.set_names(set())
    reversed_picture.set_names(names)
    result.input(0).replace_source_output(reversed_picture)
    model.validate_nodes_and_infer_types()
    model.set_rt_info("BGR", ["framework", "colour"])
    return model


def _reversed(pictures: Any) -> Any:
    """The last axis, of three, from its end."""
    order, axis = (ops.constant(np.array(value, np.int64)) for value in ([2, 1, 0], 3))
    return ops.gather(pictures, order, axis).output(0)


def _triton(bundle: Bundle, graphs: dict[str, str], folder: Path) -> tuple[str, ...]:
    """NAME/1/model.onnx and NAME/config.pbtxt for each model."""
    for name, role in graphs.items():
        place = folder / name / _VERSION
        place.mkdir(parents=True)
        (place / "model.onnx").write_bytes(bundle.read(bundle.manifest.graphs[role]))
        (folder / name / "config.pbtxt").write_text(_CONFIG.format(name=name))
    return tuple(graphs)


_CONFIG = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: 0
input [
  {{
    name: "image"
    data_type: TYPE_UINT8
    dims: [ -1, -1, -1, 3 ]
  }}
]
output [
  {{
    name: "upscaled"
    data_type: TYPE_UINT8
    dims: [ -1, -1, -1, 3 ]
  }}
]
instance_group [
  {{
    count: 1
    kind: KIND_CPU
  }}
]
"""
