"""Bundles are untrusted: damage, tampering and tricks are refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from rdsr.runtime import Bundle, BundleError, Upscaler
from rdsr.runtime.verify import verify
from rdsr.tests.conftest import rewrite_manifest


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
        Upscaler.load(bundle)


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
    with pytest.raises(BundleError, match=r"decoder\.onnx is a link"):
        Upscaler.load(bundle)


def test_external_data_is_refused(bundle: Path) -> None:
    model = onnx.load(bundle / "encoder.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    raw = model.SerializeToString()
    (bundle / "encoder.onnx").write_bytes(raw)
    import hashlib

    files = json.loads((bundle / "manifest.json").read_text())["files"]
    rewrite_manifest(bundle, files=files | {"encoder.onnx": {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}})
    with pytest.raises(BundleError, match=r"encoder\.onnx refers to data outside"):
        Upscaler.load(bundle)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"schema": 2}, "schema version 2"),
        ({"schema": None}, "schema version None"),
        ({"scale": 0}, "scale"),
        ({"scale": "4"}, "scale"),
        ({"betas": []}, "betas"),
        ({"steps": 5}, "betas"),
        ({"files": []}, "files"),
        ({"files": {"decoder.onnx": 3}}, "decoder"),
        ({"graphs": {"encoder": "nothing.onnx"}}, "not among its files"),
        ({"graphs": {}}, "encoder graph is missing"),
        ({"variants": [{}]}, "variants"),
        ({"tile_rule": "magic"}, "tile_rule"),
        ({"latent_size": -1}, "latent_size"),
    ],
)
def test_manifests_that_make_no_sense(bundle: Path, changes: dict[str, object], word: str) -> None:
    rewrite_manifest(bundle, **changes)
    with pytest.raises(BundleError, match=word):
        Bundle(bundle)


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
