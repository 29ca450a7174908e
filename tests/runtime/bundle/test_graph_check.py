"""No engine sees a graph that exports do not write: operators, order, constants, shapes and cost are checked before."""

from __future__ import annotations

import itertools
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rdsr.runtime import Bundle, BundleError, Upscaler
from rdsr.runtime.bundle.graph import GraphError
from rdsr.runtime.bundle.onnx_wire import read_onnx
from rdsr.runtime.bundle.operators import OPERATORS
from rdsr.runtime.verify import verify
from rdsr.tests.conftest import replace_file, rewrite_manifest

Change = Callable[[onnx.GraphProto], None]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def hostile(bundle: Path, change: Change, name: str = "decoder.onnx") -> None:
    """Change a graph of the bundle, and make the manifest agree."""
    model = onnx.load(bundle / name)
    change(model.graph)
    replace_file(bundle, name, model.SerializeToString())


def refused(bundle: Path, words: str) -> None:
    """The bundle is refused in one sentence that names the file, before an engine is loaded, and fast."""
    started = time.monotonic()
    with pytest.raises(BundleError, match=words) as caught:
        Upscaler.load(bundle, precision="fp32")
    assert time.monotonic() - started < 30, "this takes milliseconds"
    assert "decoder.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def behind(graph: onnx.GraphProto, *nodes: onnx.NodeProto, constants: dict[str, np.ndarray] | None = None) -> None:
    """Add nodes at the end that read "last" and make the output "sr", of which the file then says nothing."""
    graph.output[0].type.tensor_type.ClearField("shape")
    for node in graph.node:
        node.output[:] = ["last" if name == "sr" else name for name in node.output]
    graph.node.extend(nodes)
    for name, value in (constants or {}).items():
        graph.initializer.append(numpy_helper.from_array(value, name))


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def loop(graph: onnx.GraphProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["still"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", FLOAT, None),
        ],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), helper.make_tensor_value_info("y", FLOAT, None)],
    )
    node = helper.make_node("Loop", ["trips", "true", "last"], ["sr"], body=body)
    behind(graph, node, constants={"trips": np.array(2**62), "true": np.array(True)})


def eats_itself(graph: onnx.GraphProto) -> None:
    behind(graph, helper.make_node("Add", ["last", "sr"], ["sr"]))


def reads_the_future(graph: onnx.GraphProto) -> None:
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(reversed(nodes))


def made_twice(graph: onnx.GraphProto) -> None:
    behind(graph, helper.make_node("Relu", ["last"], ["sr"]), helper.make_node("Relu", ["last"], ["sr"]))


def renamed(old: str, new: str, *, bare: bool = False) -> Change:
    """The second node of one kind becomes one of another, with its attributes or without."""

    def change(graph: onnx.GraphProto) -> None:
        node = [node for node in graph.node if node.op_type == old][1]
        node.op_type = new
        if bare:
            del node.attribute[:]
            del node.input[2:]

    return change


def constant_of_shape(sides: tuple[int, ...]) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        one = numpy_helper.from_array(np.ones(1, np.float32))
        fill = helper.make_node("ConstantOfShape", ["sides"], ["large"], value=one)
        mean = helper.make_node("ReduceMean", ["large"], ["mean"], axes=[0], keepdims=0)
        behind(graph, fill, mean, helper.make_node("Add", ["last", "mean"], ["sr"]), constants={"sides": ints(*sides)})

    return change


def enlarged(operator: str, *others: np.ndarray, **attributes: object) -> Change:
    """One more node whose constants set a size."""

    def change(graph: onnx.GraphProto) -> None:
        names = [f"other{index}" for index in range(len(others))]
        reads = ["last", "", *names] if operator == "Resize" else ["last", *names]
        constants = dict(zip(names, others, strict=True))
        behind(graph, helper.make_node(operator, reads, ["sr"], **attributes), constants=constants)

    return change


def doubled(times: int) -> Change:
    """A chain of small steps: each is harmless, and all together are not."""

    def change(graph: onnx.GraphProto) -> None:
        names = ["last", *(f"double{index}" for index in range(1, times)), "sr"]
        behind(graph, *(helper.make_node("Concat", [a, a], [b], axis=1) for a, b in itertools.pairwise(names)))

    return change


def outer_product(graph: onnx.GraphProto) -> None:
    """Every pixel with every other: memory grows with the square of the picture."""
    behind(
        graph,
        helper.make_node("Reshape", ["last", "column"], ["a"]),
        helper.make_node("Reshape", ["last", "row"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["sr"]),
        constants={"column": ints(-1, 1), "row": ints(1, -1)},
    )


def from_the_picture(graph: onnx.GraphProto) -> None:
    behind(
        graph,
        helper.make_node("Cast", ["last"], ["numbers"], to=INT64),
        helper.make_node("Reshape", ["numbers", "flat"], ["list"]),
        helper.make_node("Expand", ["one", "list"], ["sr"]),
        constants={"flat": ints(-1), "one": np.ones(1, np.float32)},
    )


def zero_division(graph: onnx.GraphProto) -> None:
    behind(
        graph,
        helper.make_node("Shape", ["last"], ["sides"]),
        helper.make_node("Div", ["sides", "zero"], ["none"]),
        helper.make_node("Reshape", ["last", "none"], ["sr"]),
        constants={"zero": ints(0)},
    )


def endless_work(graph: onnx.GraphProto) -> None:
    """The same weights again and again."""
    kernel = numpy_helper.from_array(np.ones((48, 48, 3, 3), np.float32), "again")
    graph.initializer.append(kernel)
    tile = helper.make_node("Tile", ["last", "wide"], ["c0"])
    steps = [helper.make_node("Conv", [f"c{i}", "again"], [f"c{i + 1}"], pads=[1, 1, 1, 1]) for i in range(2000)]
    behind(graph, tile, *steps, helper.make_node("Relu", ["c2000"], ["sr"]), constants={"wide": ints(1, 16, 1, 1)})


def attribute(operator: str, **values: object) -> Change:
    """Another value for an attribute of the second node of a kind."""

    def change(graph: onnx.GraphProto) -> None:
        node = [node for node in graph.node if node.op_type == operator][1 if operator == "Conv" else 0]
        kept = [a for a in node.attribute if a.name not in values]
        del node.attribute[:]
        node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in values.items())])

    return change


def foreign(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.op_type == "Relu").domain = "com.microsoft"


def sparse(graph: onnx.GraphProto) -> None:
    values, indices = numpy_helper.from_array(np.ones(1, np.float32), "v"), numpy_helper.from_array(ints(0), "i")
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2**40]))


def weight(**fields: object) -> Change:
    """Other fields in the first weight."""

    def change(graph: onnx.GraphProto) -> None:
        tensor = graph.initializer[0]
        for name, value in fields.items():
            if name == "dims":
                tensor.dims[:] = value  # type: ignore[assignment]
            else:
                setattr(tensor, name, value)

    return change


def flatter_kernel(graph: onnx.GraphProto) -> None:
    tensor = next(t for t in graph.initializer if len(t.dims) == 4)
    tensor.dims[:] = [tensor.dims[0], int(np.prod(tensor.dims[1:]))]


def claims_of_a_value(graph: onnx.GraphProto) -> None:
    """ONNX Runtime takes gigabytes for what a file says of a value in between, although the value is small."""
    for info in graph.value_info:
        if len(info.type.tensor_type.shape.dim) == 4:
            info.type.tensor_type.shape.dim[0].dim_value = 2**31


def long_lists(graph: onnx.GraphProto, count: int, length: int) -> None:
    for node in list(graph.node)[:count] * (count // len(graph.node) + 1):
        node.attribute.append(helper.make_attribute(f"list{len(node.attribute)}", [0] * length))


def wide_input(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**40


CASES: dict[str, tuple[Change, str]] = {
    "loop": (loop, "holds a subgraph"),
    "self": (eats_itself, "before it is made"),
    "order": (reads_the_future, "before it is made"),
    "twice": (made_twice, "twice"),
    "conv as matmul": (renamed("Conv", "MatMul"), "MatMul"),
    "conv as bare matmul": (renamed("Conv", "MatMul", bare=True), "MatMul"),
    "conv as gemm": (renamed("Conv", "Gemm", bare=True), "Gemm"),
    "conv as add": (renamed("Conv", "Add", bare=True), "Add"),
    "relu as softplus": (renamed("Relu", "Softplus"), "Softplus"),
    "relu as shape": (renamed("Relu", "Shape"), "int64"),
    "relu as nothing": (renamed("Relu", ""), "holds the operator ''"),
    "constant of 2^30": (constant_of_shape((2**30,)), "hold 1073741"),
    "constant of 2^40": (constant_of_shape((2**20, 2**20)), "hold 1099511"),
    "constant of -1": (constant_of_shape((-1,)), "ConstantOfShape"),
    "expand": (enlarged("Expand", ints(2**12, 3, 1, 1)), "hold"),
    "tile": (enlarged("Tile", ints(1, 1, 2**10, 2**10)), "hold"),
    "tile beyond": (enlarged("Tile", ints(1, 1, 2**62, 2)), "Tile"),
    "pad": (enlarged("Pad", ints(0, 0, 2**15, 2**15, 0, 0, 2**15, 2**15), mode="edge"), "hold"),
    "negative pad": (enlarged("Pad", ints(0, 0, -2, -2, 0, 0, -2, -2), mode="edge"), "padding"),
    "resize": (
        enlarged(
            "Resize",
            np.array([1, 1, 1e6, 1e6], np.float32),
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        ),
        "scales",
    ),
    "resize by nan": (
        enlarged(
            "Resize",
            np.array([1, 1, np.nan, 2], np.float32),
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        ),
        "scales",
    ),
    "reshape": (enlarged("Reshape", ints(0, -1, 7)), "Reshape"),
    "reshape to -2": (enlarged("Reshape", ints(-2, 3)), "impossible shape"),
    "slice by zero": (enlarged("Slice", ints(0), ints(9), ints(2), ints(0)), "steps"),
    "gather beyond": (
        lambda graph: behind(
            graph,
            helper.make_node("Shape", ["last"], ["s"]),
            helper.make_node("Gather", ["s", "i"], ["g"]),
            helper.make_node("Reshape", ["last", "g"], ["sr"]),
            constants={"i": ints(2**40)},
        ),
        "picks number",
    ),
    "doubled": (doubled(40), "hold"),
    "outer product": (outer_product, "hold"),
    "sizes from the picture": (from_the_picture, "depend on what is in the picture"),
    "division by zero": (zero_division, "zero or negative"),
    "endless work": (endless_work, "compute"),
    "groups": (attribute("Conv", group=2**31), "channels"),
    "dilations": (attribute("Conv", dilations=[2**30, 1]), "out of range|not fit"),
    "strides": (attribute("Conv", strides=[0, 0]), "out of range"),
    "padding": (attribute("Conv", pads=[2**40, 0, 2**40, 0]), "out of range"),
    "kernel": (attribute("Conv", kernel_shape=[9, 9]), "not what it says"),
    "automatic padding": (attribute("Conv", auto_pad="SAME_UPPER"), "auto_pad"),
    "blocks": (attribute("DepthToSpace", blocksize=2**20), "blocks"),
    "blocks of zero": (attribute("DepthToSpace", blocksize=0), "blocks"),
    "foreign domain": (foreign, "foreign domain"),
    "sparse": (sparse, "sparse"),
    "weight of 2^40": (weight(dims=[2**40]), "holds the constant"),
    "weight of -1": (weight(dims=[-1, 12]), "impossible shape"),
    "weight of other bytes": (weight(raw_data=b"abc"), "with 3 bytes"),
    "weight of strings": (weight(data_type=TensorProto.STRING), "of a type that no export writes"),
    "weight as half": (weight(data_type=TensorProto.FLOAT16), "of a type that no export writes"),
    "flat kernel": (flatter_kernel, "dimensions"),
    "claims": (claims_of_a_value, "says that"),
    "input of 2^40": (wide_input, "shape|hold|fit"),
    "endless lists": (lambda graph: long_lists(graph, 20, 60_000), "fields and numbers"),
    "an endless list": (lambda graph: long_lists(graph, 1, 600_000), "fields and numbers"),
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_graphs_are_refused_before_an_engine_sees_them(bundle: Path, case: str) -> None:
    change, words = CASES[case]
    hostile(bundle, change)
    refused(bundle, words)
    with pytest.raises(BundleError, match=words):
        Bundle(bundle).graph("decoder")


def test_names_that_are_no_utf8_are_refused(bundle: Path) -> None:
    raw = (bundle / "decoder.onnx").read_bytes()
    for good, bad in ((b"\x12\x04rdsr", b"\x12\x04rd\xff\xfe"), (b"\x0a\x02lr", b"\x0a\x02\xc3\x28")):
        assert good in raw
        replace_file(bundle, "decoder.onnx", raw.replace(good, bad))
        refused(bundle, "no UTF-8")


def test_functions_and_other_operator_sets_are_refused(bundle: Path) -> None:
    model = onnx.load(bundle / "decoder.onnx")
    function = helper.make_function("own", "F", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], model.opset_import)
    model.functions.append(function)
    replace_file(bundle, "decoder.onnx", model.SerializeToString())
    refused(bundle, "functions of its own")
    del model.functions[:]
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    replace_file(bundle, "decoder.onnx", model.SerializeToString())
    refused(bundle, "operator sets")
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 9))
    replace_file(bundle, "decoder.onnx", model.SerializeToString())
    refused(bundle, "operator sets")


def test_a_field_that_parsers_would_merge_is_refused(bundle: Path) -> None:
    """A second shape of an input: some parsers append it, others replace the first."""
    model = onnx.load(bundle / "decoder.onnx")
    port = model.graph.input[0].SerializeToString()
    twice = port + port[port.index(b"\x12") :]
    graph = model.graph.SerializeToString()
    changed = graph.replace(b"\x5a" + bytes([len(port)]) + port, b"\x5a" + bytes([len(twice)]) + twice)
    assert changed != graph
    model.ClearField("graph")
    size, length = b"", len(changed)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    replace_file(bundle, "decoder.onnx", model.SerializeToString() + b"\x3a" + size + bytes([length]) + changed)
    refused(bundle, "twice")


def test_each_kind_has_its_own_operators(bundle: Path) -> None:
    """What only latent-prior networks need is refused in a direct one."""
    assert {name for name, row in OPERATORS.items() if "direct" in row.kinds} < set(OPERATORS)
    rewrite_manifest(bundle, process={"kind": "direct"})
    hostile(bundle, lambda graph: behind(graph, helper.make_node("Log", ["last"], ["sr"])))
    refused(bundle, "the operator 'Log', which no direct export writes")


def test_all_graphs_that_exports_write_pass(exported: Path) -> None:
    bundle = Bundle(exported)
    for role in bundle.manifest.graphs:
        if not role.endswith("_weights"):
            assert bundle.graph(role)
    default = Bundle()
    for role in default.manifest.graphs:
        assert default.graph(role)


def test_small_lies_about_the_planned_memory_show(bundle: Path) -> None:
    rewrite_manifest(bundle, peak_channels=1)
    with pytest.raises(BundleError, match="more than its peak_channels explain"):
        Upscaler.load(bundle, precision="fp32")


@pytest.mark.parametrize("filler", [b"\x0a\x00", b"\x2a\x00", b"\x6a\x00", b"\x5a\x00", b"\x0a\x02\x0a\x00", b"\x12\x00"])
def test_a_crafted_file_takes_little_time_and_memory(filler: bytes) -> None:
    """The first reader took 3 s and 135 MiB for each MiB of such a file."""
    inner = filler * (2**22 // len(filler))
    size, length = b"", len(inner)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    content = b"\x08\x08\x3a" + size + bytes([length]) + inner
    started = time.monotonic()
    tracemalloc.start()
    with pytest.raises(GraphError):
        read_onnx(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - started < 60, "this takes at most seconds"
    assert peak < 16 * 2**20


def test_verify_refuses_them_too(bundle: Path) -> None:
    hostile(bundle, eats_itself, "model.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        verify(Bundle(bundle))


def test_every_refusal_names_what_is_refused(bundle: Path) -> None:
    hostile(bundle, renamed("Conv", "MatMul"))
    with pytest.raises(BundleError, match=r"decoder\.onnx holds the MatMul '.+' with 3 inputs"):
        Upscaler.load(bundle, precision="fp32")
