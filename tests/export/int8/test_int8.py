"""int8 exports: what the graphs hold, that both engines run them in int8 and alike, the gate, calibration folders."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from typer.testing import CliRunner

from rdsr.cli.main import app
from rdsr.export import exporter
from rdsr.export.build_proof import SAMPLES, sample_pictures
from rdsr.export.errors import ExportError, ProofError
from rdsr.export.exporter import ExportOptions, export_checkpoint
from rdsr.export.graphs import graph_kind
from rdsr.export.graphs.graph_set import GraphSet
from rdsr.export.int8 import execution
from rdsr.export.int8.execution import Plan, check_execution
from rdsr.export.int8.forms import ChainForm
from rdsr.export.int8.post_training import Original, quantize
from rdsr.models.int8.chain import Ranges
from rdsr.models.int8.samples import sample_of, with_hard_edges
from rdsr.models.rdsr import RDSR
from rdsr.models.rdsr.quantized import QuantizedDecoder
from rdsr.models.registry import load_model
from rdsr.runtime import BundleError, Upscaler
from rdsr.runtime.bundle import Bundle
from rdsr.runtime.bundle.proof import Proof, Tolerances
from rdsr.runtime.engines import BACKENDS, load_session
from rdsr.runtime.pictures.arrays import to_graph
from rdsr.runtime.pipelines import Pipeline
from rdsr.runtime.verify import check_variants
from rdsr.tests.conftest import CONFIG, prior_from, random_network, write_checkpoint

INT8_FILES = ("decoder.int8.onnx", "model.int8.onnx", "model.int8.xml", "model.int8.bin")


def levels_apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(np.int16) - b)


def calibrated(ranges: Ranges | None = None) -> tuple[RDSR, QuantizedDecoder, list[np.ndarray]]:
    network = random_network()
    pictures = [np.ascontiguousarray(hr[::4, ::4]) for hr in sample_pictures(4).values()]
    samples = [sample_of(picture, prior_from(network)) for picture in pictures]
    return network, network.int8_form.calibrate(samples, ranges or Ranges()), pictures


# -- what is in the bundle


def test_int8_has_graphs_and_rows_of_its_own(exported: Path) -> None:
    assert set(INT8_FILES) <= set(os.listdir(exported))
    rows = [row for row in Bundle(exported).manifest.variants if row["precision"] == "int8"]
    assert {(row["engine"], row["graph"]) for row in rows} == {
        ("openvino", "decoder.int8.onnx"),
        ("openvino", "model.int8.onnx"),
        ("openvino", "model.int8.xml"),
        ("onnxruntime", "decoder.int8.onnx"),
        ("onnxruntime", "model.int8.onnx"),
    }
    assert all(row["passed"] and row["psnr_drop_db"] <= 0.05 for row in rows)


def test_manifest_says_how_every_layer_was_quantized(exported: Path) -> None:
    quantization = Bundle(exported).manifest.quantization
    assert [layer["layer"] for layer in quantization["layers"]] == ["body.0", "body.1", "body.2", "body.3", "tail"]
    assert all(min(layer["cost_db"].values()) >= 0 and layer["input_range"] > 0 for layer in quantization["layers"])
    assert [len(layer["cost_db"]) for layer in quantization["layers"]] == [3, 2, 3, 2, 3], "weights, input, output"
    outputs = [layer["output_range"] is not None for layer in quantization["layers"]]
    assert outputs == [True, False, True, False, True], "modulated convolutions and the tail"
    assert [remedy["remedy"] for remedy in quantization["remedies"]][:3] == [
        "whole ranges",
        "clipped ranges",
        "equalized channels",
    ]
    assert [(entry["dataset"], entry["judges"]) for entry in quantization["datasets"]] == [("package", True)]
    assert "times" not in quantization, "times are of the report, not of the bundle"


@pytest.mark.parametrize("name", ["decoder.int8.onnx", "model.int8.onnx"])
def test_convolutions_are_int8_and_the_rest_is_float(exported: Path, name: str) -> None:
    model = onnx.load(exported / name)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    quantized = 0
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert constants[node.input[2]].dtype == np.uint8
            assert constants[node.input[2]] == 0
        if node.op_type not in ("Conv", "Gemm"):
            continue
        fed = [producers[x].op_type == "DequantizeLinear" for x in node.input if x in producers]
        if "/convs." in node.name:
            quantized += 1
            assert fed == [True, True]
            kernel = constants[producers[node.input[1]].input[0]]
            assert kernel.dtype == np.int8
            pairs = kernel[:, 0::2].astype(int) + kernel[:, 1::2]
            assert 255 * np.abs(pairs).max() <= 32767, "no sum of two neighbouring products overflows 16 bits"
        else:
            assert not any(fed), f"{node.name} is head, skip, encoder, reverse process or modulation, and stays float"
    assert quantized == CONFIG.depth + 1


def test_engines_run_it_in_int8(exported: Path) -> None:
    _, decoder, _ = calibrated()
    plan = Plan.of(decoder)
    assert plan.int8 == {0, 1, 2, 3, 4}
    assert plan.followed == {1, 3}, "0 and 2 are modulated, 4 is the tail"
    for name in ("decoder.int8.onnx", "model.int8.onnx"):
        check_execution((exported / name).read_bytes(), plan)


@pytest.mark.parametrize("engine", ["OpenVINO", "ONNX Runtime"])
def test_a_float_convolution_is_found_out(exported: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same graph with Q and DQ of one convolution's input taken away."""
    model = onnx.load(exported / "decoder.int8.onnx")
    node = next(n for n in model.graph.node if n.name.endswith("/convs.1/Conv"))
    dequantize = next(n for n in model.graph.node if node.input[0] in n.output)
    quantize = next(n for n in model.graph.node if dequantize.input[0] in n.output)
    node.input[0] = quantize.input[0]
    monkeypatch.delitem(execution._ENGINES, "ONNX Runtime" if engine == "OpenVINO" else "OpenVINO")
    with pytest.raises(ProofError, match=f"{engine} runs"):
        check_execution(model.SerializeToString(), Plan.of(calibrated()[1]))


@pytest.mark.parametrize(
    "ranges",
    [
        Ranges(),
        Ranges(percentile=0.9999, equalization=0.85),
        Ranges(identities=(0, 1)),
        Ranges(floats=(1,)),
        Ranges(floats=(4,)),
        Ranges(floats=(3, 4)),
        Ranges(floats=(0, 4), identities=(2, 3), equalization=0.5),
    ],
)
def test_both_engines_equal_the_fake_quantized_model(ranges: Ranges) -> None:
    network, decoder, pictures = calibrated(ranges)
    graphs = GraphSet(graph_kind(network, 0), single_graph=False)
    graphs.add_int8(ChainForm(network.int8_form, decoder))
    graph = graphs.models["decoder.int8.onnx"].SerializeToString()
    check_execution(graph, Plan.of(decoder))
    z = torch.randn(1, CONFIG.latent_size, generator=torch.Generator().manual_seed(0))
    outputs: dict[str, list[np.ndarray]] = {"torch": []}
    for picture in pictures:
        with torch.no_grad():
            sr = decoder(torch.tensor(picture).permute(2, 0, 1)[None].float() / 255, z)
        outputs["torch"].append(sr.clamp(0, 1).mul(255).round().byte()[0].permute(1, 2, 0).numpy())
    for backend in BACKENDS:
        session = load_session(graph, backend=backend, precision="int8", threads=2)
        outputs[backend] = [session.run({"image": p[None], "z": z.numpy()})[0][0] for p in pictures]
    for a, b in (("torch", "openvino"), ("torch", "onnxruntime"), ("openvino", "onnxruntime")):
        apart = np.concatenate([levels_apart(x, y).ravel() for x, y in zip(outputs[a], outputs[b], strict=True)])
        assert (apart <= 1).mean() >= 0.995, (a, b)
    whole = np.concatenate([x.ravel() for x in outputs["torch"]])
    assert whole.std() > 5, "the network does something"


def test_grey_alpha_and_floats_go_through_an_int8_bundle(exported: Path) -> None:
    upscaler = Upscaler.load(exported, precision="int8")
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (9, 7), dtype=np.uint8)
    colour = upscaler(np.repeat(grey[:, :, None], 3, axis=2))
    assert upscaler(grey).shape == (36, 28)
    assert levels_apart(upscaler(grey), np.rint(colour.mean(axis=2)).astype(np.uint8)).max() == 0
    assert upscaler(rng.integers(0, 256, (9, 7, 4), dtype=np.uint8)).shape == (36, 28, 4)
    assert upscaler.run(grey).precision == "int8"
    assert upscaler.run(grey.astype(np.uint16)).precision == "fp32"


# -- other tools


def test_benchmark_app_and_plain_onnxruntime_run_the_single_graph(exported: Path, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1, 20, 24, 3), dtype=np.uint8)
    session = ort.InferenceSession(exported / "model.int8.onnx", providers=["CPUExecutionProvider"])
    (upscaled,) = session.run(None, {"image": picture})
    assert (upscaled.shape, upscaled.dtype) == ((1, 80, 96, 3), np.uint8)
    tool = Path(sys.executable).parent / "benchmark_app"
    for name in ("model.int8.xml", "model.int8.onnx"):
        command = [tool, "-m", exported / name, "-d", "CPU", "-niter", "2", "-nireq", "1", "-api", "sync"]
        command += ["-shape", "[1,20,24,3]"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Throughput" in done.stdout


# -- remedies and the gate


def test_remedies_are_applied_in_order_of_price_until_the_drop_is_small_enough() -> None:
    network, _, pictures = calibrated()
    hrs = sample_pictures(4).values()
    samples = [sample_of(picture, prior_from(network)) for picture in pictures]
    originals = [
        Original(sample, with_hard_edges([sample], prior_from(network))[1], torch.from_numpy(to_graph(hr)))
        for sample, hr in zip(samples, hrs, strict=True)
    ]
    free = quantize(network.int8_form, originals, lambda decoder: 0.01, max_drop=0.05)
    assert [r.remedy for r in free.remedies] == ["whole ranges", "clipped ranges", "equalized channels"]
    never = quantize(network.int8_form, originals, lambda decoder: 1.0, max_drop=0.05)
    assert [r.remedy for r in never.remedies][3:] == ["identity outside", "layers in float"]
    assert sum(layer.precision == "fp32" for layer in never.layers) <= 1, "at most a quarter of them"
    assert never.psnr_drop_db == 1.0
    floats = [str(index) for index, layer in enumerate(never.layers) if layer.precision == "fp32"]
    assert never.remedies[-1].chosen == (", ".join(floats) or "no gain")


def test_a_strong_identity_is_what_the_skip_is_for() -> None:
    """Kernels that are all identity and a little more: of that little, rounding leaves next to nothing."""
    network = random_network()
    with torch.no_grad():
        for block in network.decoder.body:
            for part in (block.weight, block.conv1x1, block.expand):
                part.mul_(0.02)
            block.identity.fill_(1.0)
    condition = prior_from(network)
    samples = [sample_of(np.ascontiguousarray(hr[::4, ::4]), condition) for hr in sample_pictures(4).values()]
    errors = {}
    for name, ranges in {"inside": Ranges(), "outside": Ranges(identities=(0, 1, 2, 3))}.items():
        decoder = network.int8_form.calibrate(samples, ranges)
        with torch.no_grad():
            errors[name] = np.mean([float((decoder(*s) - network.decode(*s)).pow(2).mean()) for s in samples])
    assert errors["outside"] < 0.8 * errors["inside"]


def lossy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every quantization lose a whole decibel."""
    right = exporter.make_int8

    def worse(*args: object, **options: object) -> object:
        return dataclasses.replace(right(*args, **options), psnr_drop_db=1.0)

    monkeypatch.setattr(exporter, "make_int8", worse)


@pytest.mark.parametrize("keep", [False, True])
def test_a_gate_that_is_not_met_is_exit_code_3(
    checkpoint: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    before = (bundle / "manifest.json").read_bytes()
    lossy(monkeypatch)
    options = ["--precision", "fp32,int8", "--no-single-graph", "--force", *(["--keep-failed"] if keep else [])]
    result = CliRunner().invoke(app, ["export", str(checkpoint), "-o", str(bundle), *options])
    assert result.exit_code == 3, result.output
    assert "int8 loses 1.0 dB, more than the 0.05 allowed" in result.stderr
    assert (bundle / "manifest.json").read_bytes() == before, "the good bundle is untouched"
    failed = bundle.with_name(bundle.name + ".failed")
    assert failed.exists() is keep
    if keep:
        manifest = Bundle(failed).manifest
        assert manifest.precisions == ("fp32",)
        verified = CliRunner().invoke(app, ["verify", str(failed)])
        assert verified.exit_code == 1, "a verify does not forget the gate"


def test_an_engine_that_differs_is_no_matter_of_the_gate(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lossy(monkeypatch)
    right = Pipeline.picture
    monkeypatch.setattr(Pipeline, "picture", lambda self, colour, **options: right(self, colour, **options) ^ 3)
    options = ["--precision", "int8", "--no-single-graph"]
    result = CliRunner().invoke(app, ["export", str(checkpoint), "-o", str(tmp_path / "b"), *options])
    assert result.exit_code == 1, result.output
    assert "int8 on openvino" in result.stderr


def test_two_engines_that_are_each_near_the_model_must_be_near_each_other(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grey level up on one engine and down on the other: each within one of the model, two apart."""
    right = Pipeline.picture

    def shifted(self: Pipeline, colour: np.ndarray, **options: object) -> np.ndarray:
        shift = 1 if self.backend == "openvino" else -1
        return np.clip(right(self, colour, **options).astype(np.int16) + shift, 0, 255).astype(np.uint8)

    monkeypatch.setattr(Pipeline, "picture", shifted)
    loose = Tolerances(int8_psnr_diff_db=9.0)
    proof = dataclasses.replace(Proof.of_bundle(Bundle(bundle)), tolerances=loose)
    rows = {r.engine: r for r in check_variants(Bundle(bundle), proof, ["int8"]) if r.graph == "decoder.int8.onnx"}
    assert rows["openvino"].equals_model
    assert not rows["onnxruntime"].equals_model


@pytest.mark.parametrize("option", [{"calibration": SAMPLES}, {"post_training": True}])
def test_options_of_int8_without_int8_are_refused(checkpoint: Path, tmp_path: Path, option: dict[str, object]) -> None:
    with pytest.raises(ExportError, match="for int8"):
        export_checkpoint(ExportOptions(checkpoint=checkpoint, output=tmp_path / "b", precisions=("fp32",), **option))


@pytest.mark.parametrize("scale", [2, 3])
def test_other_scales_and_steps(tmp_path: Path, scale: int) -> None:
    network = random_network(dataclasses.replace(CONFIG, scale=scale))
    path = write_checkpoint(tmp_path / "net.safetensors", network)
    options = ExportOptions(
        checkpoint=path, output=tmp_path / "b", precisions=("int8",), max_psnr_drop=1.0, steps=2, single_graph=False
    )
    assert export_checkpoint(options).passed
    upscaler = Upscaler.load(tmp_path / "b")
    assert upscaler.effective.precision == "int8", "the only one there is"
    assert upscaler(np.zeros((5, 7, 3), np.uint8)).shape == (5 * scale, 7 * scale, 3)
    with pytest.raises(BundleError, match="no proven fp32"):
        upscaler(np.zeros((5, 7, 3), np.uint16))


def test_a_wider_gate_lets_the_same_network_through(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lossy(monkeypatch)
    options = ExportOptions(
        checkpoint=checkpoint, output=tmp_path / "b", precisions=("int8",), max_psnr_drop=1.5, single_graph=False
    )
    assert export_checkpoint(options).passed
    assert Bundle(tmp_path / "b").manifest.precisions == ("int8",)


@pytest.mark.parametrize("drop", [-0.1, float("nan"), float("inf")])
def test_gates_that_make_no_sense_are_refused(checkpoint: Path, tmp_path: Path, drop: float) -> None:
    with pytest.raises(ExportError, match="PSNR drop"):
        export_checkpoint(ExportOptions(checkpoint=checkpoint, output=tmp_path / "b", max_psnr_drop=drop))


# -- what training left


def test_a_trained_quantization_is_exported_as_it_is(tmp_path: Path) -> None:
    network, decoder, _ = calibrated(Ranges(percentile=0.999))
    network.quantized = decoder
    path = write_checkpoint(tmp_path / "qat.safetensors", network)
    kernels = {}
    for post_training in (False, True):
        output = tmp_path / f"{post_training}.bundle"
        options = ExportOptions(
            checkpoint=path,
            output=output,
            precisions=("int8",),
            max_psnr_drop=9.0,
            post_training=post_training,
            single_graph=False,
        )
        assert export_checkpoint(options).passed
        quantization = Bundle(output).manifest.quantization
        assert quantization["source"] == ("post-training" if post_training else "training")
        model = onnx.load(output / "decoder.int8.onnx")
        constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        kernels[post_training] = constants["conv3_input_scale"]
    trained = load_model(path).network.quantized.layers()[3].log_input_scale.exp().item()
    assert float(kernels[False]) == pytest.approx(trained)
    assert float(kernels[True]) != pytest.approx(trained)
