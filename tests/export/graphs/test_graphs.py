"""The exported graphs: channel order, structure, accounting, simplification, third-party engines."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn

from rdsr.export.errors import ProofError
from rdsr.export.graphs.accounting import SMALLEST, account, fingerprint, graph_constants
from rdsr.export.graphs.kind import DecoderGraph
from rdsr.export.graphs.plain_body import check_plain_body
from rdsr.export.graphs.simplify import simplify
from rdsr.export.graphs.trace import trace
from rdsr.models.rdsr import RDSR
from rdsr.runtime.engines.openvino_engine import shared_core
from rdsr.tests.conftest import CONFIG, random_network


class Shuffle(nn.Module):
    def __init__(self, factor: int, direction: str) -> None:
        super().__init__()
        self.factor = factor
        self.apply_shuffle = F.pixel_shuffle if direction == "shuffle" else F.pixel_unshuffle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.apply_shuffle(x, self.factor)


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("direction", ["shuffle", "unshuffle"])
def test_shuffles_keep_their_channel_order(factor: int, direction: str) -> None:
    """torch's dynamo exporter has swapped PixelUnshuffle's channels; every value differs here, so no swap can hide."""
    module = Shuffle(factor, direction)
    shape = (1, 3 * factor**2, 4, 5) if direction == "shuffle" else (1, 3, 4 * factor, 5 * factor)
    x = torch.arange(np.prod(shape), dtype=torch.float32).reshape(shape)
    free = {2: "h", 3: "w"}
    model = trace(module, {"x": x}, "y", {"x": free, "y": {2: "H", 3: "W"}})
    larger = torch.cat([x, x + 1e4], dim=3)
    for value in (x, larger):
        wanted = module(value).numpy()
        (plain,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": value.numpy()})
        compiled = shared_core().compile_model(
            shared_core().read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        assert np.array_equal(plain, wanted)
        assert np.array_equal(compiled({"x": value.numpy()})[0], wanted)


def test_convolution_bias_survives_tracing() -> None:
    """Conv bias shapes have been exported wrongly before."""
    module = nn.Sequential(nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(7, 5, 3, padding=1, bias=False))
    x = torch.rand(1, 3, 6, 8)
    model = trace(module, {"x": x}, "y", {"x": {2: "h", 3: "w"}})
    (plain,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})
    assert np.allclose(plain, module(x).detach().numpy(), atol=1e-5)


def test_decoder_body_is_plain(exported: Path) -> None:
    model = onnx.load(exported / "decoder.onnx")
    check_plain_body(model, CONFIG.depth, CONFIG.modulation_depths)
    with pytest.raises(ProofError, match=f"body convolution {CONFIG.depth}"):
        check_plain_body(model, CONFIG.depth + 1, CONFIG.modulation_depths)
    with pytest.raises(ProofError, match="the tail"):
        check_plain_body(model, CONFIG.depth - 1, CONFIG.modulation_depths)
    with pytest.raises(ProofError, match="followed by a Mul"):
        check_plain_body(model, CONFIG.depth, ())
    with pytest.raises(ProofError, match="not by the modulation"):
        check_plain_body(model, CONFIG.depth, (0, 1, 2))


def _traced_decoder(network: nn.Module) -> onnx.ModelProto:
    inputs = {"lr": torch.rand(1, 3, 8, 8), "z": torch.randn(1, CONFIG.latent_size)}
    space = {2: "h", 3: "w"}
    return trace(DecoderGraph(network), inputs, "sr", {"lr": space, "sr": {2: "H", 3: "W"}})


class Sigmoid(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(super().forward(x))


class UnfusedIdentity(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x * 0.5


@pytest.mark.parametrize(
    ("block", "word"),
    [
        (Sigmoid(CONFIG.width, CONFIG.width, 3, padding=1), "Sigmoid"),
        (UnfusedIdentity(CONFIG.width, CONFIG.width, 3, padding=1), "used by 2 nodes"),
        (nn.Conv2d(CONFIG.width, CONFIG.width, 1), r"kernel_shape \(1, 1\)"),
        (nn.Conv2d(CONFIG.width, CONFIG.width, 3, padding=2, dilation=2), "dilations"),
        (nn.Conv2d(CONFIG.width, CONFIG.width, 3, padding=1, groups=2), "group 2"),
    ],
)
def test_structure_check_finds_what_does_not_belong(block: nn.Module, word: str) -> None:
    network = random_network().fuse()
    check_plain_body(_traced_decoder(network), CONFIG.depth, CONFIG.modulation_depths)
    network.decoder.body[1] = block
    with pytest.raises(ProofError, match=word):
        check_plain_body(_traced_decoder(network), CONFIG.depth, CONFIG.modulation_depths)


def test_graphs_hold_every_deployed_weight_and_nothing_of_the_lpe(exported: Path, network: RDSR) -> None:
    deployed = [p.detach().numpy() for p in network.fuse().parameters()]
    lpe_values = {np.sort(p.detach().numpy().ravel()).tobytes() for p in network.lpe.parameters()}
    held = 0
    for name in ("encoder.onnx", "reverse.onnx", "decoder.onnx", "model.onnx"):
        constants = [value for _, value in graph_constants(onnx.load(exported / name))]
        assert not lpe_values & {np.sort(c.ravel()).tobytes() for c in constants}
        if name != "model.onnx":
            held += sum(c.size for c in constants if c.size >= SMALLEST)
    assert held == sum(p.size for p in deployed if p.size >= SMALLEST)


def test_accounting_names_a_smuggled_weight(exported: Path, network: RDSR) -> None:
    model = onnx.load(exported / "encoder.onnx")
    deployed = {fingerprint(p.detach().numpy()) for p in network.fuse().parameters()}
    lpe = {f"lpe.{k}": v.detach().numpy() for k, v in network.lpe.named_parameters()}
    marks = {fingerprint(value): key for key, value in lpe.items()}
    account(model, "encoder.onnx", deployed, marks)
    model.graph.initializer.append(numpy_helper.from_array(lpe["lpe.mlp.0.weight"].T.copy(), "innocent"))
    with pytest.raises(ProofError, match=r"lpe\.mlp\.0\.weight"):
        account(model, "encoder.onnx", deployed, marks)
    unknown = np.random.default_rng(0).random(99, dtype=np.float32)
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(unknown, "unknown"))
    with pytest.raises(ProofError, match="no deployed weight"):
        account(model, "encoder.onnx", deployed, marks)


def test_simplification_that_changes_the_result_is_not_taken(
    exported: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import onnxsim

    model = onnx.load(exported / "reverse.onnx")
    feed = {
        "pooled": np.random.default_rng(0).random((1, CONFIG.condition_width), dtype=np.float32),
        "noise": np.random.default_rng(1).standard_normal((1, CONFIG.latent_size), dtype=np.float32),
    }

    def broken(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
        changed = onnx.ModelProto()
        changed.CopyFrom(graph)
        weights = changed.graph.initializer[0]
        weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 1.01, weights.name))
        return changed, True

    def crashing(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
        raise RuntimeError("simplifier fell over")

    assert simplify(model, [feed], "reverse.onnx")[1]
    for wrong, word in ((broken, "differs"), (crashing, "fell over")):
        monkeypatch.setattr(onnxsim, "simplify", wrong)
        kept, simplified = simplify(model, [feed], "reverse.onnx")
        assert not simplified
        assert kept is model
        assert word in caplog.text


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (24, 33)])
def test_single_graph_in_plain_third_party_code(exported: Path, network: RDSR, size: tuple[int, int]) -> None:
    """Ten lines of anybody's code around model.onnx and model.xml give the picture, within one grey level."""
    onnx.checker.check_model(str(exported / "model.onnx"), full_check=True)
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)

    session = ort.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    from_ort = session.run(["upscaled"], {"image": image})[0]

    core = ov.Core()
    compiled = core.compile_model(core.read_model(exported / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    from_openvino = compiled({"image": image})["upscaled"]
    from_ir = core.compile_model(exported / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"image": image})[0]

    noise = torch.from_numpy(np.random.RandomState(0).standard_normal((1, CONFIG.latent_size)).astype(np.float32))
    with torch.no_grad():
        sr = network(torch.from_numpy(image).permute(0, 3, 1, 2) / 255, noise)
    wanted = (sr.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for picture in (from_ort, from_openvino, from_ir):
        assert picture.dtype == np.uint8
        assert picture.shape == wanted.shape == (1, 4 * size[0], 4 * size[1], 3)
        assert np.abs(picture.astype(int) - wanted).max() <= 1


def test_single_graph_takes_batches(exported: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 9, 6, 3), dtype=np.uint8)
    session = ort.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    batch = session.run(None, {"image": images})[0]
    single = np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])
    assert np.abs(batch.astype(int) - single).max() <= 1


@pytest.mark.parametrize("scale", [2, 3])
def test_other_scales_export_too(scale: int, tmp_path: Path) -> None:
    from rdsr.export.exporter import ExportOptions, export_checkpoint
    from rdsr.tests.conftest import write_checkpoint

    network = random_network(dataclasses.replace(CONFIG, scale=scale, unshuffle=2))
    path = write_checkpoint(tmp_path / "net.safetensors", network)
    result = export_checkpoint(
        ExportOptions(checkpoint=path, output=tmp_path / "out", precisions=("fp32",), single_graph=False)
    )
    assert result.passed
    assert result.to_dict()["scale"] == scale
