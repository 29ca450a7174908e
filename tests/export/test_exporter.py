"""The export as a whole: what is written, proven and refused, and that nothing half-written stays."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
import torch

from rdsr.export import exporter
from rdsr.export.errors import ExportError, OutputExistsError, ProofError
from rdsr.export.exporter import ExportOptions, export_checkpoint
from rdsr.export.graphs import GraphKind
from rdsr.export.staging import publish
from rdsr.models.rdsr import RDSR
from rdsr.runtime.bundle import Bundle
from rdsr.runtime.bundle.proof import Proof
from rdsr.runtime.host import cpu
from rdsr.runtime.verify import Variant
from rdsr.tests.conftest import CONFIG, random_network, write_checkpoint

GRAPHS = ("encoder.onnx", "reverse.onnx", "decoder.onnx", "model.onnx", "model.xml", "model.bin")
INT8_GRAPHS = ("decoder.int8.onnx", "model.int8.onnx", "model.int8.xml", "model.int8.bin")


def listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_bundle_is_complete_and_proven(exported: Path) -> None:
    assert listing(exported) == sorted([*GRAPHS, *INT8_GRAPHS, "manifest.json", "proof.json", "proof.safetensors"])
    manifest = Bundle(exported).manifest
    assert manifest.scale == 4
    assert manifest.fusion["max_abs_err"] <= 1e-5
    assert manifest.fusion["max_rel_err_float64"] <= 1e-12
    sizes = {tuple(size) for size in manifest.variants[0]["sizes"]}
    assert len(sizes) >= 8
    assert any(h % 2 and w % 2 and h != w for h, w in sizes)
    assert (1, 1) in sizes
    assert any(1 in size and max(size) > 32 for size in sizes)
    assert any(min(size) > 96 for size in sizes), "one size larger than any training patch"
    fp32 = [v for v in manifest.variants if v["precision"] == "fp32"]
    assert {(v["engine"], v["graph"]) for v in fp32} == {
        ("openvino", "decoder.onnx"),
        ("openvino", "model.onnx"),
        ("openvino", "model.xml"),
        ("onnxruntime", "decoder.onnx"),
        ("onnxruntime", "model.onnx"),
    }
    assert all(v["passed"] and v["max_abs_err"] <= 1e-4 for v in fp32)
    bf16 = [v for v in manifest.variants if v["precision"] == "bf16"]
    assert bool(bf16) == cpu.has_bf16()
    assert all(v["passed"] and v["psnr_drop_db"] <= 0.01 for v in bf16)


def test_two_exports_in_fresh_processes_are_byte_identical(checkpoint: Path, tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        command = [sys.executable, "-m", "rdsr.cli", "export", str(checkpoint), "-o", str(tmp_path / name), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["passed"] is True
        files = (*GRAPHS, *INT8_GRAPHS, "proof.safetensors", "manifest.json")
        digests.append({g: hashlib.sha256((tmp_path / name / g).read_bytes()).hexdigest() for g in files})
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("option", "value", "changed"), [("seed", 7, {"model.onnx"}), ("steps", 2, {"model.onnx", "reverse.onnx"})]
)
def test_seed_and_steps_reach_the_graphs(
    checkpoint: Path, tmp_path: Path, exported: Path, option: str, value: int, changed: set[str]
) -> None:
    options = ExportOptions(checkpoint=checkpoint, output=tmp_path / "b", precisions=("fp32",), **{option: value})
    assert export_checkpoint(options).passed
    other, before = Bundle(tmp_path / "b"), Bundle(exported)
    assert {"seed": other.manifest.seed, **other.manifest.process}[option] == value
    assert {name for name in GRAPHS[:4] if other.read(name) != before.read(name)} == changed


def test_untrained_networks_with_equal_weights_export(tmp_path: Path) -> None:
    """All biases start at zero and the exporter lets equal weights share one constant."""
    torch.manual_seed(0)
    path = write_checkpoint(tmp_path / "new.safetensors", RDSR(CONFIG))
    assert export_checkpoint(ExportOptions(checkpoint=path, output=tmp_path / "b", precisions=("fp32",))).passed


def test_networks_that_overflow_are_refused_in_a_sentence(tmp_path: Path) -> None:
    network = random_network()
    with torch.no_grad():
        for block in network.decoder.body:
            block.weight.mul_(1e6)
        network.decoder.tail.weight.mul_(1e38)
    path = write_checkpoint(tmp_path / "net.safetensors", network)
    with pytest.raises(ProofError, match=r"nan|inf|NaN"):
        export_checkpoint(ExportOptions(checkpoint=path, output=tmp_path / "b"))
    assert listing(tmp_path) == ["net.safetensors"]


def test_force_replaces_no_folder_that_holds_more_than_a_bundle(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    extension = tmp_path / "extension"
    extension.mkdir()
    (extension / "manifest.json").write_text('{"manifest_version": 3, "name": "a browser extension"}')
    for target in (bundle, extension):
        before = listing(target)
        with pytest.raises(OutputExistsError, match="not replaced"):
            export_checkpoint(ExportOptions(checkpoint=checkpoint, output=target, force=True))
        assert listing(target) == before


def test_interrupt_while_replacing_keeps_the_good_bundle(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    new.mkdir()
    before = listing(bundle)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self == new:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(new, bundle, force=True)
    assert listing(bundle) == before
    assert listing(tmp_path) == sorted([bundle.name, "new"])


def test_existing_output_is_left_alone_without_force(checkpoint: Path, bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(OutputExistsError, match="--force"):
        export_checkpoint(ExportOptions(checkpoint=checkpoint, output=bundle))
    assert (bundle / "manifest.json").read_bytes() == before
    assert listing(bundle.parent) == [bundle.name]


def test_force_replaces_a_bundle_but_nothing_else(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    options = {"checkpoint": checkpoint, "precisions": ("fp32",), "single_graph": False, "force": True}
    assert export_checkpoint(ExportOptions(output=bundle, **options)).passed
    assert not (bundle / "model.onnx").exists(), "the old bundle's files are gone"
    assert listing(tmp_path) == [bundle.name]
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "cat.png").write_bytes(b"cat")
    with pytest.raises(OutputExistsError, match="not replaced"):
        export_checkpoint(ExportOptions(output=precious, **options))
    assert listing(precious) == ["cat.png"]


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    """It is said before the work, so before the checkpoint is looked for."""
    (tmp_path / "file").touch()
    for output, words in ((tmp_path / "file" / "b", "not a folder"), (Path("/proc/rdsr-bundle"), "cannot write")):
        with pytest.raises(ExportError, match=words):
            export_checkpoint(ExportOptions(checkpoint=tmp_path / "none", output=output))
    assert listing(tmp_path) == ["file"]


def test_new_parent_folders_are_made(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "deep" / "bundle"
    options = ExportOptions(checkpoint=checkpoint, output=output, precisions=("fp32",), single_graph=False)
    assert export_checkpoint(options).passed
    assert listing(tmp_path) == ["new"]


def test_unknown_precisions_are_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="'fp8'"):
        export_checkpoint(ExportOptions(checkpoint=checkpoint, output=tmp_path / "b", precisions=("fp32", "fp8")))
    assert listing(tmp_path) == []


@pytest.mark.parametrize("keep", [False, True])
def test_a_failed_proof_is_not_written_or_kept_apart(
    checkpoint: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    """A network whose graphs differ from torch: the decoder is another one while the proof is made."""
    before = (bundle / "manifest.json").read_bytes()
    original = exporter.build_proof

    def disturbed(kind: GraphKind, *rest: object, **options: object) -> object:
        with torch.no_grad():
            kind.network.decoder.tail.bias.add_(1e-3)
            proof = original(kind, *rest, **options)
            kind.network.decoder.tail.bias.sub_(1e-3)
        return proof

    monkeypatch.setattr(exporter, "build_proof", disturbed)
    options = {"precisions": ("fp32",), "single_graph": False, "force": True, "keep_failed": keep}
    result = export_checkpoint(ExportOptions(checkpoint=checkpoint, output=bundle, **options))
    assert not result.passed
    assert result.kept is keep
    assert (bundle / "manifest.json").read_bytes() == before, "the good bundle is untouched"
    failed = f"{bundle.name}.failed"
    assert listing(tmp_path) == sorted([bundle.name, failed] if keep else [bundle.name])
    if keep:
        assert not any(v["passed"] for v in Bundle(tmp_path / failed).manifest.variants)


def test_a_wrong_fold_stops_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rdsr.models.rdsr.blocks import RepConv

    path = write_checkpoint(tmp_path / "net.safetensors", random_network(CONFIG))
    right = RepConv.forward_branches
    monkeypatch.setattr(RepConv, "forward_branches", lambda self, x: right(self, x) + 1e-3)
    with pytest.raises(ProofError, match="fused"):
        export_checkpoint(ExportOptions(checkpoint=path, output=tmp_path / "b"))
    assert listing(tmp_path) == ["net.safetensors"]


def test_interrupted_export_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    def interrupt(step: str) -> None:
        if step.startswith("prove"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(ExportOptions(checkpoint=checkpoint, output=tmp_path / "b", single_graph=False), interrupt)
    assert listing(tmp_path) == []


def test_bf16_that_fails_is_left_out_unless_it_was_asked_for(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = exporter.check_variants

    def failing(bundle: Bundle, proof: Proof, precisions: Sequence[str], **options: object) -> tuple[Variant, ...]:
        rows = real(bundle, proof, [p for p in precisions if p != "bf16"], **options)
        return (*rows, Variant("bf16", "openvino", "decoder.onnx", 0.2, 0.02, ((1, 1),), False))

    monkeypatch.setattr(exporter, "check_variants", failing)
    monkeypatch.setattr(cpu, "has_bf16", lambda: True)
    options = ExportOptions(checkpoint=checkpoint, output=tmp_path / "default", single_graph=False)
    assert export_checkpoint(options).passed
    assert Bundle(tmp_path / "default").manifest.precisions == ("fp32", "int8")
    assert "bf16 is left out: decoder.onnx on openvino is up to 0.200 of full range off and loses 0.0200 dB" in caplog.text
    asked = dataclasses.replace(options, output=tmp_path / "asked", precisions=("fp32", "bf16"))
    assert not export_checkpoint(asked).passed
    assert not (tmp_path / "asked").exists()


def test_a_network_without_a_reverse_process_is_refused(tmp_path: Path) -> None:
    network = random_network(dataclasses.replace(CONFIG, steps=0))
    path = write_checkpoint(tmp_path / "net.safetensors", network)
    with pytest.raises(ExportError, match="steps 0"):
        export_checkpoint(ExportOptions(checkpoint=path, output=tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


def test_graphs_say_what_they_take(bundle: Path) -> None:
    for path in bundle.glob("*.onnx"):
        facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert facts == {
            "arch": "rdsr", "scale": "4", "colour": "RGB", "value_range": "0 to 1 in float32, 0 to 255 in uint8"
        }  # fmt: skip
    assert '<colour value="RGB" />' in (bundle / "model.xml").read_text()
