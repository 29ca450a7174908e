"""DiffIR on the same road as RDSR: a released checkpoint becomes a proven bundle that upscales."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from rdsr.export.exporter import ExportOptions, ExportResult, export_checkpoint
from rdsr.export.int8.forms import ConvolutionsForm
from rdsr.export.int8.qdq import insert_qdq_around
from rdsr.models.checkpoint import save_checkpoint
from rdsr.models.diffir import DiffIR, DiffIRConfig
from rdsr.models.diffusion import Schedule
from rdsr.models.errors import CheckpointError
from rdsr.models.int8.convolutions import Levels, QuantizedConv2d, observe, quantize_convolutions
from rdsr.models.int8.levels import PAIR_LEVELS
from rdsr.models.interface import LatentPriorNetwork
from rdsr.models.registry import load_model
from rdsr.runtime import Upscaler
from rdsr.runtime.bundle import Bundle
from rdsr.runtime.host import cpu
from rdsr.runtime.metrics import psnr_rgb
from rdsr.runtime.verify import verify
from rdsr.tests.conftest import DIFFIR_CONFIG


def network(config: DiffIRConfig = DIFFIR_CONFIG) -> DiffIR:
    torch.manual_seed(0)
    return DiffIR(config).eval()


def released_form(model: DiffIR) -> dict[str, torch.Tensor]:
    """The state dict as released checkpoints have it: denoiser and condition encoder twice, and buffers of the schedule."""
    state = dict(model.state_dict())
    for repeated, first in (("diffusion.model.", "denoise."), ("diffusion.condition.", "condition.")):
        state |= {repeated + key.removeprefix(first): value for key, value in state.items() if key.startswith(first)}
    betas = torch.tensor(model.schedule.betas, dtype=torch.float32)
    return state | {"diffusion.betas": betas, "diffusion.alphas_cumprod": (1 - betas).cumprod(0)}


def save_released(path: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save({"params_ema": state, "params": {key: value + 1 for key, value in state.items()}}, path)
    return path


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    folder = tmp_path_factory.mktemp("diffir")
    path = save_released(folder / "released.pth", released_form(network()))
    return export_checkpoint(ExportOptions(checkpoint=path, output=folder / "diffir.bundle"))


def test_a_released_checkpoint_becomes_a_proven_bundle(result: ExportResult) -> None:
    assert result.passed
    assert not result.unsimplified
    rows = {(row.precision, row.engine, row.graph) for row in result.verification.variants}
    for graph in ("decoder", "model"):
        for engine in ("openvino", "onnxruntime"):
            assert ("fp32", engine, f"{graph}.onnx") in rows
            assert ("int8", engine, f"{graph}.int8.onnx") in rows
    assert (("bf16", "openvino", "decoder.onnx") in rows) == cpu.has_bf16()
    fp32 = [row.max_abs_err for row in result.verification.variants if row.precision == "fp32"]
    assert all(error is not None and error < 1e-5 for error in fp32)
    manifest = Bundle(result.output).manifest
    assert (manifest.arch, manifest.tile_rule, manifest.receptive_radius) == ("diffir", "overlap", None)
    assert manifest.params == sum(p.numel() for p in network().parameters())
    assert verify(Bundle(result.output)).passed


def test_what_it_upscales_to_is_what_torch_gives(result: ExportResult) -> None:
    model = load_model(result.output.parent / "released.pth").network
    picture = np.random.default_rng(0).integers(0, 256, (13, 22, 3), dtype=np.uint8)
    lr = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    for backend in ("openvino", "onnxruntime"):
        upscaler = Upscaler.load(result.output, backend=backend, precision="fp32", threads=1)
        noise = torch.from_numpy(upscaler._pipelines.of((backend, "fp32"))._noise)
        with torch.no_grad():
            expected = (model(lr, noise)[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
        assert np.abs(upscaler(picture).astype(int) - expected).max() <= 1


def test_a_picture_that_does_not_fit_is_cut_with_a_warning(result: ExportResult, caplog: pytest.LogCaptureFixture) -> None:
    whole = Upscaler.load(result.output, backend="onnxruntime", precision="fp32", threads=2)
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 256, (30, 30, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    single, limit = whole.plan(8, 8).peak_bytes, whole.plan(240, 240).peak_bytes
    assert whole.plan(240, 240).exact
    cut = Upscaler.load(
        result.output, backend="onnxruntime", precision="fp32", threads=2, memory_limit=single + (limit - single) // 4
    )
    plan = cut.plan(240, 240)
    assert plan.tiles > 1
    assert not plan.exact
    with caplog.at_level(logging.WARNING):
        first, again = cut(picture), cut(picture)
    assert np.array_equal(first, again), "a plan does not change from call to call"
    assert [r for r in caplog.records if "sees more of the picture than a tile shows" in r.getMessage()][1:] == []
    assert any("sees more of the picture than a tile shows" in record.getMessage() for record in caplog.records)
    assert psnr_rgb(first, whole(picture), 0) > 40, "tiles come close to the whole picture all the same"


def test_random_weights_are_said_and_int8_is_gated_against_the_float_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    path = tmp_path / "random.safetensors"
    save_checkpoint(path, model.state_dict(), "diffir", model.config.to_dict(), {"weights": "random"})
    options = ExportOptions(checkpoint=path, output=tmp_path / "b", precisions=("fp32", "int8"), single_graph=False)
    result = export_checkpoint(options)
    assert result.passed
    assert result.to_dict()["weights"] == "random"
    drop = result.to_dict()["quantization"]["psnr_drop_db"]
    assert 0 < drop <= 0.05, "the difference from its own float output, as an error of a network of 30 dB"
    monkeypatch.setattr("rdsr.export.int8.any_network.MAX_FLOATS", 0.0)
    strict = dataclasses.replace(options, output=tmp_path / "c", max_psnr_drop=drop / 10)
    refused = export_checkpoint(strict)
    assert refused.only_gate_failed
    assert not (tmp_path / "c").exists()


def test_all_but_the_ends_run_in_8_bits_once_between_two_convolutions(result: ExportResult) -> None:
    model = onnx.load(result.output / "decoder.int8.onnx")
    kinds = [node.op_type for node in model.graph.node]
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in network().G.modules())
    weights = sum(node.op_type == "DequantizeLinear" and node.name.endswith("/weight") for node in model.graph.node)
    assert weights == convolutions - 2
    producers = {output: node for node in model.graph.node for output in node.output}
    direct = [
        node
        for node in model.graph.node
        if node.op_type == "Conv" and producers[node.input[0]].op_type == "DequantizeLinear"
    ]
    assert len(direct) == convolutions - 2
    assert kinds.count("QuantizeLinear") < 2 * (convolutions - 2), "depthwise ones take what the ones before them give"


@pytest.mark.parametrize("scale", [1, 2])
def test_other_scales_go_the_same_road(scale: int, tmp_path: Path) -> None:
    path = save_released(tmp_path / "a.pth", released_form(network(dataclasses.replace(DIFFIR_CONFIG, scale=scale))))
    options = ExportOptions(checkpoint=path, output=tmp_path / "b", precisions=("fp32",), single_graph=False)
    assert export_checkpoint(options).passed
    picture = np.random.default_rng(0).integers(0, 256, (11, 18, 3), dtype=np.uint8)
    assert Upscaler.load(tmp_path / "b", threads=1)(picture).shape == (11 * scale, 18 * scale, 3)


def quantized_network(model: DiffIR) -> ConvolutionsForm:
    sample = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1)), torch.randn(1, 256)
    spans = observe(model, [sample], (1.0,))
    return ConvolutionsForm(quantize_convolutions(model, spans, 1.0, model.int8_convolutions(list(spans))))


def test_quantized_weights_are_levels_that_never_overflow_sixteen_bits() -> None:
    form = quantized_network(network())
    assert form.convolutions
    for conv in form.convolutions:
        levels = conv.weight / conv.weight_scale[:, None, None, None]
        assert (levels - levels.round()).abs().max() < 1e-3
        if levels.shape[1] % 2 == 0:
            assert (levels[:, 0::2] + levels[:, 1::2]).round().abs().max() <= PAIR_LEVELS
        else:
            assert levels.round().abs().max() <= PAIR_LEVELS // 2


def test_levels_hold_zero_exactly_and_reach_both_ends() -> None:
    for low, high in ((-1.0, 3.0), (0.2, 5.0), (-4.0, -1.0), (0.0, 0.0)):
        levels = Levels.of(low, high)
        assert levels(torch.zeros(1)).item() == 0
        reached = levels.reach
        assert reached[0] <= min(low, 0) + levels.scale
        assert reached[1] >= max(high, 0) - levels.scale


def test_a_graph_without_the_convolution_is_refused(result: ExportResult) -> None:
    conv = QuantizedConv2d(torch.nn.Conv2d(4, 4, 3), Levels(0.1, 0), Levels(0.1, 0))
    with pytest.raises(Exception, match="lacks the quantized convolution 0"):
        insert_qdq_around(onnx.load(result.output / "decoder.onnx"), [conv])


def test_it_offers_what_export_asks_of_a_network() -> None:
    assert isinstance(network(), LatentPriorNetwork)


def test_condition_features_of_part_of_a_picture_are_those_of_the_whole() -> None:
    model = network()
    lr = torch.rand(1, 3, 40, 40)
    halo = model.condition_radius
    with torch.no_grad():
        whole = model.feature_map(lr)
        part = model.feature_map(lr[:, :, : 20 + halo, :])
    assert torch.allclose(whole[:, :, :20], part[:, :, :20], atol=1e-6)


# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_what_a_checkpoint_repeats_is_dropped_once_it_is_known_to_repeat(tmp_path: Path) -> None:
    state = released_form(network())
    loaded = load_model(save_released(tmp_path / "a.pth", state))
    assert loaded.arch == "diffir"
    assert loaded.config == DIFFIR_CONFIG
    key = "diffusion.model.resmlp.0.weight"
    with pytest.raises(CheckpointError, match=r"should repeat denoise\.resmlp\.0\.weight"):
        load_model(save_released(tmp_path / "b.pth", state | {key: state[key] + 1}))


def test_the_schedule_is_read_off_the_checkpoint(tmp_path: Path) -> None:
    state = released_form(network())
    other = torch.tensor(Schedule.linear(4, 0.2, 0.8).betas)
    config = load_model(save_released(tmp_path / "a.pth", state | {"diffusion.betas": other})).config
    assert (config.beta_start, config.beta_end) == pytest.approx((0.2, 0.8))
    crooked = torch.tensor([0.1, 0.2, 0.3, 0.99])
    with pytest.raises(CheckpointError, match="not linear"):
        load_model(save_released(tmp_path / "b.pth", state | {"diffusion.betas": crooked}))


def test_a_stage_1_checkpoint_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    state = {key: value for key, value in network().state_dict().items() if key.startswith("G.")}
    with pytest.raises(CheckpointError, match="stage-1"):
        load_model(save_released(tmp_path / "a.pth", state))


def test_our_own_form_keeps_the_config(tmp_path: Path) -> None:
    config = dataclasses.replace(DIFFIR_CONFIG, beta_end=0.9, steps=3)
    model = network(config)
    path = tmp_path / "own.safetensors"
    save_checkpoint(path, model.state_dict(), "diffir", config.to_dict())
    assert load_model(path).config == config
    save_checkpoint(path, model.state_dict(), "diffir", config.to_dict() | {"depth": 3})
    with pytest.raises(CheckpointError, match="unknown field depth"):
        load_model(path)
    json.dumps(config.to_dict())
