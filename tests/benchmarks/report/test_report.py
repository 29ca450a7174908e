"""The report: every model in it, nothing fetched from elsewhere, labels apart, and one sentence for what is no result."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from rdsr.benchmarks.errors import BenchmarkError
from rdsr.benchmarks.report.data import read_results
from rdsr.benchmarks.report.facts import Facts, pareto, quantity, ratio, short_names
from rdsr.benchmarks.report.front import draw_front, frames, place_labels
from rdsr.benchmarks.report.page import MARKS, readme_block, update_readme, write_report

PEER = "/some/long/path/peer_model_x4.onnx"
HOST = {
    "cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
    "isa": "AVX512_VNNI, AMX",
    "isa_cap": None,
    "cores": 2,
    "governor": None,
    "memory_gb": 15.6,
    "os": "Linux 6.1",
    "python": "3.11.9",
    "versions": {"openvino": "2025.3.0", "onnxruntime": "1.23.0", "torch": "2.9.0+cpu"},
}
# model: weights, GFLOP, parameters (M), PSNR-Y on Set5 (published where the weights are random), engine → fp32 ms
MODELS: dict[str, tuple[str, float | None, float | None, float | None, dict[str, float]]] = {
    "rdsr-base": ("trained", 36.1, 2.2, 31.72, {"torch-eager": 610, "onnxruntime": 345, "openvino": 311}),
    "rdsr-small": ("trained", 10.5, 0.9, 31.32, {"torch-eager": 181, "onnxruntime": 96, "openvino": 90.4}),
    "rdsr-tiny": ("trained", 6.3, 0.7, 31.21, {"torch-eager": 118, "onnxruntime": 58, "openvino": 55.1}),
    "diffir": ("random", 720.0, 26.5, 32.75, {"torch-eager": 14230, "torch-compile": 9120, "openvino": 8760}),
    "span": ("random", 6.6, 0.43, 31.74, {"onnxruntime": 88, "openvino": 81}),
    "rlfn": ("random", 7.1, 0.54, 32.07, {"onnxruntime": 99, "openvino": 92}),
    "imdn": ("random", 9.6, 0.72, 32.21, {"onnxruntime": 131, "openvino": 125}),
    PEER: ("given", None, None, 31.35, {"onnxruntime": 93.5, "openvino": 89}),
    "bicubic": ("none", None, None, 28.63, {"opencv": 0.31}),
}
LOWER = {"bf16": (0.51, 0.003), "int8": (0.34, 0.03)}  # share of the time, drop of PSNR


def row(model: str, backend: str, precision: str, ms: float, **changes: Any) -> dict[str, Any]:
    weights, gflops, params, _, _ = MODELS.get(model, ("given", None, None, None, {}))
    share = None if gflops is None else gflops / ms * 1e3 / {"fp32": 140, "bf16": 600, "int8": 1100}[precision]
    return {
        "model": model,
        "weights": weights,
        "backend": backend,
        "precision": precision,
        "size": [128, 128],
        "batch": 1,
        "threads": 2,
        "rounds": 9,
        "runs": 90,
        "p50_ms": ms,
        "p90_ms": ms * 1.03,
        "p99_ms": ms * 1.1,
        "min_ms": ms * 0.98,
        "spread": 0.012,
        "stable": True,
        "cold_start_ms": 40 + 2 * ms,
        "peak_rss_mb": 160 + 0.05 * ms,
        "gflops": gflops,
        "params_m": params,
        "speedup_vs_baseline": 14230 / ms,
        "throughput_gflops": None if gflops is None else gflops / ms * 1e3,
        "share_of_peak": share,
        "error": None,
    } | changes


def failed(model: str, backend: str, precision: str, error: str) -> dict[str, Any]:
    return dict.fromkeys(row(model, backend, precision, 1.0)) | {
        "model": model,
        "weights": "random",
        "backend": backend,
        "precision": precision,
        "size": [128, 128],
        "batch": 1,
        "threads": 2,
        "error": error,
    }


def latency() -> dict[str, Any]:
    rows = []
    for model, (_, _, _, _, engines) in MODELS.items():
        for backend, ms in engines.items():
            rows.append(row(model, backend, "uint8" if backend == "opencv" else "fp32", ms))
        if model.startswith("rdsr") or model in ("span", "diffir"):
            rows += [row(model, "openvino", p, engines["openvino"] * share) for p, (share, _) in LOWER.items()]
            rows.append(row(model, "onnxruntime", "int8", engines["openvino"] * 0.41))
    rows[3]["stable"] = False
    rows.append(failed("swinir", "onnxruntime", "bf16", "ONNX Runtime has no bf16 convolution on a CPU"))
    return {
        "date": "2026-11-25T04:00:00Z",
        "commit": "2f2f881",
        "host": HOST,
        "threads": 2,
        "settings": ["Two threads for every engine.", "OpenVINO's inference precision is set explicitly."],
        "baseline": {"model": "diffir", "backend": "torch-eager", "precision": "fp32"},
        "peaks": [
            {"backend": "openvino", "precision": p, "threads": 2, "convolution_gflops": g, "matmul_gflops": 1.2 * g}
            for p, g in (("fp32", 140.0), ("bf16", 600.0), ("int8", 1100.0))
        ],
        "rows": rows,
    }


def sweep(name: str) -> dict[str, Any]:
    rows, fits = [], []
    for model, precision in itertools.product(("rdsr-tiny", "rdsr-base", "span", PEER), ("fp32", "int8")):
        whole = MODELS[model][4]["openvino"] * (LOWER["int8"][0] if precision == "int8" else 1)
        for step in (32, 64, 128, 256, 512) if name == "size" else (1, 2, 4, 8):
            scale, change = {
                "size": ((step / 128) ** 2, {"size": [step, step]}),
                "threads": (2 / step**0.9, {"threads": step}),
                "batch": (step**0.97, {"batch": step}),
            }[name]
            rows.append(row(model, "openvino", precision, whole * scale, **change))
        fits.append({"model": model, "backend": "openvino", "precision": precision, "exponent": 1.004, "points": 5})
    fits[0]["exponent"] = None
    return {"date": "2026-11-26T04:00:00Z", "commit": None, "host": HOST, "sweep": name, "rows": rows, "fits": fits}


def quality() -> dict[str, Any]:
    rows = []
    for dataset, (model, (weights, _, _, psnr, _)) in itertools.product(("Set14", "Set5"), MODELS.items()):
        if weights == "random" or psnr is None:
            continue
        value = psnr - (3.2 if dataset == "Set14" else 0)
        base = {"dataset": dataset, "images": 5, "scale": 4, "model": model, "backend": "onnxruntime", "precision": "fp32"}
        base |= {"psnr_y": value, "ssim_y": 0.88, "psnr_rgb": value - 1.9}
        if model == "bicubic":
            base |= {"backend": "opencv", "precision": "uint8"}
        rows.append(base)
        if model.startswith("rdsr"):
            rows += [base | {"precision": p, "psnr_y": value - drop} for p, (_, drop) in LOWER.items()]
    return {"rows": rows}


def peers() -> dict[str, Any]:
    known = {model: psnr for model, (weights, _, _, psnr, _) in MODELS.items() if weights == "random"}
    return {
        "peers": [
            {"model": model, "psnr_y": {"Set5": psnr, "Set14": 28.2}, "source": "published", "note": "DIV2K, RGB in"}
            for model, psnr in known.items()
        ]
    }


def write(folder: Path, **contents: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name.replace('_', '-')}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def full(folder: Path) -> Path:
    sweeps = {f"sweep_{name}": sweep(name) for name in ("size", "threads", "batch")}
    write(folder, latency=latency(), quality=quality(), peers=peers(), **sweeps)
    assert cv2.imwrite(str(folder / "crops.png"), np.random.default_rng(0).integers(0, 255, (200, 600, 3), dtype=np.uint8))
    return folder


class Page(HTMLParser):
    """What a browser would find: text, tags left open, and every address."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.text, self.open, self.addresses, self.tags = "", [], [], set()
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_that_was_measured_is_on_both_pages(tmp_path: Path) -> None:
    paths = write_report(full(tmp_path))
    page, markdown = Page(paths.html.read_text()), paths.markdown.read_text()
    for text in (page.text, markdown):
        for name in (*short_names(MODELS).values(), "ONNX Runtime has no bf16 convolution on a CPU", "2f2f881", HOST["cpu"]):
            assert name in text
        assert "/some/long/path" not in text
        assert "760 times as fast as the baseline" in text  # 14230 ms over 55.1·0.34
        assert "468 times as fast as diffir" in text  # 8760 ms over the same
        assert "unstable" in text
    assert len(paths.plots) == 7
    for plot in (*paths.plots, tmp_path / "crops.png"):
        assert f"]({plot.name})" in markdown
        assert cv2.imread(str(plot)).std() > 5
    assert page.text.count("Median time of a call over") == 3


def test_the_page_fetches_nothing(tmp_path: Path) -> None:
    paths = write_report(full(tmp_path))
    content = paths.html.read_text()
    page = Page(content)
    assert not page.open
    assert len(page.addresses) == 8
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "base"} & page.tags
    assert not re.search(r"https?:|@import|url\(", content)


def test_a_latency_file_is_enough(tmp_path: Path) -> None:
    alone = latency() | {"rows": [row("rdsr-tiny", "openvino", "fp32", 55.1, speedup_vs_baseline=None)], "baseline": None}
    for key in ("commit", "peaks"):
        del alone[key]
    paths = write_report(write(tmp_path, latency=alone))
    assert [plot.name for plot in paths.plots] == ["latency.png", "memory.png", "peak.png"]
    assert "times as fast" not in paths.markdown.read_text()


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    content = latency() | {"rows": [failed("diffir", "openvino", "fp32", "not enough memory")]}
    text = write_report(write(tmp_path, latency=content, quality=quality())).markdown.read_text()
    assert "No row was measured." in text
    assert "not enough memory" in text
    assert "nothing measured" in readme_block(tmp_path)


HOSTILE = (
    "<script>alert(1)</script>.onnx",
    '"><img src=https://evil.example/x onerror=alert(1)>',
    "a|b\nc | d",
    "$\\frac{$ x_$",
    "](https://evil.example)![x](y)",
    "<!-- bench:end -->",
    "\ud800\u202e\x00<b>",
    "n" * 3000,
    "",
)


TAGS = "html head meta title style body main h1 h2 ul li p div table thead tbody tr th td figure img figcaption"


@pytest.mark.parametrize("name", HOSTILE)
def test_foreign_text_stays_text(tmp_path: Path, name: str) -> None:
    content = latency()
    content["rows"] = [
        row(name, name, "fp32", 80.0, weights=name),
        row("rdsr-tiny", "openvino", "int8", 50.0),
        failed(name, name, name, name),
    ]
    content |= {"baseline": {"model": name, "backend": name, "precision": "fp32"}, "settings": [name], "commit": name}
    content["host"] = HOST | {"cpu": name, "versions": {name: name}}
    shown = {"dataset": name, "images": 5, "scale": 4, "backend": name, "ssim_y": 0.9, "psnr_rgb": 30.0, "psnr_y": 31.0}
    rows = [shown | {"model": name, "precision": "fp32"}, shown | {"model": "rdsr-tiny", "precision": "int8"}]
    foreign = {"peers": [{"model": name, "psnr_y": {name: 31.0}, "source": name, "note": name}]}
    paths = write_report(write(tmp_path, latency=content, quality={"rows": rows}, peers=foreign))
    page = Page(paths.html.read_text())
    assert not page.open
    assert page.tags == set(TAGS.split())
    assert all(address.startswith("data:") for address in page.addresses)
    lines = paths.markdown.read_text().splitlines()
    for start in [index for index, line in enumerate(lines) if line.startswith("|--")]:
        width = lines[start].count("|")
        for line in itertools.takewhile(lambda line: line.startswith("|"), lines[start - 1 :]):
            assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == width
    unescaped = re.sub(r"\\.", "", paths.markdown.read_text())
    assert "<" not in unescaped
    assert not re.search(r"\]\((?!\w+(-\w+)?\.png\))", unescaped)
    readme = tmp_path / "README.md"
    readme.write_text("\n".join(("top", *MARKS, "bottom")))
    update_readme(readme, tmp_path)
    assert all(readme.read_text().count(mark) == 1 for mark in MARKS)


Box = tuple[float, float, float, float]


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes (left, bottom, right, top in pixels) share more than an edge."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def boxes_of(figure: Any, labels: list) -> list[Box]:
    """Where the labels of a figure are drawn, after its layout is done."""
    figure.canvas.draw()
    return [tuple(label.get_window_extent().extents) for label in labels]


def assert_apart(boxes: list[Box], markers: list[tuple[float, float]], frame: Box, reach: float = 5.0) -> None:
    for one, other in itertools.combinations(boxes, 2):
        assert not overlap(one, other), "a label covers another"
    for box in boxes:
        assert not any(overlap(box, (x - reach, y - reach, x + reach, y + reach)) for x, y in markers), "a marker is covered"
        assert frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]  # noqa: PT018


@pytest.mark.parametrize("spread", [300.0, 60.0, 5.0, 0.0])
def test_labels_never_overlap(spread: float) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    random = np.random.default_rng(int(spread))
    figure = Figure(figsize=(9, 6), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlim=(0, 800), ylim=(0, 500))
    places = [tuple(map(float, place)) for place in np.clip(random.normal((400, 250), spread, (30, 2)), 10, 490)]
    texts = ["n" * int(count) for count in random.integers(5, 20, 30)]
    labels = place_labels(axes, places, texts, [False] * 30, [places[::2]], [])
    assert [label.get_text() for label in labels] == texts
    assert_apart(boxes_of(figure, labels), list(axes.transData.transform(places)), axes.get_window_extent().extents)


def test_a_lone_label_stands_beside_its_point() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlim=(0, 100), ylim=(0, 100))
    labels = place_labels(axes, [(50.0, 50.0)], ["rdsr $x$"], [True], [], [])
    ((left, bottom, right, top),) = boxes_of(figure, labels)
    x, y = axes.transData.transform((50, 50))
    assert left - 20 < x < right + 20
    assert bottom - 20 < y < top + 20
    assert labels[0].get_text() == r"rdsr \$x\$"
    assert labels[0].get_fontweight() == "bold"


def check_front(facts: Facts, off_scale: set[str]) -> Any:
    figure, labels = draw_front(facts)
    boxes = boxes_of(figure, labels)
    frames_of = [label.axes.get_window_extent().extents for label in labels]
    main, above, off = frames(facts)
    shown = [*main, *above]
    named = sorted(f"{facts.names[p.row.model]} {p.row.precision}" for p in shown)
    assert sorted(label.get_text() for label in labels) == named, "every point on the scale has one label"
    assert {p.row.model for p in off} == off_scale
    assert len(shown) + len(off) == len(facts.points)
    for point in off:
        assert facts.names[point.row.model] in figure.axes[0].get_title(loc="right")
    markers = []
    for axes, points in zip(figure.axes[::-1], (main, above), strict=False):
        markers += [tuple(axes.transData.transform((p.row.p50_ms, p.psnr_y))) for p in points]
    for box, frame in zip(boxes, frames_of, strict=True):
        assert_apart([box], markers, frame)
    for one, other in itertools.combinations(boxes, 2):
        assert not overlap(one, other)
    axes = figure.axes[-1]
    ours = axes.transData.transform([(p.row.p50_ms, p.psnr_y) for p in main if facts.is_ours(p.row)])
    frame = axes.get_window_extent()
    assert np.ptp(ours[:, 0]) > 0.38 * frame.width, "our own models fill a good part of the frame"
    assert np.ptp(ours[:, 1]) > 0.38 * frame.height
    return figure


def test_the_front_names_every_point_once(tmp_path: Path) -> None:
    facts = Facts(read_results(full(tmp_path)))
    figure = check_front(facts, {"bicubic", "diffir"})
    assert len(figure.axes) == 1


def test_published_points_far_above_ours_get_a_frame_of_their_own(tmp_path: Path) -> None:
    better = peers()
    for peer in better["peers"]:
        peer["psnr_y"]["Set5"] += 3.0
    facts = Facts(read_results(write(tmp_path, latency=latency(), quality=quality(), peers=better)))
    figure = check_front(facts, {"bicubic", "diffir"})
    assert len(figure.axes) == 2
    assert {p.row.model for p in frames(facts)[1]} == {"span", "rlfn", "imdn"}
    hollow = {line.get_label(): line.get_color() for axes in figure.axes for line in axes.lines}
    assert hollow["hollow: published PSNR"] == "white"
    assert hollow["fp32"] != "white"


def test_quality_belongs_to_model_and_precision(tmp_path: Path) -> None:
    facts = Facts(read_results(full(tmp_path)))
    points = {(p.row.model, p.row.precision): p for p in facts.points}
    assert facts.dataset == "Set5"
    assert points["rdsr-tiny", "int8"].psnr_y == pytest.approx(31.18)
    assert points["rdsr-tiny", "int8"].row.backend == "openvino", "though quality was measured on ONNX Runtime"
    assert points["span", "fp32"].published
    assert ("span", "int8") not in points, "a published figure is for float32"
    assert not points[PEER, "fp32"].published
    front = pareto(facts.points)
    assert [p.psnr_y for p in front] == sorted(p.psnr_y for p in front)
    assert ("rdsr-base", "fp32") not in {(p.row.model, p.row.precision) for p in front}
    text = write_report(tmp_path).markdown.read_text()
    assert "159 times as fast as diffir" in text, "float32 against float32"


def test_quality_of_another_model_of_that_file_name_is_not_taken(tmp_path: Path) -> None:
    for name, known in (("other", True), ("ours/net.onnx", False)):
        content = latency()
        content["rows"] += [row(f"{folder}/net.onnx", "openvino", "fp32", 20.0) for folder in ("ours", "theirs")]
        rows = [*quality()["rows"], quality()["rows"][0] | {"dataset": "Set5", "model": name, "psnr_y": 31.0}]
        rows[-1]["model"] = "elsewhere/net.bundle" if known else name
        content["rows"] = [r for r in content["rows"] if not known or r["model"] != "theirs/net.onnx"]
        facts = Facts(read_results(write(tmp_path / name, latency=content, quality={"rows": rows})))
        measured = {point.row.model for point in facts.points}
        assert "ours/net.onnx" in measured, "the bundle of that name is the only one"
        assert "theirs/net.onnx" not in measured


def test_random_weights_are_named_wherever_they_are_said(tmp_path: Path) -> None:
    rows = [quality()["rows"][0] | {"model": "mine.bundle", "weights": "random"}]
    text = write_report(write(tmp_path, latency=latency(), quality={"rows": rows})).markdown.read_text()
    assert "| mine.bundle | random |" in text
    assert "their PSNR is meaningless" in text.split("##")[0]


def test_a_row_that_failed_later_is_among_the_failures(tmp_path: Path) -> None:
    content = latency()
    content["rows"][0] |= {"stable": False, "failed_later": "killed in its second round"}
    text = write_report(write(tmp_path, latency=content)).markdown.read_text()
    assert "killed in its second round" in text[text.index("Failures") :]


def test_instability_is_said_once_at_the_top(tmp_path: Path) -> None:
    content = sweep("size")
    last = [r for r in content["rows"] if (r["model"], r["precision"]) == ("rdsr-base", "int8")][-1]
    last["stable"] = False
    times = latency()
    paths = write_report(write(tmp_path, latency=times, sweep_size=content))
    count = sum(r["error"] is None for r in times["rows"]) + len(content["rows"])
    for text in (paths.markdown.read_text(), Page(paths.html.read_text()).text):
        assert text.index(f"2 of {count} rows are unstable") < text.index("Machine and settings")
        assert text.count("fewer than three rounds") == 1
        assert "†" not in text
        assert not re.search(r"\w \\?\*", text)
    for r in (*times["rows"], *content["rows"]):
        r["stable"] = True
    text = write_report(write(tmp_path, latency=times, sweep_size=content)).markdown.read_text()
    assert "unstable" not in text


def test_numbers_and_names_are_short() -> None:
    assert [quantity(v) for v in (0.1234, 1.234, 12.34, 1234.5)] == ["0.123", "1.23", "12.3", "1,234"]
    assert [ratio(v) for v in (481.7, 9.99, 4.84, 0.483)] == ["482", "10", "4.8", "0.48"]
    assert short_names(["/a/x.onnx", "/b/x.onnx", "c:\\d\\y.onnx", "rdsr.bundle/"]) == {
        "/a/x.onnx": "a/x.onnx",
        "/b/x.onnx": "b/x.onnx",
        "c:\\d\\y.onnx": "y.onnx",
        "rdsr.bundle/": "rdsr.bundle",
    }


def broken(**changes: Any) -> str:
    return json.dumps(latency() | changes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latency", None, r"has no latency\.json"),
        ("latency", "{", r"latency\.json is no valid JSON"),
        ("latency", "[" * 100_000, r"latency\.json is no valid JSON"),
        ("latency", "[]", r"latency\.json must hold a JSON object"),
        ("latency", broken(rows=None), r"latency\.json: rows is missing"),
        ("latency", broken(date=3), r"latency\.json: date should be a valid string, not 3"),
        (
            "latency",
            broken(rows=[row("a", "openvino", "fp32", 1.0, p50_ms=0)]),
            r"rows\[0\]\.p50_ms should be greater than or equal to 0\.000000001, not 0",
        ),
        ("latency", broken(rows=[row("a", "openvino", "fp32", 1.0, p90_ms=float("nan"))]), r"rows\[0\]\.p90_ms"),
        ("latency", broken(rows=[row("a", "openvino", "fp32", 1.0, gflops=10**400)]), r"rows\[0\]\.gflops"),
        (
            "latency",
            broken(rows=[row("a", "openvino", "fp32", 1.0, size=[1])]),
            r"rows\[0\]\.size\[1\] is missing",
        ),
        ("latency", broken(host={"versions": {"torch": 2}}), r"host\.versions\.torch should be a valid string, not 2"),
        ("quality", '{"rows": [{"dataset": "Set5"}]}', r"quality\.json: rows\[0\]\.model is missing"),
        ("sweep_size", "{}", r"sweep-size\.json: rows is missing"),
        (
            "peers",
            '{"peers": [{"model": "x", "psnr_y": {"Set5": "31"}}]}',
            r"peers\[0\]\.psnr_y\.Set5 should be a valid number",
        ),
        ("peers", "{}", r"peers\.json: peers is missing"),
        ("latency", broken(threads=True), r"latency\.json: threads should be a valid integer, not True"),
        ("latency", broken(threads=0), r"latency\.json: threads should be greater than 0"),
        ("latency", broken(rows=[5]), r"rows\[0\] should be an object, not 5"),
        ("latency", broken(rows=[row("a", "b", "c", 1.0, p50_ms=None)]), r"rows\[0\] has neither p50_ms nor error"),
        ("latency", broken(rows=[row("a", "b", "c", 1e12)]), r"rows\[0\]\.p50_ms should be less than"),
        ("latency", broken(host={"versions": {"a\n\ud800": 2}}), r"host\.versions\.a .* should be a valid string"),
    ],
)
def test_what_is_no_result_is_refused_in_one_sentence(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    write(tmp_path, **({} if content is None else {"latency": latency(), name: content}))
    with pytest.raises(BenchmarkError, match=message) as refusal:
        write_report(tmp_path)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.glob("report.*"))


def test_the_readme_gets_its_table_and_keeps_the_rest(tmp_path: Path) -> None:
    write(tmp_path / "results", latency=latency(), quality=quality(), peers=peers())
    readme = tmp_path / "README.md"
    readme.write_bytes(("# Überschrift\r\n" + "\n".join(("", MARKS[0], "old", MARKS[1], "after"))).encode())
    update_readme(readme, tmp_path / "results")
    once = readme.read_bytes()
    update_readme(readme, tmp_path / "results")
    assert readme.read_bytes() == once
    text = once.decode()
    assert text.startswith("# Überschrift\r\n")
    assert text.endswith(f"{MARKS[1]}\nafter")
    assert "old" not in text
    block = readme_block(tmp_path / "results")
    assert block in text
    line, _, head, _, *rows = block.splitlines()
    for part in ("Measured 2026-11-25", "commit 2f2f881", HOST["cpu"], HOST["isa"], "128×128", "2 threads", "Set5"):
        assert part in line
    assert head == "| model | PSNR-Y (dB) | ms | × as fast as DiffIR (torch, fp32) | (OpenVINO, fp32) |"
    assert [r.split(" | ")[0] for r in rows] == [
        "| bicubic, uint8",
        "| rdsr-tiny, int8, OpenVINO",
        "| rdsr-small, int8, OpenVINO",
        "| peer_model_x4.onnx, fp32",
        "| rdsr-base, int8, OpenVINO",
        "| rdsr-base, fp32, OpenVINO",
    ]
    assert rows[1] == "| rdsr-tiny, int8, OpenVINO | 31.18 | 18.7 | 760 | 468 |"
    assert "noisy" not in block
    for unwanted in ("*", "†", "published", "random", "span"):
        assert unwanted not in block


def test_each_instruction_set_has_its_table(tmp_path: Path) -> None:
    for name, commit in (("avx2", "aaaaaaa"), ("amx", "bbbbbbb"), ("other", "ccccccc")):
        content = latency() | {"commit": commit}
        write(tmp_path / "results" / name, latency=content, quality=quality())
    readme = tmp_path / "README.md"
    readme.write_text(f"{MARKS[0]}\n{MARKS[1]}")
    update_readme(readme, tmp_path / "results" / "avx2")
    text = readme.read_text()
    assert text.index("commit bbbbbbb") < text.index("commit aaaaaaa"), "the fastest in int8 first"
    assert text.index("commit aaaaaaa") < text.index("commit ccccccc")
    update_readme(readme, write(tmp_path / "mine", latency=latency(), quality=quality()))
    assert readme.read_text().count("Measured") == 1, "a folder of any other name stands alone"


def test_the_readme_says_that_a_run_was_noisy(tmp_path: Path) -> None:
    content = latency()
    for r in content["rows"]:
        r["stable"] = False
    block = readme_block(write(tmp_path, latency=content, quality=quality()))
    assert block.count("The run was noisy: 6 of these 6 times are unstable.") == 1


def test_quality_of_another_commit_is_dated(tmp_path: Path) -> None:
    content = quality() | {"date": "2026-11-27T00:00:00Z", "commit": "0123456"}
    folder = write(tmp_path, latency=latency(), quality=content)
    assert "PSNR-Y on Set5, measured 2026-11-27, commit 0123456." in readme_block(folder)
    assert "Quality was measured 2026-11-27, commit 0123456." in write_report(folder).markdown.read_text()


@pytest.mark.parametrize("text", ["no marks", MARKS[0], f"{MARKS[1]} {MARKS[0]}", f"{MARKS[0]} {MARKS[1]} {MARKS[1]}", None])
def test_a_readme_without_its_marks_is_left_alone(tmp_path: Path, text: str | None) -> None:
    write(tmp_path, latency=latency())
    readme = tmp_path / "README.md"
    if text is not None:
        readme.write_text(text)
    with pytest.raises(BenchmarkError, match=r"README\.md"):
        update_readme(readme, tmp_path)
    assert text is None or readme.read_text() == text
