"""What `auto` takes, and that it says why: VNNI, drops, caps, and a measurement that is made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rdsr.runtime import BundleError, EngineError, Upscaler
from rdsr.runtime.bundle import Bundle
from rdsr.runtime.choice import speed
from rdsr.runtime.choice.choose import choose
from rdsr.runtime.choice.speed import Timing, int8_against_float
from rdsr.runtime.describe import describe_bundle
from rdsr.runtime.engines.cache import remember
from rdsr.runtime.host import cpu
from rdsr.tests.conftest import rewrite_manifest, with_bf16_rows


def with_int8_drop(bundle: Path, drop: float) -> None:
    rows = json.loads((bundle / "manifest.json").read_text())["variants"]
    rewrite_manifest(bundle, variants=[row | {"psnr_drop_db": drop} if row["precision"] == "int8" else row for row in rows])


def a_cpu(monkeypatch: pytest.MonkeyPatch, *flags: str, cap: str | None = None) -> None:
    """Pretend to run on a CPU with these flags."""
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset({"avx2", *flags}))
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if cap:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)


def measured(monkeypatch: pytest.MonkeyPatch, int8_ms: float, fp32_ms: float) -> None:
    monkeypatch.setattr("rdsr.runtime.choice.choose.int8_against_float", lambda *facts: Timing(int8_ms, fp32_ms))


@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni", "amx_int8"])
def test_int8_where_the_cpu_is_made_for_it(bundle: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    with_int8_drop(bundle, 0.019)
    a_cpu(monkeypatch, flag)
    engine, precision, reason = choose(Bundle(bundle), "auto", "auto")
    assert (engine, precision) == ("onnxruntime", "int8")
    assert "natively" in reason
    assert "0.019 dB" in reason
    assert choose(Bundle(bundle), "onnxruntime", "auto")[:2] == ("onnxruntime", "int8")


def test_the_faster_engine_for_a_network_that_sees_the_whole_picture(bundle: Path) -> None:
    rewrite_manifest(bundle, tile_rule="overlap")
    for precision in ("fp32", "int8"):
        engine, _, reason = choose(Bundle(bundle), "auto", precision)
        assert engine == "openvino"
        assert "the faster one for such a network" in reason
        assert choose(Bundle(bundle), "onnxruntime", precision)[0] == "onnxruntime"


def test_not_where_it_loses_too_much(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_int8_drop(bundle, 0.021)
    a_cpu(monkeypatch, "avx512_vnni")
    _, precision, reason = choose(Bundle(bundle), "auto", "auto")
    assert precision == "fp32"
    assert "int8 loses 0.021 dB, more than 0.02" in reason
    with_bf16_rows(bundle)
    a_cpu(monkeypatch, "avx512_vnni", "avx512_bf16")
    _, precision, reason = choose(Bundle(bundle), "auto", "auto")
    assert precision == "bf16"
    assert "int8 loses" in reason
    rows = json.loads((bundle / "manifest.json").read_text())["variants"]
    rewrite_manifest(bundle, variants=[row | {"psnr_drop_db": 0.03} if row["precision"] == "bf16" else row for row in rows])
    _, precision, reason = choose(Bundle(bundle), "auto", "auto")
    assert precision == "fp32"
    assert "bf16 loses 0.030 dB, more than 0.02" in reason


def test_without_vnni_bf16_comes_first_then_the_faster_one(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_int8_drop(bundle, 0.0)
    with_bf16_rows(bundle)
    a_cpu(monkeypatch, "avx512_bf16")
    assert choose(Bundle(bundle), "auto", "auto")[1] == "bf16"
    a_cpu(monkeypatch)
    for int8_ms, fp32_ms, wanted in ((5.0, 9.0, "int8"), (9.0, 5.0, "fp32")):
        measured(monkeypatch, int8_ms, fp32_ms)
        _, precision, reason = choose(Bundle(bundle), "auto", "auto")
        assert precision == wanted
        assert f"{int8_ms} ms against {fp32_ms} ms" in reason
        assert "no VNNI" in reason


def test_int8_alone_is_taken_whatever_it_loses(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = json.loads((bundle / "manifest.json").read_text())["variants"]
    rewrite_manifest(bundle, variants=[row | {"psnr_drop_db": 0.04} for row in rows if row["precision"] == "int8"])
    a_cpu(monkeypatch)
    _, precision, reason = choose(Bundle(bundle), "auto", "auto")
    assert precision == "int8"
    assert "no other proven variant" in reason


def test_an_engine_that_cannot_run_int8_leaves_fp32(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_int8_drop(bundle, 0.0)
    a_cpu(monkeypatch)

    def broken(*facts: object) -> Timing:
        raise EngineError("no such kernel")

    monkeypatch.setattr("rdsr.runtime.choice.choose.int8_against_float", broken)
    _, precision, reason = choose(Bundle(bundle), "auto", "auto")
    assert precision == "fp32"
    assert "no such kernel" in reason


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"psnr_drop_db": True}, "psnr_drop_db"),
        ({"psnr_drop_db": "0"}, "psnr_drop_db"),
        ({"psnr_drop_db": 10**400}, "64 bits"),
        ({"psnr_drop_db": 10**15}, "psnr_drop_db"),
        ({"graph": None}, "graph"),
        ({"precision": 8}, "precision"),
    ],
)
def test_crafted_variants_are_refused(bundle: Path, changes: dict[str, object], word: str) -> None:
    rows = json.loads((bundle / "manifest.json").read_text())["variants"]
    rewrite_manifest(bundle, variants=[row | changes for row in rows])
    with pytest.raises(BundleError, match=word):
        Bundle(bundle)


@pytest.mark.parametrize(
    ("flag", "cap", "vnni"),
    [
        ("avx512_vnni", "AVX2_VNNI", False),
        ("avx_vnni", "AVX2_VNNI", True),
        ("avx512_vnni", "AVX512_CORE_BF16", True),
        ("amx_int8", "AVX512_CORE_VNNI", False),
        ("amx_int8", "AVX512_CORE_AMX", True),
        ("avx512_vnni", "ALL", True),
    ],
)
def test_a_cap_is_matched_with_the_flag(monkeypatch: pytest.MonkeyPatch, flag: str, cap: str, vnni: bool) -> None:
    a_cpu(monkeypatch, flag, cap=cap)
    assert cpu.has_vnni() is vnni
    assert cpu.has_vnni(capped=False), "ONNX Runtime does not read the cap"


@pytest.mark.parametrize(("cap", "vnni"), [("AVX2", False), ("AVX512_CORE", False), ("AVX512_CORE_VNNI", True)])
def test_a_cap_counts_as_the_cpu_and_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch, cap: str, vnni: bool) -> None:
    with_int8_drop(bundle, 0.0)
    measured(monkeypatch, 1.0, 2.0)
    a_cpu(monkeypatch, "avx512f", "avx512_vnni", cap=cap)
    assert cpu.has_vnni() is vnni
    reason = choose(Bundle(bundle), "openvino", "auto")[2]
    assert (f"ONEDNN_MAX_CPU_ISA={cap}" in reason) is not vnni


SATURATING = """
import sys, numpy as np, onnx
from onnx import numpy_helper
from rdsr.benchmarks.latency.peaks import convolution_stack
from rdsr.runtime.engines import load_session

model = onnx.load_from_string(convolution_stack(channels=16, depth=1))
kernel = np.zeros((16, 16, 3, 3), np.int8)
kernel[:, 0::2], kernel[:, 1::2] = int(sys.argv[2]), int(sys.argv[3])
scale = np.full(16, 1 / (1.2 * kernel[0].astype(int).sum()), np.float32)
for tensor in model.graph.initializer:
    if tensor.name in ("w0", "s0"):
        tensor.CopyFrom(numpy_helper.from_array(kernel if tensor.name == "w0" else scale, tensor.name))
session = load_session(model.SerializeToString(), backend=sys.argv[1], precision="int8", threads=1)
print(session.run({"x": np.full((1, 16, 8, 8), 255, np.uint8)})[0][0, 0, 4, 4])
"""


@pytest.mark.parametrize(
    ("backend", "weights", "right"),
    [
        ("openvino", (64, 64), True),
        ("openvino", (127, 1), True),
        ("openvino", (127, 127), False),  # what the rule on neighbours is for
        ("onnxruntime", (64, 64), True),
        ("onnxruntime", (127, 1), True),
    ],
)
def test_neighbours_of_128_do_not_saturate_and_larger_ones_would(
    backend: str, weights: tuple[int, int], right: bool
) -> None:
    """The brightest input through kernels for a CPU without VNNI (ONNX Runtime: for this CPU, it has no cap)."""
    command = [sys.executable, "-c", SATURATING, backend, *map(str, weights)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, check=True
    )
    assert (int(done.stdout) == round(255 / 1.2)) is right


def test_int8_is_the_same_under_every_cap(exported: Path) -> None:
    script = (
        "import sys, numpy as np; from rdsr.runtime import Upscaler\n"
        "u = Upscaler.load(sys.argv[1], backend='openvino', precision='int8', threads=1)\n"
        "sys.stdout.buffer.write(u(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)).tobytes())\n"
    )
    outputs = []
    for cap in ("ALL", "AVX512_CORE", "AVX2"):
        command = [sys.executable, "-c", script, str(exported)]
        done = subprocess.run(command, capture_output=True, env=os.environ | {"ONEDNN_MAX_CPU_ISA": cap}, check=True)
        outputs.append(np.frombuffer(done.stdout, np.uint8).astype(int))
    assert all((np.abs(outputs[0] - other) <= 1).mean() >= 0.995 for other in outputs[1:])


def test_the_measurement_is_made_once_and_remembered(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDSR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(speed, "_CHILD_SECONDS", 600)
    monkeypatch.setattr(speed, "_KNOWN", {})
    first = int8_against_float(Bundle(exported), "openvino", "onnxruntime")
    assert first.int8_ms > 0
    assert first.fp32_ms > 0
    (file,) = (tmp_path / "cache").glob("int8-speed-*")
    monkeypatch.setattr(speed, "_KNOWN", {})  # a new process
    monkeypatch.setattr(speed, "load_session", lambda *args, **options: pytest.fail("measured again"))
    assert int8_against_float(Bundle(exported), "openvino", "onnxruntime") == first
    for damage in (b"", b"[]", b'{"int8_ms": -1, "fp32_ms": 2}', b'{"int8_ms": NaN, "fp32_ms": 2}'):
        remember(file.name, damage)
        monkeypatch.setattr(speed, "_KNOWN", {})
        monkeypatch.setattr(speed, "_measure", lambda *facts: Timing(1.0, 2.0))
        assert int8_against_float(Bundle(exported), "openvino", "onnxruntime") == Timing(1.0, 2.0)


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RDSR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(speed, "_CHILD_SECONDS", 600)
    monkeypatch.setattr(speed, "_KNOWN", {})
    assert int8_against_float(Bundle(exported), "openvino", "onnxruntime").fp32_ms > 0


def test_a_measurement_that_fails_is_not_tried_again(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_KNOWN", {})
    monkeypatch.setattr(speed, "recall", lambda name: None)
    tries = []

    def fail(*facts: object) -> Timing:
        tries.append(facts)
        raise EngineError("no such engine")

    monkeypatch.setattr(speed, "_measure", fail)
    for _ in range(2):
        with pytest.raises(EngineError, match="no such engine"):
            int8_against_float(Bundle(exported), "openvino", "onnxruntime")
    assert len(tries) == 1


def test_effective_and_info_say_the_same(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_int8_drop(bundle, 0.0)
    a_cpu(monkeypatch)
    measured(monkeypatch, 1.0, 2.0)
    effective = Upscaler.load(bundle).effective
    here = describe_bundle(bundle)["here"]
    assert (effective.precision, effective.backend) == ("int8", "onnxruntime") == (here["precision"], here["backend"])
    assert effective.reason == here["reason"]
