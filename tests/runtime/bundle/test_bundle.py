"""Bundles are untrusted: damage, tampering and tricks are refused by name."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest

from rdsr.runtime import Bundle, BundleError, EngineError, Upscaler
from rdsr.runtime.verify import verify
from rdsr.tests.conftest import replace_file, rewrite_manifest


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("position", [0, 0.3, 0.77, -1])
@pytest.mark.parametrize(
    "name",
    [
        "encoder.onnx",
        "reverse.onnx",
        "decoder.onnx",
        "model.onnx",
        "model.xml",
        "model.bin",
        "proof.json",
        "proof.safetensors",
    ],
)
def test_one_flipped_byte_is_refused_by_name(bundle: Path, name: str, position: float) -> None:
    size = (bundle / name).stat().st_size
    flip(bundle / name, int(position * size) if position != -1 else -1)
    with pytest.raises(BundleError, match=name):
        verify(Bundle(bundle))


def test_any_flipped_bit_of_the_manifest_is_refused(bundle: Path) -> None:
    raw = (bundle / "manifest.json").read_bytes()
    for position in np.random.default_rng(0).integers(0, len(raw), 150):
        changed = bytearray(raw)
        changed[position] ^= 1 << int(position % 8)
        (bundle / "manifest.json").write_bytes(bytes(changed))
        with pytest.raises(BundleError, match=r"manifest\.json"):
            Bundle(bundle)


def test_upscaler_refuses_a_damaged_graph(bundle: Path) -> None:
    flip(bundle / "decoder.onnx", 1000)
    with pytest.raises(BundleError, match=r"decoder\.onnx does not match"):
        Upscaler.load(bundle, precision="fp32")


def test_a_graph_is_checked_once_in_a_process(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite_manifest(bundle, seed=77)  # a bundle that no other test has opened
    checked: list[int] = []
    monkeypatch.setattr("rdsr.runtime.bundle.bundle.check_graph", lambda manifest, *_: checked.append(manifest.seed))
    contents = [Bundle(bundle).graph("encoder") for _ in range(3)]
    assert contents[0] == contents[1] == contents[2] == (bundle / "encoder.onnx").read_bytes()
    assert checked == [77]
    rewrite_manifest(bundle, seed=78)
    Bundle(bundle).graph("encoder")
    assert checked == [77, 78], "what a manifest says of a graph may differ"
    flip(bundle / "encoder.onnx", 100)
    with pytest.raises(BundleError, match=r"encoder.onnx does not match its checksum"):
        Bundle(bundle).graph("encoder")


@pytest.mark.parametrize("name", ["../decoder.onnx", "/etc/passwd", "a/b.onnx", "..", "", ".hidden", "x\x00y", "a\\b"])
def test_manifest_that_points_outside_its_folder(bundle: Path, name: str) -> None:
    content = json.loads((bundle / "manifest.json").read_text())
    files = content["files"]
    shutil.copy(bundle / "decoder.onnx", bundle.parent / "decoder.onnx")
    rewrite_manifest(bundle, files=files | {name: files["decoder.onnx"]}, graphs=content["graphs"] | {"decoder": name})
    with pytest.raises(BundleError, match="no plain file name"):
        Bundle(bundle)


def test_links_are_refused(bundle: Path) -> None:
    outside = bundle.parent / "outside.onnx"
    (bundle / "decoder.onnx").rename(outside)
    (bundle / "decoder.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match=r"cannot read decoder\.onnx \(it is a link\)"):
        Upscaler.load(bundle, precision="fp32")


def external_graph(path: Path) -> bytes:
    """The graph with its first weight said to lie in another file."""
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    return model.SerializeToString()


def test_external_data_is_refused(bundle: Path) -> None:
    raw = external_graph(bundle / "encoder.onnx")
    # The same message once more with an overlong varint, which protobuf accepts and a search for bytes would miss.
    assert raw.count(b"\n\x08location") == 1
    for content in (raw, _overlong(raw)):
        replace_file(bundle, "encoder.onnx", content)
        with pytest.raises(BundleError, match=r"encoder\.onnx refers to data outside"):
            Upscaler.load(bundle)


def _overlong(raw: bytes) -> bytes:
    """The string's length spelled in two bytes; every enclosing length grows by one, which a fresh tensor makes easy."""
    entry = b"\n\x88\x00location\x12\nsecret.bin"
    tensor = b"\x6a" + bytes([len(entry)]) + entry + b"\x70\x01"
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    return raw.replace(b"location", b"lxcation") + b"\x3a" + bytes([len(graph)]) + graph  # a second `graph` field merges


def test_external_data_deep_in_a_subgraph_is_found(bundle: Path) -> None:
    from onnx import helper, numpy_helper

    inner = numpy_helper.from_array(np.zeros(3, np.float32), "w")
    inner.data_location = onnx.TensorProto.EXTERNAL
    branch = helper.make_graph([helper.make_node("Constant", [], ["y"], value=inner)], "inner", [], [])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    model = helper.make_model(helper.make_graph([node], "outer", [], []))
    replace_file(bundle, "encoder.onnx", model.SerializeToString())
    with pytest.raises(BundleError, match=r"encoder\.onnx holds a subgraph"):
        Upscaler.load(bundle)


@pytest.mark.parametrize("content", [b"\x3a\xff", b"\x0f", b"\xff" * 30, b"no graph at all"])
def test_what_is_no_graph_is_refused(bundle: Path, content: bytes) -> None:
    replace_file(bundle, "decoder.onnx", content)
    with pytest.raises((BundleError, EngineError)):
        Upscaler.load(bundle, precision="fp32")  # on a CPU with VNNI "auto" reads the int8 decoder


def test_graphs_need_the_onnx_suffix(bundle: Path) -> None:
    content = json.loads((bundle / "manifest.json").read_text())
    (bundle / "encoder.graph").write_bytes(external_graph(bundle / "encoder.onnx"))
    replace_file(bundle, "encoder.graph", (bundle / "encoder.graph").read_bytes())
    rewrite_manifest(bundle, graphs=content["graphs"] | {"encoder": "encoder.graph"})
    with pytest.raises(BundleError, match=r"no \.onnx file"):
        Bundle(bundle)


def test_pipes_do_not_hang_the_reader(bundle: Path) -> None:
    (bundle / "decoder.onnx").unlink()
    os.mkfifo(bundle / "decoder.onnx")
    with pytest.raises(BundleError, match="not a regular file"):
        Upscaler.load(bundle, precision="fp32")
    (bundle / "manifest.json").unlink()
    os.mkfifo(bundle / "manifest.json")
    with pytest.raises(BundleError, match="not a regular file"):
        Bundle(bundle)


def test_variants_count_for_their_engine_and_graph_alone(bundle: Path) -> None:
    variants = json.loads((bundle / "manifest.json").read_text())["variants"]
    failed = [v | {"passed": v["passed"] and (v["engine"], v["graph"]) != ("openvino", "decoder.onnx")} for v in variants]
    rewrite_manifest(bundle, variants=failed)
    assert Upscaler.load(bundle, precision="fp32").effective.backend == "onnxruntime"
    with pytest.raises(BundleError, match="no proven fp32 variant for openvino"):
        Upscaler.load(bundle, backend="openvino", precision="fp32")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"schema": 2}, "schema version 2"),
        ({"schema": None}, "schema version None"),
        ({"scale": 0}, "scale"),
        ({"scale": "4"}, "scale"),
        ({"files": []}, "files"),
        ({"files": {"decoder.onnx": 3}}, "decoder"),
        ({"graphs": {"encoder": "nothing.onnx"}}, "not among its files"),
        ({"graphs": {}}, "decoder graph is missing"),
        ({"variants": [{}]}, "variants"),
        ({"tile_rule": "magic"}, "tile_rule"),
        ({"graphs": {"decoder": "decoder.onnx", "model_ir": "model.xml"}}, "model_ir graph has no weights"),
        ({"graphs": {"decoder": "decoder.onnx", "model_ir_weights": "model.bin"}}, "go together"),
        ({"process": []}, "process must be an object"),
    ],
)
def test_manifests_that_make_no_sense(bundle: Path, changes: dict[str, object], word: str) -> None:
    rewrite_manifest(bundle, **changes)
    with pytest.raises(BundleError, match=word):
        Bundle(bundle)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"kind": "magic"}, "process kind is 'magic'; this release knows latent-prior, direct"),
        ({"betas": []}, "betas"),
        ({"steps": 5}, "betas"),
        ({"latent_size": -1}, "latent_size"),
        ({"size_multiple": None}, "size_multiple"),
    ],
)
def test_sections_of_a_process_kind_that_make_no_sense(bundle: Path, changes: dict[str, object], word: str) -> None:
    process = Bundle(bundle).manifest.process
    rewrite_manifest(bundle, process={**process, **changes})
    with pytest.raises(BundleError, match=word):
        Upscaler.load(bundle)
    with pytest.raises(BundleError, match=word):
        verify(Bundle(bundle))


def test_a_graph_of_its_kind_that_is_missing(bundle: Path) -> None:
    graphs = dict(Bundle(bundle).manifest.graphs)
    del graphs["encoder"]
    rewrite_manifest(bundle, graphs=graphs)
    with pytest.raises(BundleError, match="encoder graph is missing"):
        Upscaler.load(bundle)


def deep(levels: int) -> object:
    content: object = 1
    for _ in range(levels):
        content = {"a": [content]}
    return content


@pytest.mark.parametrize("field", ["config", "network", "notes", "checkpoint", "quantization", "fusion", "tools", "process"])
@pytest.mark.parametrize("levels", [10, 400, 20_000])
def test_fields_that_are_nested_too_deep(bundle: Path, field: str, levels: int) -> None:
    """At 20,000 levels Python's own parser gives up; at 400 it does not, but what walks over the fields later would."""
    raw = (bundle / "manifest.json").read_bytes()
    nested = b'{"a":[' * levels + b"1" + b"]}" * levels
    (bundle / "manifest.json").write_bytes(raw.rstrip()[:-1] + b',"' + field.encode() + b'":' + nested + b"}\n")
    with pytest.raises(BundleError, match=r"manifest\.json.*(deep|JSON)"):
        Bundle(bundle)
    if levels <= 400:
        rewrite_manifest(bundle_without(bundle, field), **{field: {"a": deep(levels)}})
        with pytest.raises(BundleError, match="deep"):
            Bundle(bundle)


def bundle_without(bundle: Path, field: str) -> Path:
    raw = (bundle / "manifest.json").read_text()
    content = json.loads(raw, object_pairs_hook=lambda pairs: {k: v for k, v in reversed(pairs) if k != field})
    (bundle / "manifest.json").write_text(json.dumps(content))
    return bundle


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"notes": [0] * 200_000}, "too long"),
        ({"notes": {str(index): 0 for index in range(60_000)}}, "too long"),
        ({"notes": "x" * 200_000}, "characters"),
        ({"scale": 10**300}, "64 bits"),
        ({"notes": {"a": [-(10**300)]}}, "64 bits"),
        ({"params": 10**12}, "params"),
        ({"params": 1.5}, "params"),
        ({"arch": {"a": "b"}}, "arch"),
        ({"arch": "x" * 5000}, "arch"),
        ({"quantization": {"datasets": 7}}, "quantization"),
        ({"process": {"kind": ["latent-prior"]}}, "kind"),
        ({"variants": [{"precision": "fp32"}]}, "variants"),
    ],
)
def test_manifests_with_too_much_in_them(bundle: Path, changes: dict[str, object], word: str) -> None:
    rewrite_manifest(bundle, **changes)
    with pytest.raises(BundleError, match=word) as caught:
        Bundle(bundle)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"NaN", b"Infinity", b"9" * 5000])
def test_numbers_that_are_none(bundle: Path, number: bytes) -> None:
    raw = (bundle / "manifest.json").read_bytes()
    assert b'"scale": 4,' in raw
    (bundle / "manifest.json").write_bytes(raw.replace(b'"scale": 4,', b'"scale": ' + number + b","))
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle(bundle)


@pytest.mark.parametrize("text", [b'"\xff\xfe"', b'"\\ud800"', b'"\xed\xa0\x80"', b'"a\x00b"'])
def test_text_that_is_no_utf8(bundle: Path, text: bytes) -> None:
    raw = (bundle / "manifest.json").read_bytes()
    (bundle / "manifest.json").write_bytes(raw.replace(b'"RGB"', text))
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle(bundle)


def claim(bundle: Path, name: str, size: int, **changes: object) -> None:
    """A file of zeros that takes no room on the disk, and a manifest that knows it."""
    with (bundle / name).open("wb") as file:
        file.truncate(size)
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    rewrite_manifest(bundle, files=files | {name: files["decoder.onnx"] | {"bytes": size}}, **changes)


@pytest.mark.parametrize("name", ["decoder.onnx", "model.bin", "model.xml", "proof.safetensors", "other.txt"])
@pytest.mark.parametrize("size", [100 * 2**20, 3 * 2**30, 2**40])
def test_files_larger_than_the_manifest_explains(bundle: Path, name: str, size: int) -> None:
    claim(bundle, name, size)
    with pytest.raises(BundleError, match=re.escape(name)):
        Bundle(bundle)


def test_files_larger_than_the_manifest_says(bundle: Path) -> None:
    for name in ("proof.safetensors", "decoder.onnx"):
        with (bundle / name).open("r+b") as file:
            file.truncate(3 * 2**30)
        started = time.monotonic()
        with pytest.raises(BundleError, match=rf"cannot read {name} \(it has 3221225472 bytes"):
            Bundle(bundle).read(name)
        with pytest.raises(BundleError, match=r"it has 3221225472 bytes"):
            Bundle(bundle).check()
        assert time.monotonic() - started < 10, "this takes milliseconds"


def test_checking_reads_files_in_small_parts(bundle: Path) -> None:
    claim(bundle, "other.txt", 60 * 2**20)
    tracemalloc.start()
    with pytest.raises(BundleError, match=r"other\.txt does not match its checksum"):
        Bundle(bundle).check()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_paths_that_no_file_can_have(tmp_path: Path) -> None:
    for path in ("a" * 5000, "a\x00b", tmp_path / ("b" * 300), tmp_path / "\udcff"):
        with pytest.raises(BundleError, match="there is no bundle"):
            Bundle(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_manifests_that_are_no_json_object(bundle: Path, content: bytes) -> None:
    (bundle / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle(bundle)


def test_missing_things(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(BundleError, match="not found"):
        Bundle(tmp_path / "none")
    with pytest.raises(BundleError, match=r"cannot read manifest\.json"):
        Bundle(tmp_path)
    (bundle / "reverse.onnx").unlink()
    with pytest.raises(BundleError, match=r"cannot read reverse\.onnx"):
        Upscaler.load(bundle)
