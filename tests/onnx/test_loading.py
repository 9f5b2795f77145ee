"""What is wrong with a file is a ModelFormatError that names the file and the node, in bounded time and memory."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")

import dvm_rt as dvm
from dvm_rt.errors import DvmError, ModelFormatError, UnsupportedOperatorError
from dvm_rt.onnx import load
from tests.onnx.models import FLOAT, INT64, model, node, value

helper, numpy_helper = onnx.helper, onnx.numpy_helper


def small(**more: object) -> object:
    weights = {"w": np.ones((4, 3), np.float32)}
    return model([node("MatMul", "x w", "y")], [value("x", ["n", 4])], [value("y", ["n", 3])], weights, **more)


def external(entries: dict[str, str], dims: tuple[int, ...] = (4, 3)) -> object:
    made = small()
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.dims[:] = dims
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, text in entries.items():
        tensor.external_data.add(key=key, value=text)
    return made


def cyclic() -> object:
    return model([node("Add", "x b", "a"), node("Relu", "a", "b")], [value("x", [2])], [value("b", [2])])


def unknown_input() -> object:
    return model([node("Add", "x nowhere", "a")], [value("x", [2])], [value("a", [2])])


def twice() -> object:
    return model([node("Relu", "x", "a"), node("Neg", "x", "a")], [value("x", [2])], [value("a", [2])])


def huge_weight() -> object:
    made = small()
    made.graph.initializer[0].dims[:] = [1 << 20, 1 << 20]
    return made


def huge_input() -> object:
    return model([node("Relu", "x", "y")], [value("x", [1 << 20, 1 << 20])], [value("y", None)])


def short_weight() -> object:
    made = small()
    made.graph.initializer[0].raw_data = made.graph.initializer[0].raw_data[:-1]
    return made


def negative_size() -> object:
    made = small()
    made.graph.initializer[0].dims[:] = [-4, -3]
    return made


def odd_type() -> object:
    made = small()
    made.graph.initializer[0].data_type = 99
    return made


def new_opset() -> object:
    return small(opset=onnx.defs.onnx_opset_version() + 1)


def no_graph() -> object:
    return onnx.ModelProto(ir_version=8)


def recursive_function() -> object:
    made = small()
    made.opset_import.append(helper.make_opsetid("own", 1))
    call = helper.make_node("F", ["x"], ["y"], domain="own")
    made.functions.append(helper.make_function("own", "F", ["x"], ["y"], [call], [helper.make_opsetid("own", 1)]))
    made.graph.node[0].CopyFrom(helper.make_node("F", ["x"], ["y"], domain="own"))
    return made


def doubling_functions() -> object:
    """40 functions, each of which calls the next one twice: 2^40 nodes when written out."""
    made = small()
    made.opset_import.append(helper.make_opsetid("own", 1))
    opsets = [helper.make_opsetid("own", 1), helper.make_opsetid("", 18)]
    for i in range(40):
        calls = [helper.make_node(f"F{i + 1}", [a], [b], domain="own") for a, b in (("a", "b"), ("b", "c"))]
        last = [helper.make_node("Neg", ["a"], ["c"])]
        made.functions.append(helper.make_function("own", f"F{i}", ["a"], ["c"], calls if i < 39 else last, opsets))
    made.graph.node[0].CopyFrom(helper.make_node("F0", ["x"], ["y"], domain="own"))
    return made


def sparse_outside() -> object:
    made = small()
    del made.graph.initializer[:]
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([12])), [4, 3]))
    return made


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "cycle": (cyclic, "node 0 (Add 'the_Add')"),
    "unknown input": (unknown_input, "node 0 (Add 'the_Add')"),
    "a name twice": (twice, "node 1 (Neg 'the_Neg')"),
    "2^40 elements in a weight": (huge_weight, "initializer 'w'"),
    "2^40 elements in an input": (huge_input, "input 'x'"),
    "a byte is missing": (short_weight, "initializer 'w'"),
    "size below 0": (negative_size, "initializer 'w'"),
    "unknown type": (odd_type, "initializer 'w'"),
    "opset of the future": (new_opset, "opset"),
    "no graph": (no_graph, "model"),
    "function that calls itself": (recursive_function, "node 0 (F)"),
    "functions that double": (doubling_functions, "node 0 (F0)"),
    "sparse index outside": (sparse_outside, "initializer 'w'"),
    "external data missing": (lambda: external({"location": "gone.bin"}), "initializer 'w'"),
    "external path up": (lambda: external({"location": "../secret.bin"}), "initializer 'w'"),
    "external path absolute": (lambda: external({"location": "/etc/hostname"}), "initializer 'w'"),
    "external path empty": (lambda: external({}), "initializer 'w'"),
    "external link": (lambda: external({"location": "link.bin"}), "initializer 'w'"),
    "external folder": (lambda: external({"location": "."}), "initializer 'w'"),
    "external too short": (lambda: external({"location": "short.bin"}), "initializer 'w'"),
    "external offset beyond": (lambda: external({"location": "good.bin", "offset": "44"}), "initializer 'w'"),
    "external offset no number": (lambda: external({"location": "good.bin", "offset": "x"}), "initializer 'w'"),
    "external length beside shape": (lambda: external({"location": "good.bin", "length": "16"}), "initializer 'w'"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    above = tmp_path_factory.mktemp("models")
    (above / "secret.bin").write_bytes(bytes(48))
    inside = above / "model"
    inside.mkdir()
    (inside / "good.bin").write_bytes(np.ones((4, 3), np.float32).tobytes())
    (inside / "short.bin").write_bytes(bytes(20))
    os.symlink(above / "secret.bin", inside / "link.bin")
    return inside


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_typed_errors(name: str, folder: Path) -> None:
    make, where = WRONG[name]
    path = folder / "model.onnx"
    path.write_bytes(make().SerializeToString())
    with pytest.raises(ModelFormatError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert where in str(caught.value)


def test_external_data_that_is_right(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(external({"location": "good.bin", "offset": "0", "length": "48"}).SerializeToString())
    (got,) = load(path).run({"x": np.ones((2, 4), np.float32)})
    np.testing.assert_array_equal(got, np.full((2, 3), 4, np.float32))


def test_truncated_anywhere() -> None:
    data = small().SerializeToString()
    for length in range(0, len(data), 3):
        with pytest.raises(DvmError) as caught:
            load(data[:length]).run({"x": np.ones((2, 4), np.float32)})
        assert isinstance(caught.value, ModelFormatError), (length, caught.value)


def test_changed_bytes_are_typed_errors_or_models() -> None:
    """Any byte of a file changed: it loads, or it is a typed error; never anything else."""
    data, random = small().SerializeToString(), np.random.default_rng(3)
    for _ in range(400):
        changed = bytearray(data)
        changed[random.integers(len(data))] = random.integers(256)
        try:
            load(bytes(changed))
        except DvmError:
            continue


def nested(depth: int) -> bytes:
    """An If within an If within an If, as bytes: protobuf's own writer would recurse."""

    def field(number: int, payload: bytes) -> bytes:
        size, length = bytearray(), len(payload)
        while length > 127:
            size.append(length & 127 | 128)
            length >>= 7
        size.append(length)
        return bytes([number << 3 | 2]) + bytes(size) + payload

    graph = b""
    for _ in range(depth):
        attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
        graph = field(1, field(4, b"If") + field(5, attribute))
    return b"\x08\x08" + field(7, graph) + field(8, b"\x10\x12")


@pytest.mark.parametrize("depth", [100, 10_000])
def test_deep_nesting(depth: int) -> None:
    with pytest.raises(ModelFormatError):
        load(nested(depth))


def test_claims_take_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    for make in (huge_weight, huge_input):
        with pytest.raises(ModelFormatError):
            load(make())
    assert time.monotonic() - began < 60  # a bound, not a figure
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_unknown_operator_is_named() -> None:
    made = model([node("Nonsense", "x", "y")], [value("x", [2])], [value("y", [2], FLOAT)])
    with pytest.raises(UnsupportedOperatorError, match="Nonsense"):
        load(made).run({"x": np.ones(2, np.float32)})


@pytest.mark.parametrize(("operator", "attributes"), [
    ("Constant", {"value": [1.0]}), ("ImageDecoder", {"pixel_format": "RGB"}), ("RegexFullMatch", {"pattern": "[a"}),
])  # fmt: skip
def test_what_a_node_cannot_make_anything_of_is_named(operator: str, attributes: dict[str, object]) -> None:
    """A constant of no type, an image that is none, a pattern that is none: the node says so."""
    text = operator == "RegexFullMatch"
    nodes = [node(operator, "" if operator == "Constant" else "x", "a", **attributes), node("Shape", "a", "y")]
    given = value("x", [3], onnx.TensorProto.STRING if text else onnx.TensorProto.UINT8)
    made = model(nodes, [given], [value("y", None, INT64)], opset=20)
    x = np.array(["a", "b", "c"], object) if text else np.zeros(3, np.uint8)
    with dvm.Runtime(inline=True), pytest.raises(UnsupportedOperatorError, match=rf"node 0 \({operator}.* got .*allowed"):
        load(made).run({"x": x})
