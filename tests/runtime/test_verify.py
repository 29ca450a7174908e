"""`verify`: passes on a good bundle without torch, and fails where the numbers do not hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from rdsr.export.exporter import ExportOptions, export_checkpoint
from rdsr.models.rdsr.decoder import RepDecoder
from rdsr.runtime import BundleError, EngineError, Upscaler
from rdsr.runtime.bundle import Bundle
from rdsr.runtime.bundle.proof import Proof
from rdsr.runtime.claims import check_tiles
from rdsr.runtime.host import cpu
from rdsr.runtime.host.watched import Limits, call_watched
from rdsr.runtime.pipelines import load_pipeline
from rdsr.runtime.verify import verify
from rdsr.tests.cli.running import run
from rdsr.tests.conftest import replace_file, rewrite_manifest, run_alone


def test_good_bundle_passes(exported: Path) -> None:
    report = verify(Bundle(exported)).to_dict()
    assert report["passed"] is True
    assert set(report) == {"bundle", "arch", "scale", "params", "weights", "steps", "variants", "fusion", "passed"}
    assert len(report["variants"]) == (13 if cpu.has_bf16() else 10)


def test_proof_that_does_not_hold_fails(bundle: Path) -> None:
    tensors = load((bundle / "proof.safetensors").read_bytes())
    name = "noise-5x3.expected"
    tensors[name] = tensors[name] + np.float32(2e-4)
    replace_file(bundle, "proof.safetensors", save(tensors))
    result = verify(Bundle(bundle))
    assert not result.passed
    assert [v.passed for v in result.variants if (v.precision, v.graph) == ("fp32", "decoder.onnx")] == [False, False]


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_nan_in_the_output_fails(bundle: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(bundle / "decoder.onnx")
    weights = next(t for t in model.graph.initializer if t.name.endswith("tail.bias"))  # no ReLU behind it hides NaN
    broken = numpy_helper.to_array(weights).copy()
    broken[0] = np.nan
    weights.CopyFrom(numpy_helper.from_array(broken, weights.name))
    replace_file(bundle, "decoder.onnx", model.SerializeToString())
    result = verify(Bundle(bundle))
    assert not any(v.passed for v in result.variants if v.graph == "decoder.onnx")


def test_variants_that_failed_are_proven_again_and_not_forgotten(bundle: Path) -> None:
    content = json.loads((bundle / "manifest.json").read_text())
    rewrite_manifest(bundle, variants=[row | {"passed": False} for row in content["variants"]])
    again = verify(Bundle(bundle))
    assert len(again.variants) == len(content["variants"])


def change_proof(bundle: Path, **changes: object) -> None:
    content = json.loads((bundle / "proof.json").read_text())
    replace_file(bundle, "proof.json", json.dumps(content | changes).encode())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"cases": []}, "at least 8 cases"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
        ({"tolerances": {"fp32_max_abs_err": 1e9}}, "looser"),
        ({"tolerances": {"fp32_max_abs_err": "1e-4"}}, "looser"),
        ({"tolerances": {"unknown": 1.0}}, "unknown"),
        ({"bf16": {"max_psnr_drop_db": "any"}}, "a drop is no number"),
        ({"cases": [{"name": "nothing", "psnr_y": None}] * 9}, "nothing"),
        ({"cases": [{"name": "picture-portrait", "psnr_y": 9.0, "psnr_y_int8": 9.0}] * 9}, "two of one name"),
    ],
)
def test_proofs_that_prove_too_little_are_refused(bundle: Path, changes: dict[str, object], word: str) -> None:
    change_proof(bundle, **changes)
    with pytest.raises(BundleError, match=word):
        verify(Bundle(bundle))


@pytest.mark.parametrize("damage", ["expected", "positions", "hr", "lr"])
def test_proof_tensors_that_do_not_fit_are_refused(bundle: Path, damage: str) -> None:
    tensors = load((bundle / "proof.safetensors").read_bytes())
    key = f"picture-portrait.{damage}"
    tensors[key] = tensors[key] + 10**7 if damage == "positions" else tensors[key][:-1].copy()
    replace_file(bundle, "proof.safetensors", save(tensors))
    with pytest.raises(BundleError, match="picture-portrait"):
        verify(Bundle(bundle))


def test_a_graph_of_another_scale_is_an_error_not_a_picture(bundle: Path) -> None:
    rewrite_manifest(bundle, scale=2)
    upscaler = Upscaler.load(bundle, precision="fp32")
    with pytest.raises(EngineError, match="shape"):
        upscaler(np.zeros((5, 5, 4), np.uint8))


def test_sampled_cases_keep_the_right_pixels(exported: Path) -> None:
    proof = Proof.of_bundle(Bundle(exported))
    sampled = [case for case in proof.cases if case.positions is not None]
    assert sampled, "large outputs are kept as a sample"
    for case in sampled:
        height, width = (4 * side for side in case.size)
        grid = np.arange(height * width * 3).reshape(height, width, 3)
        assert case.pick(grid).shape == case.expected.shape
        assert case.positions.max() < height * width


def test_verify_runs_where_torch_onnx_and_nncf_cannot_be_imported(exported: Path) -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'nncf', 'onnxsim'): sys.modules[name] = None\n"
        "sys.argv = ['rdsr', 'verify', sys.argv[1], '--json']\n"
        "from rdsr.cli.main import main; main()\n"
    )
    assert json.loads(run_alone(script, exported))["passed"] is True
    facts = (str(exported), Bundle(exported).manifest.digest)
    assert call_watched("rdsr.tests.runtime.child_functions", "verified_without_torch", facts, Limits(100, 2**30)) is True


def test_importing_the_runtime_pulls_in_nothing_heavy() -> None:
    heavy = ("torch", "onnx", "nncf", "openvino", "onnxruntime", "subprocess")
    script = f"import sys, rdsr, rdsr.runtime; print([m for m in {heavy} if m in sys.modules])"
    assert run_alone(script).strip() == "[]"


# -- manifests that lie


def test_a_proof_of_too_many_pixels_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rdsr.runtime.bundle.proof.MAX_PIXELS", 1000)
    with pytest.raises(BundleError, match="more than 1000"):
        verify(Bundle(bundle))


def test_the_report_on_int8_is_measured_again(bundle: Path) -> None:
    report = json.loads((bundle / "manifest.json").read_text())["quantization"]
    rewrite_manifest(bundle, quantization=report | {"psnr_drop_db": -5.0})
    with pytest.raises(BundleError, match=r"it claims psnr_drop_db -5\.0000"):
        verify(Bundle(bundle))


def change_process(bundle: Path, **changes: object) -> None:
    process = json.loads((bundle / "manifest.json").read_text())["process"]
    rewrite_manifest(bundle, process=process | changes)


@pytest.mark.parametrize(
    ("changes", "claimed", "found"),
    [
        ({"receptive_radius": 0}, "receptive_radius 0", "6"),
        ({"receptive_radius": 5}, "receptive_radius 5", "6"),
        ({"receptive_radius": 90_000}, "receptive_radius 90000", "6"),
        ({"params": 1}, "params 1", "21208"),
        ({"params": 50_000}, "params 50000", "21208"),
        ({"peak_channels": 100}, "peak_channels 100", None),
        ({"peak_channels": 10**6}, "peak_channels 1000000", None),
        ({"seed": 5}, "seed 5", "0"),
        ({"tile_rule": "whole"}, "the tile_rule whole", "6"),
        ({"tile_rule": "overlap", "receptive_radius": None}, "the tile_rule overlap", "6"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_manifest_that_lies_is_refused(bundle: Path, changes: dict[str, object], claimed: str, found: str | None) -> None:
    rewrite_manifest(bundle, **changes)
    with pytest.raises(BundleError, match=f"it claims {claimed}, but {found or '[0-9]+'} was found"):
        verify(Bundle(bundle))


@pytest.mark.parametrize(
    ("changes", "claimed", "found"),
    [
        ({"condition_radius": 0}, "condition_radius 0", "2"),
        ({"condition_radius": 1}, "condition_radius 1", "2"),
        ({"condition_radius": 9000}, "condition_radius 9000", "[0-9]+"),
        ({"latent_size": 23}, "latent_size 23", "24"),
        ({"steps": 1, "betas": [0.5]}, "steps 1", "4"),
        ({"size_multiple": 8}, "size_multiple 8", "a feature map of"),
        ({"size_multiple": 1}, "size_multiple 1", "a feature map of"),
    ],
)
def test_a_section_of_the_process_that_lies_is_refused(
    bundle: Path, changes: dict[str, object], claimed: str, found: str
) -> None:
    change_process(bundle, **changes)
    with pytest.raises(BundleError, match=f"it claims {claimed}, but {found}"):
        verify(Bundle(bundle))


@pytest.mark.parametrize(("precision", "drop"), [("fp32", -5.0), ("int8", -5.0), ("int8", 5.0), ("bf16", -0.5)])
def test_a_drop_that_is_not_measured_again_is_refused(bundle: Path, precision: str, drop: float) -> None:
    if precision == "bf16" and not cpu.has_bf16():
        pytest.skip("this CPU has no bf16")
    variants = json.loads((bundle / "manifest.json").read_text())["variants"]
    rewrite_manifest(
        bundle, variants=[row | {"psnr_drop_db": drop} if row["precision"] == precision else row for row in variants]
    )
    with pytest.raises(BundleError, match=f"it claims psnr_drop_db {drop:.4f}, but .*{precision} on"):
        verify(Bundle(bundle))


def test_a_graph_that_needs_far_more_memory_than_planned_is_refused(bundle: Path) -> None:
    rewrite_manifest(bundle, peak_channels=1)
    with pytest.raises(BundleError, match=r"peak_channels 1|values at once"):
        verify(Bundle(bundle))


def test_a_low_drop_is_not_believed_for_pictures_that_are_not_there(bundle: Path) -> None:
    """Held-back pictures may have another drop than the carried ones, but not another world's."""
    content = json.loads((bundle / "manifest.json").read_text())
    sets = [{"dataset": "theirs", "images": 9, "judges": True, "psnr_drop_db": -5.0, "worst_psnr_drop_db": -5.0}]
    variants = [row | {"psnr_drop_db": -5.0} if row["precision"] == "int8" else row for row in content["variants"]]
    rewrite_manifest(bundle, variants=variants, quantization=content["quantization"] | {"datasets": sets})
    with pytest.raises(BundleError, match=r"psnr_drop_db -5\.0000"):
        verify(Bundle(bundle))


def test_a_gate_that_was_met_by_a_lie_is_refused(bundle: Path) -> None:
    content = json.loads((bundle / "proof.json").read_text())
    change_proof(bundle, int8=content["int8"] | {"psnr_drop_db": -5.0})
    with pytest.raises(BundleError, match=r"psnr_drop_db -5\.0000"):
        verify(Bundle(bundle))


def test_a_quality_of_the_model_that_its_output_does_not_have_is_refused(bundle: Path) -> None:
    cases = json.loads((bundle / "proof.json").read_text())["cases"]
    change_proof(bundle, cases=[case | {"psnr_y": case["psnr_y"] and case["psnr_y"] - 5.0} for case in cases])
    with pytest.raises(BundleError, match=r"PSNR-Y of its pictures"):
        verify(Bundle(bundle))


def test_a_lie_is_a_fault_of_the_input(bundle: Path) -> None:
    rewrite_manifest(bundle, receptive_radius=0)
    result = run("verify", bundle, "--json")
    assert result.exit_code == 2
    assert "receptive_radius 0" in json.loads(result.stdout)["error"]


def test_tiles_that_differ_from_the_whole_picture_are_found(bundle: Path) -> None:
    rewrite_manifest(bundle, receptive_radius=1)
    opened = Bundle(bundle)
    pipeline = load_pipeline(opened, backend="onnxruntime", precision="fp32", threads=1, seed=0)
    with pytest.raises(BundleError, match=r"receptive_radius 1, but [0-9.]+% was found.*[12]×\d tiles and the whole"):
        check_tiles(opened, pipeline)


def test_the_own_bundle_passes() -> None:
    assert verify(Bundle()).passed


def test_an_export_finds_a_network_that_lies_about_its_radius(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RepDecoder, "receptive_radius", 1)
    with pytest.raises(BundleError, match="exact tiles with receptive_radius 1"):
        export_checkpoint(ExportOptions(checkpoint=checkpoint, output=tmp_path / "b", precisions=("fp32",)))
    assert not list(tmp_path.iterdir())
