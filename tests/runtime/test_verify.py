"""`verify`: passes on a good bundle without torch, and fails where the numbers do not hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from rdsr.runtime import BundleError, EngineError, Upscaler
from rdsr.runtime.bundle import Bundle
from rdsr.runtime.bundle.proof import Proof
from rdsr.runtime.host import cpu
from rdsr.runtime.verify import verify
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
        ({"cases": [{"name": "nothing", "psnr_y": None}] * 9}, "nothing"),
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


def test_importing_the_runtime_pulls_in_nothing_heavy() -> None:
    heavy = ("torch", "onnx", "nncf", "openvino", "onnxruntime")
    script = f"import sys, rdsr, rdsr.runtime; print([m for m in {heavy} if m in sys.modules])"
    assert run_alone(script).strip() == "[]"
