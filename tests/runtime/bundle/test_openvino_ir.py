"""OpenVINO IR is checked as strictly as ONNX: its XML, its layers, their order, constants, shapes and cost."""

from __future__ import annotations

import re
import time
import tracemalloc
from pathlib import Path

import pytest

from rdsr.runtime import Bundle, BundleError
from rdsr.runtime.bundle.graph import GraphError
from rdsr.runtime.bundle.openvino_ir import read_ir
from rdsr.runtime.verify import verify
from rdsr.tests.conftest import replace_file


def refused(bundle: Path, text: str, words: str) -> None:
    """With this XML the bundle is refused in one sentence that names the file, and fast."""
    replace_file(bundle, "model.xml", text.encode())
    started = time.monotonic()
    with pytest.raises(BundleError, match=words) as caught:
        Bundle(bundle).graph("model_ir")
    assert time.monotonic() - started < 30, "this takes milliseconds"
    assert "model.xml" in str(caught.value)
    assert len(str(caught.value)) < 500


def changed(bundle: Path, old: str, new: str) -> str:
    """The XML with one change, `old` being a regular expression."""
    text = (bundle / "model.xml").read_text()
    result, count = re.subn(old, new, text, count=1)
    assert count
    return result


HEAD = r'<\?xml version="1.0"\?>'
CASES = {
    "entities": (HEAD, r'<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>', "document type"),
    "outside entities": (HEAD, r'<?xml version="1.0"?><!DOCTYPE net SYSTEM "file:///etc/passwd">', "document type"),
    "encoding": (HEAD, r'<?xml version="1.0" encoding="utf-16"?>', "not XML 1.0 in UTF-8|no OpenVINO IR"),
    "instructions": (HEAD, r'<?xml version="1.0"?><?php x?>', "processing instructions"),
    "comments": (HEAD, r'<?xml version="1.0"?><!-- x -->', "comments"),
    "cdata": ("<layers>", "<layers><![CDATA[x]]>", "CDATA"),
    "text": ("<layers>", "<layers>words", "text in an element"),
    "unknown element": ("<layers>", "<layers><body/>", "an element 'body'"),
    "two lists": ("<edges>", "<edges></edges><edges>", "two elements 'edges'"),
    "version": ('version="11"', 'version="10"', "version 11"),
    "loop": ('type="Convolution"', 'type="Loop"', "holds the layer 'Loop'"),
    "iterator": ('type="Convolution"', 'type="TensorIterator"', "holds the layer 'TensorIterator'"),
    "if": ('type="Convolution"', 'type="If"', "holds the layer 'If'"),
    "variable": ('type="ReLU"', 'type="ReadValue"', "holds the layer 'ReadValue'"),
    "as matmul": ('type="Convolution"', 'type="MatMul"', "MatMul"),
    "other opset": ('type="ReLU" version="opset1"', 'type="ReLU" version="opset7"', "of version 'opset7'"),
    "other domain": ('type="ReLU" version="opset1"', 'type="ReLU" version="extension"', "of version 'extension'"),
    "more attributes": (r'strides="1, 1" dilations', 'output_padding="9, 9" strides="1, 1" dilations', "other attributes"),
    "strides": (r'strides="1, 1" dilations', 'strides="0, 0" dilations', "out of range"),
    "strides of text": (r'strides="1, 1" dilations', 'strides="a" dilations', "where a number belongs"),
    "huge strides": (r'strides="1, 1" dilations', 'strides="' + "9" * 1000 + '" dilations', "where a number belongs"),
    "blocks": (r'block_size="\d"', 'block_size="1000000"', "blocks"),
    "a constant beyond": (r'offset="(\d+)"', 'offset="99999999999"', "beyond its weights"),
    "a constant before": (r'offset="(\d+)"', 'offset="-4"', "beyond its weights"),
    "a constant of other size": (r'size="4"', 'size="8"', "with 8 bytes"),
    "a constant of other type": (r'element_type="f32"', 'element_type="string"', "of a type that no export writes"),
    "a constant of half": (r'element_type="f32"', 'element_type="f16"', "of a type that no export writes"),
    "a constant of 2^60": (r'shape="12, 12, 3, 3"', 'shape="1073741824, 1073741824"', "holds the constant"),
    "an input of 2^40": (r'shape="\?,\?,\?,3"', 'shape="1,1099511627776,1099511627776,3"', "hold|shape|fit"),
    "an input of rank 9": (r'shape="\?,\?,\?,3"', 'shape="1,1,1,1,1,1,1,1,3"', "shape"),
    "two layers of a number": (r'<layer id="1" ', '<layer id="0" ', "two layers"),
    "a port from nowhere": (r"<edge [^>]*>", "", "from nowhere"),
    "an edge to nowhere": ("<edges>", '<edges><edge from-layer="0" from-port="0" to-layer="777" to-port="0" />', "exist"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_hostile_files_are_refused_before_openvino_sees_them(bundle: Path, case: str) -> None:
    old, new, words = CASES[case]
    refused(bundle, changed(bundle, old, new), words)


def test_a_layer_that_feeds_on_its_own_output(bundle: Path) -> None:
    text = (bundle / "model.xml").read_text()
    layer = re.search(r'<layer id="(\d+)" name="[^"]*" type="Add"', text)
    assert layer
    number = layer[1]
    old = re.search(rf'<edge from-layer="\d+" from-port="\d+" to-layer="{number}" to-port="0" />', text)
    assert old
    own = f'<edge from-layer="{number}" from-port="2" to-layer="{number}" to-port="0" />'
    refused(bundle, text.replace(old[0], own), "what comes after it")
    refused(bundle, text.replace(old[0], old[0] + own), "two edges into")


def test_weights_that_are_too_short(bundle: Path) -> None:
    weights = (bundle / "model.bin").read_bytes()
    replace_file(bundle, "model.bin", weights[: len(weights) // 2])
    with pytest.raises(BundleError, match=r"model\.xml has the constant .* beyond its weights"):
        Bundle(bundle).graph("model_ir")


def test_sizes_that_constants_set(bundle: Path) -> None:
    """The shape that a Reshape, Tile or Broadcast reads lies in the weights."""
    text, weights = (bundle / "model.xml").read_text(), bytearray((bundle / "model.bin").read_bytes())
    places = [int(place) for place in re.findall(r'element_type="i64" shape="4" offset="(\d+)" size="32"', text)]
    assert places
    for place in places:
        changed = bytearray(weights)
        changed[place : place + 32] = (2**40).to_bytes(8, "little") * 4
        replace_file(bundle, "model.bin", bytes(changed))
        with pytest.raises(BundleError, match=r"model\.xml (holds|would)"):
            Bundle(bundle).graph("model_ir")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe<\x00n\x00",
        b"<net",
        b"<net/>",
        b"<a>" * 100_000,
        b"<net version='11'>" + b"<layers>" * 9,
        b"<!DOCTYPE a>",
    ],
)
def test_what_is_no_ir(content: bytes) -> None:
    with pytest.raises(GraphError):
        read_ir(content, memoryview(b""), "direct")


def test_a_crafted_file_takes_little_time_and_memory() -> None:
    content = b'<net name="a" version="11"><layers>' + b'<layer id="1"/>' * 200_000 + b"</layers></net>"
    dims = b'<net version="11"><layers><layer id="1"><output><port id="0">' + b"<dim>1</dim>" * 300_000
    started = time.monotonic()
    tracemalloc.start()
    for crafted in (content, dims):
        with pytest.raises(GraphError):
            read_ir(crafted, memoryview(b""), "direct")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - started < 60, "this takes at most seconds"
    assert peak < 16 * 2**20


def test_verify_refuses_them_too(bundle: Path) -> None:
    replace_file(bundle, "model.xml", changed(bundle, 'type="ReLU"', 'type="Assign"').encode())
    with pytest.raises(BundleError, match=r"model\.xml holds the layer 'Assign'"):
        verify(Bundle(bundle))
