"""What `auto` takes, and that it says why: VNNI, drops, caps, and a measurement that is made once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rdsr.runtime import Upscaler, cpu, speed
from rdsr.runtime.bundle import Bundle
from rdsr.runtime.choice import choose
from rdsr.runtime.describe import describe_bundle
from rdsr.runtime.speed import Timing, int8_against_float
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
    monkeypatch.setattr("rdsr.runtime.choice.int8_against_float", lambda *facts: Timing(int8_ms, fp32_ms))


@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni", "amx_int8"])
def test_int8_where_the_cpu_is_made_for_it(bundle: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    with_int8_drop(bundle, 0.019)
    a_cpu(monkeypatch, flag)
    engine, precision, reason = choose(Bundle(bundle), "auto", "auto")
    assert (engine, precision) == ("openvino", "int8")
    assert "natively" in reason
    assert "0.019 dB" in reason
    assert choose(Bundle(bundle), "onnxruntime", "auto")[:2] == ("onnxruntime", "int8")


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


@pytest.mark.parametrize(("cap", "vnni"), [("AVX2", False), ("AVX512_CORE", False), ("AVX512_CORE_VNNI", True)])
def test_a_cap_counts_as_the_cpu_and_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch, cap: str, vnni: bool) -> None:
    with_int8_drop(bundle, 0.0)
    measured(monkeypatch, 1.0, 2.0)
    a_cpu(monkeypatch, "avx512f", "avx512_vnni", cap=cap)
    assert cpu.has_vnni() is vnni
    reason = choose(Bundle(bundle), "auto", "auto")[2]
    assert (f"ONEDNN_MAX_CPU_ISA={cap}" in reason) is not vnni


def test_int8_is_right_under_every_cap(exported: Path) -> None:
    """Bytes of a fresh process with kernels for less capable CPUs: nothing saturates, so they agree within a level."""
    import os
    import subprocess
    import sys

    import numpy as np

    script = (
        "import sys, numpy as np; from rdsr.runtime import Upscaler\n"
        "u = Upscaler.load(sys.argv[1], backend='openvino', precision='int8', threads=1)\n"
        "sys.stdout.buffer.write(u(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)).tobytes())\n"
    )
    outputs = []
    for cap in ("ALL", "AVX512_CORE", "AVX2"):
        environment = os.environ | {"ONEDNN_MAX_CPU_ISA": cap}
        done = subprocess.run(
            [sys.executable, "-c", script, str(exported)], capture_output=True, env=environment, check=True
        )
        outputs.append(np.frombuffer(done.stdout, np.uint8).astype(int))
    assert all((np.abs(outputs[0] - other) <= 1).mean() >= 0.995 for other in outputs[1:])


def test_the_measurement_is_made_once_and_remembered(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDSR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(speed, "_KNOWN", {})
    first = int8_against_float(Bundle(exported), "openvino", "onnxruntime", 1)
    assert first.int8_ms > 0
    assert first.fp32_ms > 0
    (file,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr(speed, "_KNOWN", {})  # a new process
    monkeypatch.setattr(speed, "load_session", lambda *args, **options: pytest.fail("measured again"))
    assert int8_against_float(Bundle(exported), "openvino", "onnxruntime", 1) == first
    for damage in (b"", b"[]", b'{"int8_ms": -1, "fp32_ms": 2}', b'{"int8_ms": NaN, "fp32_ms": 2}'):
        file.write_bytes(damage)
        monkeypatch.setattr(speed, "_KNOWN", {})
        monkeypatch.setattr(speed, "_measure", lambda *facts: Timing(1.0, 2.0))
        assert int8_against_float(Bundle(exported), "openvino", "onnxruntime", 1) == Timing(1.0, 2.0)


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RDSR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(speed, "_KNOWN", {})
    assert int8_against_float(Bundle(exported), "openvino", "onnxruntime", 1).fp32_ms > 0


def test_effective_and_info_say_the_same(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_int8_drop(bundle, 0.0)
    a_cpu(monkeypatch)
    measured(monkeypatch, 1.0, 2.0)
    effective = Upscaler.load(bundle).effective
    here = describe_bundle(bundle)["here"]
    assert (effective.precision, effective.backend) == ("int8", "openvino") == (here["precision"], here["backend"])
    assert effective.reason == here["reason"]
