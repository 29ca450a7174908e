"""`verify`: passes on a good bundle without torch, and fails where the numbers do not hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from rdsr.runtime import cpu
from rdsr.runtime.bundle import Bundle
from rdsr.runtime.proof import Proof
from rdsr.runtime.verify import verify
from rdsr.tests.conftest import rewrite_manifest


def replace_file(bundle: Path, name: str, content: bytes) -> None:
    """Change a file and make the manifest agree, as somebody would who wants to hide it."""
    import hashlib

    (bundle / name).write_bytes(content)
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    rewrite_manifest(bundle, files=files | {name: entry})


def test_good_bundle_passes(exported: Path) -> None:
    report = verify(Bundle(exported)).to_dict()
    assert report["passed"] is True
    assert set(report) == {"bundle", "arch", "scale", "params", "steps", "variants", "fusion", "passed"}
    assert len(report["variants"]) == (8 if cpu.has_bf16() else 5)


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
        "from rdsr.cli import main; main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(exported)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"] is True


def test_importing_the_runtime_pulls_in_nothing_heavy() -> None:
    heavy = ("torch", "onnx", "nncf", "openvino", "onnxruntime")
    script = f"import sys, rdsr, rdsr.runtime; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
