"""Networks that move a picture's latent: tiles share their latents, noise depends on the place, graphs can take turns."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from rdsr.benchmarks.latency.flops import bundle_gflops, graph_facts
from rdsr.export.exporter import ExportOptions, export_checkpoint
from rdsr.export.graphs import graph_kind
from rdsr.models.registry import load_model
from rdsr.runtime import BundleError, Cancel, CancelledError, MemoryLimitError, Upscaler
from rdsr.runtime.bundle import Bundle
from rdsr.runtime.choice.graph_times import recall_time, remember_times
from rdsr.runtime.choice.speed import Timing, int8_against_float
from rdsr.runtime.engines import BACKENDS, Backend
from rdsr.runtime.engines.cache import CACHE_VARIABLE
from rdsr.runtime.host import cpu
from rdsr.runtime.pictures.arrays import from_graph, to_graph
from rdsr.runtime.pipelines import load_pipeline
from rdsr.runtime.pipelines.residual_shift import ResidualShiftPipeline
from rdsr.runtime.pipelines.shift_process import noise_field, padded, reflected
from rdsr.runtime.tiling.tiles import Plan
from rdsr.runtime.verify import verify
from rdsr.tests.conftest import rewrite_manifest
from rdsr.tests.models.resshift.networks import own_checkpoint

SIDE = 16
"""`size_multiple` of the test's networks."""
LIMIT = 200 * 2**20
"""Bytes under which their tiles are smaller, and one graph at a time is loaded."""


def exported(folder: Path, sampler: str, *precisions: str) -> Path:
    checkpoint = own_checkpoint(folder / f"{sampler}.safetensors", sampler)
    options = ExportOptions(
        checkpoint=checkpoint, output=folder / f"{sampler}.bundle", precisions=precisions, max_psnr_drop=100
    )
    assert export_checkpoint(options).passed
    return options.output


@pytest.fixture(scope="module")
def sinsr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("sinsr"), "sinsr", "fp32", "int8")


@pytest.fixture(scope="module")
def upscaler(sinsr: Path) -> Upscaler:
    """With everything as users get it by default."""
    return Upscaler.load(sinsr)


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("resshift"), "resshift-4", "fp32")


@pytest.fixture(scope="module")
def rsd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("rsd"), "rsd", "fp32")


def picture(height: int, width: int, dtype: Any = np.uint8, channels: int = 3) -> np.ndarray[Any, Any]:
    values = np.random.RandomState(0).random_sample((height, width, channels))
    if dtype == np.float32:
        return values.astype(np.float32)
    return np.rint(values * np.iinfo(dtype).max).astype(dtype)


def pipeline(bundle: Path, **options: Any) -> ResidualShiftPipeline:
    loaded = load_pipeline(
        Bundle(bundle), **({"backend": "onnxruntime", "precision": "fp32", "threads": 2, "seed": 0} | options)
    )
    assert isinstance(loaded, ResidualShiftPipeline)
    return loaded


# -- The process


def test_every_run_of_a_graph_counts(four_steps: Path) -> None:
    bundle, shapes = Bundle(four_steps), {"lr": (1, 3, 32, 16), "latent": (1, 3, 32, 16)}
    encoder, step, decoder = (graph_facts(bundle.graph(role), shapes)[0] for role in ("encoder", "step", "decoder"))
    assert min(encoder, step, decoder) > 0
    assert bundle_gflops(bundle, 32, 16) == pytest.approx(encoder + 4 * step + decoder)


@pytest.mark.parametrize("name", ["four_steps", "rsd"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_engines_follow_the_torch_model(
    name: str, backend: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """Stage by stage on the torch model's inputs, for sizes that need padding and not; whole pictures up to a few codes."""
    bundle = request.getfixturevalue(name)
    checkpoint = bundle.with_suffix(".safetensors")
    kind = graph_kind(load_model(checkpoint).network, 0)
    ran = pipeline(bundle, backend=backend)
    flips = total = 0
    for size in ((1, 1), (16, 16), (17, 5), (5, 33), (40, 24), (48, 32)):
        lr = picture(*size)
        with torch.no_grad():
            expected, stages = kind.prove(torch.from_numpy(to_graph(lr)))
            sr = ran.prove(lr, stages)  # raises if encoder or step are too far off
            assert np.abs(sr - expected.numpy()).max() <= 5e-5
            z = torch.from_numpy(ran.condition(lr)["latent"])
            flips += int((kind.network.codes(z) != torch.from_numpy(stages["codes"])).any(dim=1).sum())
        total += z.shape[2] * z.shape[3]
    assert flips <= 0.005 * total


def test_a_graph_that_is_too_far_off_is_named(sinsr: Path) -> None:
    ran, lr = pipeline(sinsr), picture(16, 16)
    kind = graph_kind(load_model(sinsr.with_suffix(".safetensors")).network, 0)
    with torch.no_grad():
        stages = dict(kind.prove(torch.from_numpy(to_graph(lr)))[1])
    with pytest.raises(BundleError, match=r"the step graph .* of full range off the torch model"):
        ran.prove(lr, stages | {"to0": stages["to0"] + 0.01})
    with pytest.raises(BundleError, match="the encoder graph"):
        ran.prove(lr, stages | {"latent": stages["latent"] * 1.001})
    with pytest.raises(BundleError, match="lacks stages"):
        ran.prove(lr, {name: value for name, value in stages.items() if name != "to0"})
    with pytest.raises(BundleError, match="do not fit"):
        ran.prove(lr, stages | {"codes": stages["codes"][:, :, :8]})


def test_noise_has_one_field_for_the_picture() -> None:
    field = noise_field(3, "start", 2, 40, 24)
    assert field.shape == (1, 2, 40, 24)
    assert abs(float(field.mean())) < 0.1
    assert abs(float(field.std()) - 1) < 0.05
    assert np.array_equal(field, noise_field(3, "start", 2, 40, 24))
    others = [noise_field(4, "start", 2, 40, 24), noise_field(3, "input", 2, 40, 24), noise_field(3, 0, 2, 40, 24)]
    assert all(abs(float((field * other).mean())) < 0.1 for other in others)


def test_pictures_are_mirrored_to_the_right_size() -> None:
    """As the released samplers do it, and on in the same way where a side is too short for them."""
    assert padded(1, 65, 64) == (64, 128)
    assert reflected(0, 8, 5).tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    assert reflected(0, 7, 2).tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert reflected(3, 6, 1).tolist() == [0, 0, 0]
    for length in (33, 40, 64):
        row = torch.arange(float(length)).view(1, 1, 1, -1)
        expected = torch.nn.functional.pad(row, (0, 64 - length, 0, 0), mode="reflect").flatten()
        assert reflected(0, 64, length).tolist() == expected.tolist()


# -- Tiles


def tiles(side: int, height: int, width: int) -> Plan:
    """Tiles of `side` with a halo of an eighth."""
    sides = padded(height, width, SIDE)
    halo = side // 8
    count = [1 if side >= length else -(-(length - 2 * halo) // (side - 2 * halo)) for length in sides]
    return Plan((min(side, sides[0]), min(side, sides[1])), (count[0], count[1]), halo, 0, exact=False)


@pytest.mark.parametrize(("height", "width"), [(70, 41), (53, 54), (55, 59), (57, 81)])
def test_tiles_read_what_the_whole_picture_has(
    sinsr: Path, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With networks that look at no neighbour, tiles give the whole picture's latent: places and shares are right."""
    ran = pipeline(sinsr)

    def local(role: str, inputs: dict[str, Any], sides: Any, *, scale: int = 1) -> Any:
        if role == "encoder":
            return inputs["lr"] * np.float32(2)
        if role == "step":
            return inputs["latent"] + inputs["lr"]
        return np.repeat(np.repeat(inputs["latent"], 4, axis=2), 4, axis=3)

    monkeypatch.setattr(ran, "_run", local)
    lr = picture(height, width, np.float32)
    whole = ran.picture(lr)
    cut = ran.picture(lr, plan=tiles(32, height, width))
    assert np.abs(whole - cut).max() < 1e-5
    assert whole.shape == (4 * height, 4 * width, 3)


def test_seams_do_not_show(sinsr: Path) -> None:
    """The gradient across the borders of tiles is no larger than elsewhere, on a picture of smooth gradients."""
    y, x = np.mgrid[0:80, 0:112]
    smooth = np.stack([x * 2, y * 3, x + y], axis=2).astype(np.uint8)
    plan = tiles(48, 80, 112)
    sr = pipeline(sinsr).picture(smooth, plan=plan).astype(np.float64)
    for axis in (0, 1):
        starts = {(tile.rows, tile.columns)[axis].start for tile in plan.of(80, 112)} - {0}
        # Between the pixels of two LR pixels, as at a border: decoders differ by place there.
        across = np.abs(np.diff(sr, axis=axis)).mean(axis=(1 - axis, 2))[3::4]
        borders = [start - 1 for start in sorted(starts)]
        assert borders
        assert across[borders].mean() <= 1.05 * np.delete(across, borders).mean()


def test_plans(sinsr: Path, caplog: pytest.LogCaptureFixture) -> None:
    upscaler = Upscaler.load(sinsr, backend="onnxruntime", precision="fp32")
    assert upscaler.plan(1, 1).tile == (16, 16)
    assert upscaler.plan(128, 100).exact
    large = upscaler.plan(129, 400)
    assert (large.tile, large.grid, large.exact) == ((128, 128), (2, 4), False)
    least = upscaler.plan(16, 16).peak_bytes
    with pytest.raises(MemoryLimitError, match="at least") as caught:
        Upscaler.load(sinsr, backend="onnxruntime", precision="fp32", memory_limit=least // 4)
    least = caught.value.least_bytes
    tight = Upscaler.load(sinsr, backend="onnxruntime", precision="fp32", memory_limit=least)
    assert tight.plan(16, 16).peak_bytes <= least
    plan = Upscaler.load(sinsr, backend="onnxruntime", precision="fp32", memory_limit=LIMIT).plan(100, 100)
    assert plan.tile == (64, 64)
    assert not plan.exact
    assert plan.peak_bytes <= LIMIT


def test_a_cut_picture_is_warned_of_once(sinsr: Path, caplog: pytest.LogCaptureFixture) -> None:
    upscaler = Upscaler.load(sinsr, backend="onnxruntime", precision="fp32", memory_limit=LIMIT)
    with caplog.at_level(logging.WARNING):
        upscaler(picture(100, 97))
        upscaler(picture(100, 97))
    (record,) = caplog.records
    assert "sinsr sees more of the picture than a tile shows" in record.message
    assert "a memory_limit of" in record.message


# -- What users see


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_same_bytes_for_any_threads_and_limits(four_steps: Path, backend: str) -> None:
    lr = picture(33, 20)
    results = [
        Upscaler.load(four_steps, backend=backend, precision="fp32", threads=threads, memory_limit=limit)(lr)
        for threads, limit in ((1, None), (2, None), (2, LIMIT))
    ]
    assert all(np.array_equal(results[0], other) for other in results[1:])
    assert not np.array_equal(results[0], Upscaler.load(four_steps, backend=backend, precision="fp32", seed=1)(lr))


@pytest.mark.parametrize(
    "lr",
    [
        picture(1, 1), picture(2, 35), picture(20, 17, np.uint16), picture(9, 9, np.float32), picture(18, 7, channels=4),
        picture(5, 6)[..., 0],
    ],
    ids=["one pixel", "flat", "16 bits", "float", "alpha", "grey"],
)  # fmt: skip
def test_any_picture(upscaler: Upscaler, lr: np.ndarray[Any, Any]) -> None:
    result = upscaler(lr)
    assert result.dtype == lr.dtype
    assert result.shape == (lr.shape[0] * 4, lr.shape[1] * 4, *lr.shape[2:])


def test_int8_is_the_decoder_alone(sinsr: Path) -> None:
    lr = picture(32, 32)
    exact, int8 = (
        Upscaler.load(sinsr, backend="onnxruntime", precision=precision)(lr).astype(np.int16)
        for precision in ("fp32", "int8")
    )
    assert not np.array_equal(exact, int8)
    assert np.abs(exact - int8).mean() < 16
    assert {"decoder", "decoder_int8", "encoder", "step"} == set(Bundle(sinsr).manifest.graphs)


@pytest.mark.skipif(not cpu.has_bf16(), reason="this CPU has no bf16")
def test_bf16_is_the_decoder_alone(tmp_path: Path) -> None:
    bundle = exported(tmp_path, "sinsr", "fp32", "bf16")
    lr = picture(24, 32)
    exact, half = (pipeline(bundle, backend="openvino", precision=precision) for precision in ("fp32", "bf16"))
    assert np.array_equal(exact.condition(lr)["latent"], half.condition(lr)["latent"])
    off = np.abs(exact.run(lr) - half.run(lr))
    assert 0 < off.mean() < 0.02


def test_one_graph_at_a_time_under_a_limit(four_steps: Path) -> None:
    alone = pipeline(four_steps, memory_limit=LIMIT)
    together = pipeline(four_steps)
    seen: list[set[str]] = []
    lr = picture(40, 24)

    def note(done: int, total: int) -> None:
        seen.append(set(alone._sessions))

    assert np.array_equal(alone.picture(lr, progress=note), together.picture(lr))
    assert [names for names in seen if len(names) > 1] == []
    assert {name for names in seen for name in names} == {"encoder", "step", "decoder"}
    assert set(together._sessions) == {"encoder", "step", "decoder"}


def test_callers_of_one_graph_at_a_time_wait_for_each_other(sinsr: Path) -> None:
    upscaler = Upscaler.load(sinsr, backend="onnxruntime", precision="fp32", memory_limit=LIMIT)
    pictures = [picture(20, 12 + index) for index in range(4)]
    expected = [upscaler(lr) for lr in pictures]
    found: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: upscaler(pictures[i])})) for i in range(4)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert all(np.array_equal(found[index], expected[index]) for index in range(4))


def test_the_estimate_so_far_can_be_seen(four_steps: Path) -> None:
    upscaler = Upscaler.load(four_steps, backend="onnxruntime", precision="fp32")
    lr = picture(20, 24)
    seen: list[tuple[int, int]] = []
    drawn: list[Any] = []

    def on_step(done: int, total: int, draw: Any) -> None:
        seen.append((done, total))
        if done in (2, total):
            drawn.append(draw())

    result = upscaler.run(lr, on_step=on_step).picture
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [each.shape for each in drawn] == [result.shape, result.shape]
    assert np.array_equal(drawn[-1], result), "the last estimate is the result"
    assert not np.array_equal(drawn[0], result)


def test_cancel_between_steps(four_steps: Path) -> None:
    upscaler = Upscaler.load(four_steps, backend="onnxruntime", precision="fp32")
    cancel = Cancel()
    seen: list[int] = []

    def on_step(done: int, total: int, draw: Any) -> None:
        seen.append(done)
        cancel.set()

    with pytest.raises(CancelledError):
        upscaler.run(picture(20, 24), cancel=cancel, on_step=on_step)
    assert seen == [1]
    assert upscaler(picture(1, 1)).shape == (4, 4, 3), "the instance stays usable"


def test_progress_counts_all_graphs(four_steps: Path) -> None:
    seen: list[tuple[int, int]] = []
    Upscaler.load(four_steps, backend="onnxruntime", precision="fp32")(picture(8, 8), progress=lambda *now: seen.append(now))
    assert seen == [(number, 6) for number in range(1, 7)]


def loaded_engines(upscaler: Upscaler) -> dict[str, str]:
    """Role → engine, after a call."""
    upscaler(picture(SIDE, SIDE))
    (loaded,) = upscaler._pipelines.loaded.values()
    return dict(loaded.engines)


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))


@pytest.mark.usefixtures("own_cache")
def test_auto_gives_each_graph_the_engine_that_was_faster(four_steps: Path) -> None:
    manifest = Bundle(four_steps).manifest
    seconds: dict[Backend, dict[str, float]] = {
        "openvino": {"encoder": 1.0, "step": 1.0, "decoder": 3.0},
        "onnxruntime": {"encoder": 0.8, "step": 0.97, "decoder": 5.0},
    }
    for engine, taken in seconds.items():
        remember_times(manifest, engine, "fp32", taken)
    with Upscaler.load(four_steps, precision="fp32") as upscaler:
        assert upscaler.effective.backend == "openvino"
        assert (
            "openvino: 3.00 s against 5.00 s for the decoder here, but encoder in onnxruntime" in upscaler.effective.reason
        )
        assert loaded_engines(upscaler) == {"encoder": "onnxruntime", "step": "openvino", "decoder": "openvino"}
    for options in ({"backend": "onnxruntime"}, {"backend": "openvino"}, {"memory_limit": "1GiB"}):
        with Upscaler.load(four_steps, precision="fp32", **options) as upscaler:  # type: ignore[arg-type]
            assert len(set(loaded_engines(upscaler).values())) == 1


@pytest.mark.usefixtures("own_cache")
def test_int8_and_float_are_compared_by_what_was_measured(sinsr: Path) -> None:
    manifest = Bundle(sinsr).manifest
    remember_times(manifest, "openvino", "int8", {"decoder": 0.25})
    remember_times(manifest, "openvino", "fp32", {"decoder": 0.5})
    assert int8_against_float(Bundle(sinsr), "openvino", "openvino") == Timing(250.0, 500.0)


@pytest.mark.parametrize("name", ["sinsr", "rsd"])
def test_verify_proves_it_again_and_keeps_how_long_graphs_took(name: str, request: pytest.FixtureRequest) -> None:
    bundle = Bundle(request.getfixturevalue(name))
    request.getfixturevalue("own_cache")  # not before the export, which keeps them, too
    assert all(recall_time(bundle.manifest, "decoder", engine, "fp32") is None for engine in BACKENDS)
    assert verify(bundle).passed
    for engine in BACKENDS:
        assert all(recall_time(bundle.manifest, role, engine, "fp32") for role in ("encoder", "step", "decoder"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"calls": []}, "calls"), ({"calls": [[14, 0.5, 1, 0]]}, "calls"), ({"calls": [[14, 0.5, 1, 0, "x"]]}, "calls"),
        ({"first_noise": -1}, "first_noise"), ({"size_multiple": 3}, "size_multiple"), ({"latent_channels": 0}, "latent"),
        ({"values": {"encoder": 1}}, "values"), ({"values": {"encoder": 1, "step": 0, "decoder": 1}}, "values of step"),
    ],
)  # fmt: skip
def test_sections_that_make_no_sense(sinsr: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    copy = shutil.copytree(sinsr, tmp_path / "copy.bundle")
    rewrite_manifest(copy, process={**Bundle(copy).manifest.process, **change})
    with pytest.raises(BundleError, match=words):
        Upscaler.load(copy)


@pytest.mark.parametrize("role", ["encoder", "step", "decoder"])
def test_lies_about_memory_are_refused(sinsr: Path, tmp_path: Path, role: str) -> None:
    copy = shutil.copytree(sinsr, tmp_path / "copy.bundle")
    process = dict(Bundle(copy).manifest.process)
    process["values"] = {**process["values"], role: process["values"][role] // 2}
    rewrite_manifest(copy, process=process)
    with pytest.raises(BundleError, match=f"claims values of {role}"):
        verify(Bundle(copy))


def test_files_are_never_cut_into_strips(sinsr: Path, tmp_path: Path) -> None:
    """Each step reads the whole picture again."""
    cv2.imwrite(str(tmp_path / "in.png"), picture(400, 2000))
    upscaler = Upscaler.load(sinsr, backend="onnxruntime", precision="fp32", memory_limit="160MiB")
    with pytest.raises(MemoryLimitError, match=r"because the network needs it whole") as caught:
        upscaler.file(tmp_path / "in.png", tmp_path / "out.png")
    upscaler = Upscaler.load(sinsr, backend="onnxruntime", precision="fp32", memory_limit=caught.value.least_bytes)
    assert upscaler.plan(400, 2000).peak_bytes + 17 * 3 * 400 * 2000 <= caught.value.least_bytes


def test_files_go_through(upscaler: Upscaler, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "in.png"), picture(20, 30))
    upscaler.file(tmp_path / "in.png", tmp_path / "out.png")
    assert cv2.imread(str(tmp_path / "out.png")).shape == (80, 120, 3)


def test_from_graph_is_what_the_picture_is(sinsr: Path) -> None:
    ran, lr = pipeline(sinsr), picture(16, 16)
    assert np.array_equal(ran.picture(lr), from_graph(ran.run(lr), lr))
