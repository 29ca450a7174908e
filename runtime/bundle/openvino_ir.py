"""Read OpenVINO IR, strictly: XML without entities, layers of a known list, weights inside their file, no circle.

The form is described at https://docs.openvino.ai/2026/documentation/openvino-ir-format.html.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any
from xml.parsers import expat

from .graph import BOOL, FLOAT, INT8, INT64, MAX_NODES, UINT8, Attribute, Graph, GraphError, Node, Port, Tensor
from .operators import LAYERS

__all__ = ["read_ir"]

_DTYPES = {"f32": FLOAT, "u8": UINT8, "i8": INT8, "i64": INT64, "boolean": BOOL}
_CASTS = {"f32": 1, "u8": 2, "i64": 7}
_MAX_ELEMENTS = 2_000_000
_MAX_TEXT = 2000
# Element → the elements that it may stand in, and the attributes that it may have.
_ELEMENTS: Mapping[str, tuple[tuple[str, ...], frozenset[str]]] = {
    "net": (("",), frozenset({"name", "version"})),
    "layers": (("net",), frozenset()),
    "layer": (("layers",), frozenset({"id", "name", "type", "version", "output_names"})),
    "data": (("layer",), frozenset()),  # its attributes are those of the layer
    "input": (("layer",), frozenset()),
    "output": (("layer",), frozenset()),
    "port": (("input", "output"), frozenset({"id", "precision", "names"})),
    "dim": (("port",), frozenset()),
    "edges": (("net",), frozenset()),
    "edge": (("edges",), frozenset({"from-layer", "from-port", "to-layer", "to-port"})),
    "rt_info": (("net",), frozenset()),
    "info": (("rt_info",), frozenset({"name", "value"})),
    "framework": (("rt_info",), frozenset()),
    **{fact: (("framework",), frozenset({"value"})) for fact in ("arch", "scale", "colour", "value_range", "licence")},
}
_ONCE = ("net", "layers", "edges", "rt_info")
_INT = re.compile(r"-?[0-9]{1,18}")
_REAL = re.compile(r"-?[0-9.]{1,40}(e[-+]?[0-9]{1,4})?", re.IGNORECASE)


@dataclasses.dataclass
class _Layer:
    name: str
    type: str
    version: str
    data: dict[str, str] | None = None
    inputs: list[int] = dataclasses.field(default_factory=list)
    outputs: list[int] = dataclasses.field(default_factory=list)
    precisions: list[str] = dataclasses.field(default_factory=list)


class _Reader:
    """Collects layers and edges while the XML is read."""

    def __init__(self) -> None:
        self.layers: dict[int, _Layer] = {}
        self.edges: dict[tuple[int, int], tuple[int, int]] = {}
        """Reading layer and port → writing layer and port."""
        self._path = [""]
        self._current = _Layer("", "", "")
        self._elements = 0
        self._seen: set[str] = set()
        self._text = 0

    def read(self, content: bytes) -> None:
        parser = expat.ParserCreate("utf-8")
        parser.buffer_text = False
        parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        parser.StartDoctypeDeclHandler = self._refuse("a document type")
        parser.EntityDeclHandler = self._refuse("entities")
        parser.UnparsedEntityDeclHandler = self._refuse("entities")
        parser.ExternalEntityRefHandler = self._refuse("entities")
        parser.SkippedEntityHandler = self._refuse("entities")
        parser.ProcessingInstructionHandler = self._refuse("processing instructions")
        parser.CommentHandler = self._refuse("comments")
        parser.StartCdataSectionHandler = self._refuse("CDATA")
        parser.XmlDeclHandler = self._declaration
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.Parse(content, True)

    @staticmethod
    def _refuse(what: str) -> Any:
        def handler(*_: object) -> None:
            raise GraphError(f"holds {what} in its XML")

        return handler

    @staticmethod
    def _declaration(version: str, encoding: str | None, _: int) -> None:
        if version != "1.0" or (encoding or "utf-8").lower() != "utf-8":
            raise GraphError(f"is XML {version} in {encoding}, not XML 1.0 in UTF-8")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        if self._elements > _MAX_ELEMENTS:
            raise GraphError(f"has more than {_MAX_ELEMENTS} elements")
        inside, known = _ELEMENTS.get(name, ((), frozenset()))
        if self._path[-1] not in inside:
            raise GraphError(f"has an element {name[:40]!r} in {self._path[-1]!r}")
        if name in _ONCE:
            if name in self._seen:
                raise GraphError(f"has two elements {name!r}")
            self._seen.add(name)
        self._path.append(name)
        if name != "data" and not known.issuperset(attributes):
            raise GraphError(f"has the attributes {sorted(attributes)[:8]} in an element {name!r}")
        if any(len(value) > _MAX_TEXT or not value.isprintable() for value in attributes.values()):
            raise GraphError(f"has an attribute in an element {name!r} that is too long or unprintable")
        self._text = 0
        if name == "layer":
            self._layer(attributes)
        elif name == "data":
            if self._current.data is not None:
                raise GraphError("has a layer with two elements 'data'")
            self._current.data = attributes
        elif name == "port":
            self._port(attributes)
        elif name == "edge":
            ends = [_int(attributes.get(end)) for end in ("from-layer", "from-port", "to-layer", "to-port")]
            if (ends[2], ends[3]) in self.edges:
                raise GraphError(f"has two edges into port {ends[3]} of layer {ends[2]}")
            self.edges[ends[2], ends[3]] = (ends[0], ends[1])
        elif name == "net" and attributes.get("version") != "11":
            raise GraphError("is no OpenVINO IR of version 11")

    def _layer(self, attributes: Mapping[str, str]) -> None:
        number = _int(attributes.get("id"))
        if number in self.layers or len(self.layers) >= 4 * MAX_NODES:
            raise GraphError(f"has two layers {number}" if number in self.layers else "has too many layers")
        self._current = _Layer(attributes.get("name", ""), attributes.get("type", ""), attributes.get("version", ""))
        self.layers[number] = self._current

    def _port(self, attributes: Mapping[str, str]) -> None:
        ports = self._current.inputs if self._path[-2] == "input" else self._current.outputs
        ports.append(_int(attributes.get("id")))
        if self._path[-2] == "output":
            self._current.precisions.append(attributes.get("precision", ""))
        if len(ports) > 100:
            raise GraphError("has a layer of more than 100 ports")

    def _end(self, name: str) -> None:
        self._path.pop()

    def _characters(self, text: str) -> None:
        if text.isspace():
            return
        self._text += len(text)
        if self._path[-1] != "dim" or self._text > 20:
            raise GraphError(f"has text in an element {self._path[-1]!r}")


def _int(text: str | None) -> int:
    if text is None or not _INT.fullmatch(text):
        raise GraphError(f"has {(text or '')[:40]!r} where a number belongs")
    return int(text)


def _ints(text: str | None) -> tuple[int, ...]:
    return () if text == "" else tuple(_int(part.strip()) for part in (text or "?").split(","))


def read_ir(content: bytes, weights: memoryview, kind: str) -> Graph:
    """The graph of an IR file whose constants are in `weights`, its layers translated to ONNX's operators.

    Raises `GraphError` for anything but such a file of a form that exports of the process kind write.
    """
    reader = _Reader()
    if not content.startswith(b"<"):
        raise GraphError("is no OpenVINO IR")
    try:
        reader.read(content)
    except GraphError:
        raise
    except (expat.ExpatError, ValueError, RecursionError) as error:
        raise GraphError(f"is no OpenVINO IR ({error})") from None
    graph = _graph(reader, weights, kind)
    graph.check_order()
    return graph


def _graph(reader: _Reader, weights: memoryview, kind: str) -> Graph:
    inputs: dict[str, Port] = {}
    constants: dict[str, Tensor] = {}
    nodes: list[Node] = []
    outputs: list[str] = []
    places = {number: place for place, number in enumerate(reader.layers)}
    used: set[tuple[int, int]] = set()
    for number, layer in reader.layers.items():
        sources = []
        for port in layer.inputs:
            source = reader.edges.get((number, port))
            if source is None or source[0] not in places or source[1] not in reader.layers[source[0]].outputs:
                raise GraphError(f"has the layer {layer.name!r}, whose input {port} comes from nowhere")
            if places[source[0]] >= places[number]:
                raise GraphError(f"has the layer {layer.name!r}, which reads what comes after it")
            used.add((number, port))
            sources.append(_value(*source))
        if len(set(layer.inputs) | set(layer.outputs)) != len(layer.inputs) + len(layer.outputs):
            raise GraphError(f"has the layer {layer.name!r} with two ports of one number")
        makes = [_value(number, port) for port in layer.outputs]
        data = layer.data or {}
        if layer.type in ("Parameter", "Const", "Result"):
            wanted = {"Parameter": (0, 1), "Const": (0, 1), "Result": (1, 0)}[layer.type]
            if (len(sources), len(makes)) != wanted or layer.version != "opset1":
                raise GraphError(f"has the {layer.type} {layer.name!r} with other ports or of another version")
        if layer.type == "Parameter":
            inputs[makes[0]] = _parameter(layer, data)
        elif layer.type == "Const":
            constants[makes[0]] = _constant(layer, data, weights)
        elif layer.type == "Result":
            outputs.append(sources[0])
        else:
            nodes.append(_node(layer, data, sources, makes, kind))
    if len(used) != len(reader.edges):
        raise GraphError("has an edge into a layer or port that does not exist")
    return Graph(inputs, constants, nodes, outputs)


def _value(layer: int, port: int) -> str:
    return f"{layer}:{port}"


def _parameter(layer: _Layer, data: Mapping[str, str]) -> Port:
    dtype = _DTYPES.get(data.get("element_type", ""))
    if set(data) != {"shape", "element_type"} or dtype is None:
        raise GraphError(f"has the input {layer.name!r} of a type that no export writes")
    sides = [part.strip() for part in data["shape"].split(",")]
    return dtype, tuple(None if side in ("?", "-1") else _int(side) for side in sides)


def _constant(layer: _Layer, data: Mapping[str, str], weights: memoryview) -> Tensor:
    if set(data) != {"element_type", "shape", "offset", "size"}:
        raise GraphError(f"has the constant {layer.name!r} with other attributes than exports write")
    offset, size = _int(data["offset"]), _int(data["size"])
    if offset < 0 or size < 0 or offset + size > len(weights):
        raise GraphError(f"has the constant {layer.name!r}, which reaches beyond its weights")
    content = weights[offset : offset + size]
    return Tensor.of(layer.name, _DTYPES.get(data["element_type"]), _ints(data["shape"]), content)


def _node(layer: _Layer, data: Mapping[str, str], sources: list[str], makes: list[str], kind: str) -> Node:
    row = LAYERS.get(layer.type)
    if row is None or kind not in row.kinds:
        raise GraphError(f"holds the layer {layer.type!r}, which no {kind} export writes")
    where = f"the {layer.type} {layer.name!r}"
    if layer.version != row.version or len(sources) not in row.inputs:
        raise GraphError(f"holds {where} of version {layer.version!r} with {len(sources)} inputs")
    if set(data) != set(row.attributes):
        raise GraphError(f"holds {where} with other attributes than exports write")
    found: dict[str, Attribute] = {}
    for name, allowed in row.attributes.items():
        text = data[name]
        if not isinstance(allowed, str):
            fits = text in allowed
        else:
            form, _, key = allowed.partition(":")
            fits = form != "any" or _REAL.fullmatch(text) is not None
            if form == "int":
                found[key] = _int(text)
            elif form == "ints":
                found[key] = _ints(text)
            elif form == "bool":
                fits, found[key] = text in ("true", "false"), int(text == "true")
            elif form == "type":
                fits, found[key] = text in _CASTS, _CASTS.get(text, 0)
        if not fits:
            raise GraphError(f"holds {where} with the attribute {name!r} of a value that no export writes")
    if "begin" in found:
        begin, end = found.pop("begin"), found.pop("end")
        assert isinstance(begin, tuple)
        assert isinstance(end, tuple)
        found["pads"] = begin + end
    if "special_zero" in found:
        found["allowzero"] = int(not found.pop("special_zero"))
    if row.order is not None:
        sources = [sources[index] for index in row.order]
    return Node(row.operator, layer.name, tuple(sources), tuple(makes), found)
