"""Model repositories of OpenVINO Model Server and Triton, checked against their documented rules. No server runs here."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
import pytest
from google.protobuf import text_format

from rdsr.export.errors import ExportError, OutputExistsError
from rdsr.export.layouts import lay_out
from rdsr.runtime import Upscaler
from rdsr.runtime.bundle import Bundle
from rdsr.tests.cli.running import refused, run
from rdsr.tests.conftest import rewrite_manifest

PICTURE = np.random.RandomState(0).randint(0, 256, (1, 20, 33, 3)).astype(np.uint8)


def run_ir(path: Path, picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(compiled({"image": picture})[0])


def test_openvino_model_server(bundle: Path, tmp_path: Path) -> None:
    models = lay_out(Bundle(bundle), tmp_path / "models", "ovms", "net")
    assert models == ("net", "net-bgr", "net-int8", "net-int8-bgr")
    listed = json.loads((tmp_path / "models/config.json").read_text())["model_config_list"]
    for entry, name in zip(listed, models, strict=True):
        assert entry == {"config": {"name": name, "base_path": f"/models/{name}", "layout": "NHWC"}}
        (version,) = (tmp_path / "models" / name).iterdir()
        assert version.name.isdigit(), "versions are positive whole numbers"
        assert sorted(path.suffix for path in version.iterdir()) == [".bin", ".xml"]
        model = ov.Core().read_model(version / "model.xml")
        assert [port.get_any_name() for port in (*model.inputs, *model.outputs)] == ["image", "upscaled"]
        assert all(port.get_element_type() == ov.Type.u8 for port in (*model.inputs, *model.outputs))
        shape = model.input().get_partial_shape()
        assert [axis.is_dynamic for axis in shape] == [True, True, True, False]
        facts = model.get_rt_info(["framework", "colour"]).value
        assert facts == ("BGR" if name.endswith("-bgr") else "RGB")
    rgb = run_ir(tmp_path / "models/net/1/model.xml", PICTURE)
    bgr = run_ir(tmp_path / "models/net-bgr/1/model.xml", PICTURE[..., ::-1].copy())
    assert np.abs(rgb.astype(int) - Upscaler.load(bundle, backend="openvino", precision="fp32")(PICTURE[0])).max() <= 1
    assert np.array_equal(rgb, bgr[..., ::-1])


def model_config() -> Any:
    """Triton's own message, of a package that otherwise wants gRPC."""
    spec = importlib.util.find_spec("tritonclient")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "grpc/model_config_pb2.py"
    loaded = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert loaded is not None
    assert loaded.loader is not None
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    return module.ModelConfig()


def test_triton(bundle: Path, tmp_path: Path) -> None:
    models = lay_out(Bundle(bundle), tmp_path / "models", "triton", "net")
    assert models == ("net", "net-int8")
    for name in models:
        folder = tmp_path / "models" / name
        config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config())
        assert (config.name, config.backend, config.max_batch_size) == (name, "onnxruntime", 0)
        graph = onnx.load(folder / "1/model.onnx").graph
        for entry, port in ((config.input[0], graph.input[0]), (config.output[0], graph.output[0])):
            assert entry.name == port.name
            assert entry.data_type == config.input[0].data_type
            assert list(entry.dims) == [-1, -1, -1, 3]
            assert port.type.tensor_type.elem_type == onnx.TensorProto.UINT8
            assert len(port.type.tensor_type.shape.dim) == 4


def test_nothing_is_replaced(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(OutputExistsError, match="nothing replaces"):
        lay_out(Bundle(bundle), tmp_path / "models", "ovms", "net")
    rewrite_manifest(bundle, graphs={"decoder": "decoder.onnx"})
    with pytest.raises(ExportError, match="cannot be one graph"):
        lay_out(Bundle(bundle), tmp_path / "other", "triton", "net")
    assert [entry.name for entry in tmp_path.iterdir() if entry.name in ("models", "other")] == ["models"]


def test_options_that_exclude_each_other(tmp_path: Path) -> None:
    result = run("export", "rdsr-tiny", "-o", tmp_path / "x", "--layout", "ovms", "--keep-failed")
    refused(result, "goes together with neither")
