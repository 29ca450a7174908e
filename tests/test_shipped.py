"""What is shipped: the weights, the default bundle made from them, and that they are worth having."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from rdsr.benchmarks.quality.datasets import find_dataset
from rdsr.benchmarks.quality.measure import bicubic, bundle, measure, torch_checkpoint
from rdsr.export.build_proof import SAMPLES
from rdsr.export.exporter import ExportOptions, export_checkpoint
from rdsr.models.registry import load_model, shipped_weights
from rdsr.runtime import Bundle, Upscaler
from rdsr.runtime.verify import verify

DEFAULT = "rdsr-photo"


@pytest.mark.parametrize("name", sorted(shipped_weights()))
def test_weights_are_in_training_form_and_have_a_card(name: str) -> None:
    path = shipped_weights()[name]
    loaded = load_model(path)
    assert loaded.config.branches, "fusion has something to do"
    assert loaded.network.lpe is not None
    assert loaded.notes["stage"] == "qat"
    assert loaded.network.quantized is not None, "int8 loses nothing to speak of only after training"
    card = path.with_suffix(".md").read_text()
    for word in ("Data", "Recipe", "Set5", "Set14", "B100", "int8", "Licence"):
        assert word in card


def test_default_bundle_is_small_whole_and_proven() -> None:
    shipped = Bundle()
    assert sum(p.stat().st_size for p in shipped.path.iterdir()) <= 8e6
    assert {p.name for p in shipped.path.iterdir()} == {*shipped.manifest.files, "manifest.json"}
    assert set(shipped.manifest.graphs) == {"encoder", "reverse", "decoder", "decoder_int8"}
    assert set(shipped.manifest.precisions) - {"bf16"} == {"fp32", "int8"}, "bf16 where the proving CPU had it and it passed"
    assert shipped.manifest.psnr_drop("int8") <= 0.02, "auto may take it"
    assert verify(shipped).passed


def test_default_bundle_comes_from_the_shipped_checkpoint(tmp_path: Path) -> None:
    shipped = Bundle()
    path = shipped_weights()[DEFAULT]
    assert shipped.manifest.checkpoint["sha256"] == load_model(path).sha256
    export_checkpoint(ExportOptions(checkpoint=path, output=tmp_path / "again", single_graph=False))
    again = Bundle(tmp_path / "again")
    if again.manifest.tools != shipped.manifest.tools:
        pytest.skip("graphs are promised to be byte-identical for the same tool versions, and these differ")
    for name in ("encoder.onnx", "reverse.onnx", "decoder.onnx", "decoder.int8.onnx"):
        if again.read(name) != shipped.read(name):  # byte-identical is promised for one CPU; another rounds sums otherwise
            assert_same_but_for_rounding(onnx.load_from_string(again.read(name)), onnx.load_from_string(shipped.read(name)))


def assert_same_but_for_rounding(one: onnx.ModelProto, other: onnx.ModelProto) -> None:
    """The same graphs; a few integers may differ by one, floats by some units in the last place."""
    for ours, theirs in zip(one.graph.initializer, other.graph.initializer, strict=True):
        a, b = onnx.numpy_helper.to_array(ours), onnx.numpy_helper.to_array(theirs)
        assert (ours.name, a.dtype, a.shape) == (theirs.name, b.dtype, b.shape)
        if np.issubdtype(a.dtype, np.floating):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
        else:
            steps = np.abs(a.astype(np.int64) - b.astype(np.int64))
            assert steps.max(initial=0) <= 1
            assert np.count_nonzero(steps) <= max(1, 0.001 * steps.size)
    for model in (one, other):
        del model.graph.initializer[:]
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def test_default_bundle_is_far_better_than_bicubic_and_as_good_as_torch() -> None:
    samples = find_dataset(SAMPLES, 4)
    fp32 = measure(bundle(None, backend="auto", precision="fp32", threads=2), samples)
    torch = measure(torch_checkpoint(DEFAULT, threads=2), samples)
    assert fp32.psnr_y == pytest.approx(torch.psnr_y, abs=0.001)
    assert fp32.psnr_y > measure(bicubic(4), samples).psnr_y + 1.0
    auto = bundle(None, backend="auto", precision="auto", threads=2)
    assert measure(auto, samples).psnr_y == pytest.approx(fp32.psnr_y, abs=0.02)


def test_readme_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import re
    import shutil

    from rdsr.tests.conftest import ROOT

    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 12
    shutil.copy(SAMPLES / "LRx4" / "chart.png", tmp_path / "in.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {})
    assert (tmp_path / "out.png").is_file()
    assert Upscaler.load().bundle.manifest.scale == 4
