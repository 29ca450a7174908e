"""`Upscaler`: kinds of pictures, sizes, choices of engine and precision, threads, errors that leave it usable."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rdsr.models.rdsr import RDSR
from rdsr.runtime import Bundle, BundleError, EngineError, OptionError, OutputError, PictureError, Upscaler
from rdsr.runtime.choice.choose import choose
from rdsr.runtime.engines.onnxruntime_engine import thread_places
from rdsr.runtime.host import cpu
from rdsr.runtime.pictures.arrays import FULL_SCALE, from_graph, to_graph
from rdsr.runtime.pipelines.latent_prior import initial_noise
from rdsr.tests.conftest import CONFIG, rewrite_manifest, run_alone, with_bf16_rows, without_int8

RNG = np.random.default_rng(0)
KINDS = [(), (1,), (2,), (3,), (4,)]


def picture(size: tuple[int, int], dtype: str, channels: tuple[int, ...]) -> np.ndarray:
    if dtype == "float32":
        return RNG.random((*size, *channels), dtype=np.float32)
    return RNG.integers(0, np.iinfo(dtype).max, (*size, *channels), dtype=dtype, endpoint=True)


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def fp32(request: pytest.FixtureRequest, exported: Path) -> Upscaler:
    return Upscaler.load(exported, backend=request.param, precision="fp32", threads=2)


@pytest.fixture(scope="module")
def auto(exported: Path) -> Upscaler:
    return Upscaler.load(exported)


@pytest.mark.parametrize("channels", KINDS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_kind_of_picture_is_kept(auto: Upscaler, dtype: str, channels: tuple[int, ...]) -> None:
    upscaled = auto(picture((7, 10), dtype, channels))
    assert upscaled.shape == (28, 40, *channels)
    assert upscaled.dtype == dtype
    assert upscaled.flags["C_CONTIGUOUS"]


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(["uint8", "float32"]),
)
def test_any_size_and_kind_equals_torch(
    fp32: Upscaler, network: RDSR, height: int, width: int, kind: tuple[int, ...], dtype: str
) -> None:
    source = picture((height, width), dtype, kind)
    if kind in ((2,), (4,)):
        source[:, :, -1] = np.maximum(
            source[:, :, -1], FULL_SCALE[source.dtype] / 4
        )  # visible colours reach the network as they are
    upscaled = fp32(source)
    colour = source[:, :, None] if source.ndim == 2 else source[:, :, : (1 if source.shape[2] < 3 else 3)]
    noise = torch.from_numpy(initial_noise(0, CONFIG.latent_size))
    with torch.no_grad():
        wanted = from_graph(network(torch.from_numpy(to_graph(colour)), noise).numpy(), colour)
    got = upscaled.reshape(*upscaled.shape[:2], -1)[:, :, : wanted.shape[2]]
    limit = 1 if dtype == "uint8" else 1e-4
    assert np.abs(got.astype(np.float64) - wanted).max() <= limit


@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (5000, 3)])
def test_extreme_sizes(auto: Upscaler, size: tuple[int, int]) -> None:
    assert auto(picture(size, "uint8", (3,))).shape == (4 * size[0], 4 * size[1], 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1)])
def test_the_least_pictures_are_the_same_in_both_engines(size: tuple[int, int]) -> None:
    first, second = (Upscaler.load(backend=each, precision="int8", threads=1) for each in ("openvino", "onnxruntime"))
    for _ in range(5):
        source = picture(size, "uint8", (3,))
        assert np.abs(first(source).astype(int) - second(source)).max() <= 4


def test_constant_alpha_stays_constant(auto: Upscaler) -> None:
    source = picture((9, 6), "uint8", (4,))
    source[:, :, 3] = 200
    assert (auto(source)[:, :, 3] == 200).all()


def test_views_and_read_only_pictures_work(auto: Upscaler) -> None:
    source = picture((12, 16), "uint8", (3,))
    view = source[::2, ::-1]
    frozen = view.copy()
    frozen.flags.writeable = False
    assert np.array_equal(auto(view), auto(frozen))


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (np.zeros((5, 5, 5), np.uint8), "shape"),
        (np.zeros((2, 5, 5, 3), np.uint8), "shape"),
        (np.zeros((5, 5, 3), np.int32), "int32"),
        (np.zeros((5, 5, 3), np.float64), "float64"),
        (np.full((5, 5, 3), np.nan, np.float32), "NaN"),
        (np.concatenate([np.zeros((99, 5, 3), np.float32), np.full((1, 5, 3), np.nan, np.float32)]), "NaN"),
        (np.full((5, 5, 3), 200, np.float32), "0 to 1, and this one has 200 to 200"),
        (np.full((5, 5, 3), -0.6, np.float32), "0 to 1"),
        (np.ma.masked_invalid(np.full((5, 5, 3), np.nan, np.float32)), "MaskedArray"),
        ([[1, 2], [3, 4]], "list"),
        ("cat.png", "str"),
    ],
)
def test_bad_pictures_are_refused_and_leave_the_instance_usable(auto: Upscaler, bad: object, word: str) -> None:
    with pytest.raises(PictureError, match=word):
        auto(bad)
    assert auto(picture((4, 4), "uint8", (3,))).shape == (16, 16, 3)


def test_matrices_and_overshoots_are_pictures(auto: Upscaler) -> None:
    grey = picture((4, 5), "uint8", ())
    assert np.array_equal(auto(np.asmatrix(grey)), auto(grey))  # type: ignore[no-untyped-call]
    assert np.isfinite(auto(np.linspace(-0.1, 1.1, 60, dtype=np.float32).reshape(4, 5, 3))).all()


@pytest.mark.parametrize("dtype", ["junk", "float64", object(), "int8"])
def test_plans_are_for_pictures(auto: Upscaler, dtype: object) -> None:
    with pytest.raises(OptionError, match="dtype must be uint8, uint16 or float32"):
        auto.plan(10, 10, dtype)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("a\0.png", "b.png"), PictureError),
        (("a.png", "b\0.png"), OutputError),
        (("x" * 300 + ".png", "b.png"), PictureError),
        (("a.png", "x" * 300 + ".png"), OutputError),
    ],
)
def test_names_that_no_file_can_have_are_said(auto: Upscaler, tmp_path: Path, names: tuple[str, str], kind: type) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(kind, match="cannot"):
        auto.file(tmp_path / names[0], tmp_path / names[1])


def test_names_as_long_as_they_can_be_are_written(auto: Upscaler, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    target = tmp_path / ("字" * 83 + ".png")  # 253 bytes
    auto.file(tmp_path / "a.png", target)
    assert target.is_file()


def test_same_seed_same_bytes_other_seed_other_prior(exported: Path) -> None:
    source = picture((20, 24), "float32", (3,))
    first, again, other = (Upscaler.load(exported, precision="fp32", seed=seed)(source) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other), "the seed must reach the reverse process"


def test_many_threads_get_the_same_bytes(auto: Upscaler) -> None:
    pictures = [picture((8 + i, 30 - i), "uint8", (3,)) for i in range(8)]
    alone = [auto(p) for p in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(auto, pictures * 3))
    assert all(np.array_equal(a, b) for a, b in zip(alone * 3, together, strict=True))


def test_auto_says_what_it_chose_and_why(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_bf16", lambda: False)
    effective = Upscaler.load(exported, precision="fp32").effective
    assert (effective.precision, effective.backend) == ("fp32", "onnxruntime")
    assert effective.reason == "fp32: asked for; onnxruntime: fewest stalls on unseen sizes"
    with pytest.raises(OptionError, match="no bf16 arithmetic"):
        Upscaler.load(exported, precision="bf16")
    assert effective.threads == cpu.available_threads()


def test_auto_takes_bf16_where_cpu_and_proof_allow(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_bf16_rows(bundle)
    without_int8(bundle)
    monkeypatch.setattr(cpu, "has_bf16", lambda: True)
    assert choose(Bundle(bundle), "auto", "auto")[:2] == ("openvino", "bf16")
    assert choose(Bundle(bundle), "onnxruntime", "auto")[:2] == ("onnxruntime", "fp32")
    with pytest.raises(OptionError, match="onnxruntime has no bf16"):
        choose(Bundle(bundle), "onnxruntime", "bf16")


def test_isa_cap_counts_as_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset({"avx512_bf16", "amx_bf16"}))
    for cap, wanted in (("AVX2", False), ("AVX512_CORE_VNNI", False), ("AVX512_CORE_BF16", True), ("ALL", True)):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
        assert cpu.has_bf16() is wanted


def test_sixteen_bit_and_float_pictures_run_in_float32(auto: Upscaler) -> None:
    assert auto.run(picture((5, 5), "uint8", (3,))).precision == auto.effective.precision
    assert auto.run(picture((5, 5), "uint16", (3,))).precision == "fp32"
    assert auto.run(picture((5, 5), "float32", (3,))).precision == "fp32"


def test_openvino_really_runs_the_precision_it_was_given(exported: Path) -> None:
    wanted = {"fp32": "f32", "int8": "f32"} | ({"bf16": "bf16"} if cpu.has_bf16() else {})
    for precision, name in wanted.items():
        pipeline = Upscaler.load(exported, backend="openvino", precision=precision)._pipelines.of(("openvino", precision))
        assert pipeline._sessions["decoder"].effective_precision == name
        assert pipeline._sessions["encoder"].effective_precision == "f32"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"backend": "tensorrt"}, "tensorrt"),
        ({"precision": "fp16"}, "fp16"),
        ({"threads": 0}, "threads"),
        ({"threads": 1.5}, "threads"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"backend": "onnxruntime", "precision": "bf16"}, "no bf16"),
    ],
)
def test_bad_options_are_named(exported: Path, options: dict[str, object], word: str) -> None:
    with pytest.raises(OptionError, match=word):
        Upscaler.load(exported, **options)


def test_variants_that_were_not_proven_are_refused(bundle: Path) -> None:
    without_int8(bundle)
    with pytest.raises(BundleError, match="no proven int8 variant"):
        Upscaler.load(bundle, precision="int8")
    rewrite_manifest(bundle, variants=[])
    with pytest.raises(BundleError, match="no proven"):
        Upscaler.load(bundle)


def test_engine_failures_are_typed(auto: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError):
        auto._pipelines.of((auto.effective.backend, auto.effective.precision))._sessions["decoder"].run(
            {"lr": np.zeros((1, 2, 5, 5), np.float32), "z": np.zeros((1, 3), np.float32)}
        )
    assert auto(picture((5, 5), "uint8", (3,))).shape == (20, 20, 3)


def test_threads_follow_the_quota(tmp_path: Path) -> None:
    own = tmp_path / "self"
    own.write_text("0::/system.slice/upscaler.service\n")
    group = tmp_path / "system.slice" / "upscaler.service"
    group.mkdir(parents=True)
    assert cpu._quota(tmp_path, own) is None
    (group / "cpu.max").write_text("max 100000\n")
    assert cpu._quota(tmp_path, own) is None
    (group / "cpu.max").write_text("150000 100000\n")
    assert cpu._quota(tmp_path, own) == 1.5
    (group.parent / "cpu.max").write_text("100000 100000\n")
    assert cpu._quota(tmp_path, own) == 1.0, "the least of all groups above counts"
    own.write_text("4:cpu,cpuacct:/docker/x\n0::/\n")  # v1
    (tmp_path / "cpu" / "docker" / "x").mkdir(parents=True)
    (tmp_path / "cpu/docker/x/cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu/docker/x/cpu.cfs_period_us").write_text("100000\n")
    assert cpu._quota(tmp_path, own) == 0.5


@pytest.mark.parametrize(("quota", "cores", "wanted"), [(0.5, 8, 1), (1.0, 8, 1), (2.5, 8, 3), (None, 8, 8), (6.0, 2, 2)])
def test_available_threads(monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int, wanted: int) -> None:
    monkeypatch.setattr(cpu, "_quota", lambda: quota)
    monkeypatch.setattr(cpu, "numa_nodes", lambda: [list(range(cores))])
    monkeypatch.setattr(cpu, "_allowed", lambda: set(range(cores)))
    assert cpu.available_threads() == wanted


def test_several_sockets_mean_one_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 4, 5, 6, 7}, raising=False)
    assert cpu.numa_nodes(tmp_path) == [[0, 1, 2, 4, 5, 6, 7]], "nothing is known of nodes"
    for node, listed in enumerate(("0-3\n", "4-5,6,7\n", "8-11\n", "\n")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(listed)
    assert cpu.numa_nodes(tmp_path) == [[4, 5, 6, 7], [0, 1, 2]], "the largest allowed part first"
    monkeypatch.setattr(cpu, "numa_nodes", lambda: [[4, 5, 6, 7], [0, 1, 2]])
    monkeypatch.setattr(cpu, "_quota", lambda: None)
    assert cpu.available_threads() == 4
    assert cpu.process_threads() == 7, "several instances of a process may use them all"
    assert thread_places(3) == "5-8;5-8", "ONNX Runtime counts CPUs from 1, and the caller is the third thread"
    assert thread_places(1) == ""
    assert thread_places(7) == "", "whoever asks for more than a node has may have them all"
    monkeypatch.setattr(cpu, "numa_nodes", lambda: [[0, 1, 8, 9], [4, 5]])
    assert thread_places(2) == "1,2,9,10"
    monkeypatch.setattr(cpu, "numa_nodes", lambda: [list(range(0, 256, 2)), [1]])
    assert thread_places(128) == "", "ONNX Runtime refuses options that are too long"
    monkeypatch.setattr(cpu, "numa_nodes", lambda: [[0, 1]])
    assert thread_places(2) == ""


def test_processes_spread_over_equal_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(9)), raising=False)
    for node, listed in enumerate(("0-3", "4-7", "8")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(listed)
    firsts = []
    for pid in range(4):
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)
        nodes = cpu.numa_nodes(tmp_path)
        assert sorted(nodes) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
        firsts.append(nodes[0][0])
    assert firsts == [0, 4, 0, 4]


@pytest.mark.skipif(len(cpu._allowed()) < 2, reason="needs two CPUs")
def test_onnxruntime_takes_places_for_its_threads(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.zeros((9, 8, 3), np.uint8)
    free = Upscaler.load(exported, backend="onnxruntime", threads=2)(picture)
    processors = sorted(cpu._allowed())
    monkeypatch.setattr(cpu, "numa_nodes", lambda: [processors, [999]])
    assert thread_places(2)
    assert np.array_equal(Upscaler.load(exported, backend="onnxruntime", threads=2)(picture), free)


def test_signals_are_survived_after_the_last_upscaler_is_gone(exported: Path) -> None:
    """OpenVINO's CPU plugin leaves a dangling signal stack behind when it is unloaded; the process must outlive it."""
    script = (
        "import gc, os, signal, sys, numpy as np\n"
        "from rdsr.runtime import Upscaler\n"
        "upscaler = Upscaler.load(sys.argv[1], backend='openvino')\n"
        "upscaler(np.zeros((9, 9, 3), np.uint8))\n"
        "del upscaler; gc.collect()\n"
        "signal.signal(signal.SIGINT, lambda *_: print('caught'))\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    assert run_alone(script, exported) == "caught\n"
