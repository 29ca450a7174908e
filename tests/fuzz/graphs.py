"""Fuzz target: mutated ONNX graphs, opened in a bundle and, where that accepts them, run on the engines."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.random import Generator
from onnx import numpy_helper

from rdsr.errors import RdsrError
from rdsr.export.graphs import graph_kind
from rdsr.export.graphs.graph_set import GraphSet
from rdsr.export.graphs.ir import to_ir
from rdsr.models.rdsr import RDSR, RDSRConfig
from rdsr.models.repd import RepD, RepDConfig
from rdsr.runtime.bundle import Bundle, canonical_json, default_bundle_path, manifest_digest
from rdsr.runtime.bundle.operators import OPERATORS
from rdsr.runtime.host.watched import ChildLostError, Limits, call_watched

__all__ = ["all_seeds", "attempt", "content_of", "flip", "mutated", "seeds"]

SMALL = RDSRConfig(
    width=4, depth=2, modulation_depths=(0,), condition_width=4, condition_depth=1, lpe_width=4, lpe_depth=1, latent_size=8
)
_LIMITS = Limits(seconds=8, memory=2**30)
"""Of the child process for each engine."""
# Content is one line of JSON (kind, role, scale, params, peak_channels, latent_size, bytes of the XML), then the graph, and
# behind OpenVINO's XML its weights.


@functools.cache
def all_seeds() -> dict[str, bytes]:
    """All graphs of a small network of each kind, as ONNX and as IR (.xml), and the int8 decoder of the default bundle."""
    torch.manual_seed(0)
    found = {}
    for network in (RDSR(SMALL).eval(), RepD(RepDConfig(width=4, depth=2)).eval()):
        kind = graph_kind(network, 0)
        facts = {
            "kind": kind.name,
            "scale": network.scale,
            "params": network.inference_parameters(),
            "peak_channels": network.peak_channels,
        }
        models = {name: model.SerializeToString() for name, model in GraphSet(kind, single_graph=True).models.items()}
        for name, graph in models.items():
            found[f"{kind.name} {name}"] = content_of({**facts, "role": name.removesuffix(".onnx")}, graph)
        with tempfile.TemporaryDirectory() as folder:
            files = to_ir(models["model.onnx"], Path(folder), "model")
        xml, weights = files["model.xml"], files["model.bin"]
        found[f"{kind.name} model.xml"] = content_of({**facts, "role": "model_ir", "xml": len(xml)}, xml + weights)
    manifest = Bundle().manifest
    facts = {name: getattr(manifest, name) for name in ("kind", "scale", "params", "peak_channels")}
    graph = (default_bundle_path() / "decoder.int8.onnx").read_bytes()
    found["int8"] = content_of({**facts, "role": "decoder_int8"}, graph)
    return found


def seeds() -> dict[str, bytes]:
    """Those that are ONNX graphs."""
    return {name: content for name, content in all_seeds().items() if not name.endswith(".xml")}


def content_of(facts: dict[str, Any], graph: bytes) -> bytes:
    """What `attempt` takes."""
    return json.dumps(facts).encode() + b"\n" + graph


def attempt(content: bytes) -> str:
    """Open a bundle with the graph, check the graph, and run it, where it passes, as the runtime does: in a child process.

    A graph that exports could have written may still find a fault of an engine. The child then crashes, and nothing else.
    """
    line, graph = content.split(b"\n", 1)
    facts = json.loads(line)
    folder = Path(tempfile.mkdtemp(prefix="rdsr-fuzz-"))
    try:
        _write(folder, facts, graph)
        Bundle(folder).graph(facts["role"])
        return str(call_watched("rdsr.tests.fuzz.engine_child", "run_graph", [str(folder), facts["role"]], _LIMITS))
    except RdsrError as error:
        text = str(error)
        if len(text) >= 1500 or "\n" in text:
            raise AssertionError(f"a message of {len(text)} characters: {text[:300]!r}") from error
        return f"refused: {type(error).__name__}"
    except ChildLostError:
        return "refused: ChildLostError"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, facts: dict[str, Any], graph: bytes) -> None:
    files = {f"{facts['role'].replace('_', '.')}.onnx": graph}
    roles = {facts["role"]: next(iter(files))}
    if facts["role"] == "model_ir":
        files = {"model.xml": graph[: facts["xml"]], "model.bin": graph[facts["xml"] :]}
        roles = {"model_ir": "model.xml", "model_ir_weights": "model.bin"}
    if "decoder" not in roles:  # every bundle has one
        files["decoder.onnx"], roles["decoder"] = b"", "decoder.onnx"
    manifest = {
        "schema": 3, "arch": "fuzz", "scale": facts["scale"], "params": facts["params"], "tile_rule": "whole", "seed": 0,
        "peak_channels": facts["peak_channels"], "process": {"kind": facts["kind"]}, "receptive_radius": None,
        "graphs": roles, "variants": [], "fusion": {}, "checkpoint": {}, "tools": {}, "cpu": {},
        "files": {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()},
    }  # fmt: skip
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_bytes(canonical_json(manifest | {"digest": manifest_digest(manifest)}))


def mutated(rng: Generator) -> tuple[str, bytes]:
    """One seed with one to three mutations of one sort."""
    name = str(rng.choice(sorted(seeds())))
    line, graph = seeds()[name].split(b"\n", 1)
    facts = json.loads(line)
    if rng.random() < 0.4:
        mutate_bytes = _BYTES[int(rng.integers(len(_BYTES)))]
        for _ in range(int(rng.integers(1, 4))):
            graph = mutate_bytes(rng, graph)
        mutate = mutate_bytes
    else:
        model = onnx.load_from_string(graph)
        mutate = _ONNX[int(rng.integers(len(_ONNX)))]
        for _ in range(int(rng.integers(1, 4))):
            mutate(rng, model.graph)
        graph = model.SerializeToString()
    return f"{name}: {mutate.__name__.strip('_')}", content_of(facts, graph)


def flip(rng: Generator, raw: bytes) -> bytes:
    """One other bit."""
    changed = bytearray(raw)
    changed[int(rng.integers(len(changed)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _flip_at_a_name(rng: Generator, raw: bytes) -> bytes:
    """Most of a graph is weights. What stands near a name is structure."""
    places = [match.start() for match in re.finditer(rb"[a-zA-Z_/]{4}", raw)]
    changed = bytearray(raw)
    if places:
        changed[min(len(raw) - 1, places[int(rng.integers(len(places)))] + int(rng.integers(-6, 10)))] = int(
            rng.integers(256)
        )
    return bytes(changed)


def _varint(rng: Generator, raw: bytes) -> bytes:
    """Another number in place of one byte that may be a length, a size or an enum."""
    places = [match.start() + 1 for match in re.finditer(rb"[\x08\x10\x18\x20\x28\x38\x40\xa0][\x00-\x20]", raw)]
    if not places:
        return raw
    place = places[int(rng.integers(len(places)))]
    numbers = (b"\x00", b"\x01", b"\x7f", b"\xff\xff\xff\xff\x07", b"\xff" * 9 + b"\x01", b"\x80\x80\x80\x80\x10")
    return raw[:place] + numbers[int(rng.integers(len(numbers)))] + raw[place + 1 :]


def _cut(rng: Generator, raw: bytes) -> bytes:
    return raw[: int(rng.integers(len(raw)))]


def _splice(rng: Generator, raw: bytes) -> bytes:
    start, end = sorted(int(x) for x in rng.integers(0, len(raw), 2))
    return raw[:end] + raw[start : min(end, start + 2000)] + raw[end:]


def _node(rng: Generator, graph: onnx.GraphProto) -> onnx.NodeProto:
    return graph.node[int(rng.integers(len(graph.node)))]


def _rename_operator(rng: Generator, graph: onnx.GraphProto) -> None:
    others = [*OPERATORS, "Loop", "If", "Scan", "LSTM", "Conv", "MatMul", "Einsum", "NonZero"]
    _node(rng, graph).op_type = str(rng.choice(others))


def _rename_and_strip(rng: Generator, graph: onnx.GraphProto) -> None:
    """Another operator with the right number of inputs and no attributes to give it away."""
    node = _node(rng, graph)
    fitting = [name for name, row in OPERATORS.items() if len(node.input) in row.inputs]
    node.op_type = str(rng.choice(fitting))
    del node.attribute[:]


def _rewire(rng: Generator, graph: onnx.GraphProto) -> None:
    names = [name for node in graph.node for name in node.output] + [tensor.name for tensor in graph.initializer]
    node = _node(rng, graph)
    if node.input:
        node.input[int(rng.integers(len(node.input)))] = str(rng.choice(names))


def _rewire_back(rng: Generator, graph: onnx.GraphProto) -> None:
    """Read something that was made earlier, so that the order stays right."""
    place = int(rng.integers(1, len(graph.node)))
    names = [name for node in list(graph.node)[:place] for name in node.output]
    node = graph.node[place]
    if node.input:
        node.input[int(rng.integers(len(node.input)))] = str(rng.choice(names))


def _resize_tensor(rng: Generator, graph: onnx.GraphProto) -> None:
    tensor = graph.initializer[int(rng.integers(len(graph.initializer)))]
    if tensor.dims:
        sides = (0, 1, 2, 3, -1, 2**31, 2**62, int(np.prod(tensor.dims)))
        tensor.dims[int(rng.integers(len(tensor.dims)))] = sides[int(rng.integers(len(sides)))]


def _reshape_tensor(rng: Generator, graph: onnx.GraphProto) -> None:
    """Another shape or type with the same number of bytes."""
    tensor = graph.initializer[int(rng.integers(len(graph.initializer)))]
    sides = [int(side) for side in rng.permutation(np.array([*tensor.dims, 1]))]
    tensor.dims[:] = sides if rng.random() < 0.5 else sides[: len(tensor.dims)] or [1]
    if rng.random() < 0.3:
        tensor.data_type = int(rng.choice([1, 2, 3, 6, 7, 9, 10, 11]))


def _other_sizes(rng: Generator, graph: onnx.GraphProto) -> None:
    """Other numbers in the integer constants, which set sizes, axes and indices."""
    tensors = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT64]
    tensors += [a.t for node in graph.node for a in node.attribute if a.HasField("t")]
    if tensors:
        tensor = tensors[int(rng.integers(len(tensors)))]
        values = numpy_helper.to_array(tensor).copy()
        numbers = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 7, 16, 2**16, 2**30, 2**31, 2**40, 2**63 - 1)
        if values.size and values.dtype == np.int64:
            values.flat[int(rng.integers(values.size))] = numbers[int(rng.integers(len(numbers)))]
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _other_attribute(rng: Generator, graph: onnx.GraphProto) -> None:
    nodes = [node for node in graph.node if node.attribute]
    node = nodes[int(rng.integers(len(nodes)))]
    attribute = node.attribute[int(rng.integers(len(node.attribute)))]
    numbers = (-(2**31), -2, -1, 0, 1, 2, 3, 4, 5, 9, 17, 2**16, 2**31, 2**62)
    if attribute.ints:
        attribute.ints[int(rng.integers(len(attribute.ints)))] = numbers[int(rng.integers(len(numbers)))]
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = numbers[int(rng.integers(len(numbers)))]
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = float(rng.choice([np.nan, np.inf, -np.inf, 0, 1e38]))
    elif attribute.type == onnx.AttributeProto.STRING:
        attribute.s = (b"", b"\xff", b"linear", b"cubic", b"DCR", b"reflect", b"x" * 900)[int(rng.integers(7))]


def _swap_attributes(rng: Generator, graph: onnx.GraphProto) -> None:
    one, other = _node(rng, graph), _node(rng, graph)
    kept = list(one.attribute)
    del one.attribute[:]
    one.attribute.extend(other.attribute)
    del other.attribute[:]
    other.attribute.extend(kept)


def _repeat_node(rng: Generator, graph: onnx.GraphProto) -> None:
    """A node once more, behind itself: the output of one is the input of the next."""
    place = int(rng.integers(len(graph.node)))
    node = onnx.NodeProto()
    node.CopyFrom(graph.node[place])
    if not node.input or not node.output:
        return
    old, new = node.output[0], f"{node.output[0]}_again{rng.integers(10**9)}"
    graph.node[place].output[0] = new
    node.input[0] = new
    node.output[0] = old
    rest = list(graph.node)[place + 1 :]
    del graph.node[place + 1 :]
    graph.node.extend([node, *rest])


def _drop_node(rng: Generator, graph: onnx.GraphProto) -> None:
    del graph.node[int(rng.integers(len(graph.node)))]


def _drop_input(rng: Generator, graph: onnx.GraphProto) -> None:
    node = _node(rng, graph)
    if node.input:
        place = int(rng.integers(len(node.input)))
        if rng.random() < 0.5:
            node.input[place] = ""
        else:
            del node.input[place]


def _other_port(rng: Generator, graph: onnx.GraphProto) -> None:
    """Another type or shape of an input or output."""
    ports = [*graph.input, *graph.output, *graph.value_info]
    kind = ports[int(rng.integers(len(ports)))].type.tensor_type
    if rng.random() < 0.3 or not kind.shape.dim:
        kind.elem_type = int(rng.choice([0, 1, 2, 7, 8, 10, 16]))
    else:
        side = kind.shape.dim[int(rng.integers(len(kind.shape.dim)))]
        side.dim_value = int(rng.choice([-1, 0, 1, 2, 3, 16, 2**31]))


def _extreme_weights(rng: Generator, graph: onnx.GraphProto) -> None:
    tensor = graph.initializer[int(rng.integers(len(graph.initializer)))]
    values = numpy_helper.to_array(tensor).copy()
    if values.dtype == np.float32 and values.size:
        values.flat[int(rng.integers(values.size))] = float(rng.choice([np.nan, np.inf, -np.inf, 1e38, 0, 1e-45]))
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


_BYTES: tuple[Callable[..., Any], ...] = (flip, _flip_at_a_name, _flip_at_a_name, _varint, _cut, _splice)
_ONNX: tuple[Callable[..., Any], ...] = (
    _rename_operator, _rename_and_strip, _rename_and_strip, _rewire, _rewire_back, _rewire_back, _resize_tensor,
    _reshape_tensor, _other_sizes, _other_sizes, _other_attribute, _other_attribute, _swap_attributes, _repeat_node,
    _drop_node, _drop_input, _other_port, _extreme_weights,
)  # fmt: skip
