"""The node cases of ONNX's suite with other legal shapes, against ONNX's reference evaluator.

    python -m tests.onnx.sweep [--cases N] [--shapes 4] [--seed 0] [--pattern relu]

The suite tests each operator at one shape or two. Here every size of a case becomes another one, the same everywhere
(what was equal stays equal), inputs are cut or repeated, and nothing is declared of shapes but ranks, so that one
session serves all of them. What the reference evaluator refuses is no legal shape, and is counted."""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

import dvm_rt as dvm
from dvm_rt.errors import DvmError
from dvm_rt.onnx import Session, conformance, load, operators, table
from dvm_rt.onnx.model import Node, read

SIZE_MAX = 9
LEFT_OUT: dict[str, str] = {  # operators
    "Dropout": "random", "Bernoulli": "random", "ImageDecoder": "its input is a file",
    "NonMaxSuppression": "boxes have 4 coordinates", "RoiAlign": "regions have 4 coordinates",
}  # fmt: skip
DOUBTFUL: dict[str, str] = {  # beginnings of names of cases; where ONNX Runtime runs them, it agrees with us
    "test_averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode": "the evaluator counts beyond the end with dilations",
    "test_maxpool_with_argmax_2d_precomputed": "the evaluator gives places for the first shape's rows",
    "test_qlinearmatmul": "with scales of 16 bits, nothing says where products are rounded: units differ by one",
    "test_attention_4d_with_past_and_present_qk_matmul":
        "masks of size 1: the function body pads them, the evaluator broadcasts them",
    "test_attention_4d_attn_mask": "as above", "test_attention_3d_attn_mask": "as above",
    "test_attention_4d_diff_heads_with_past": "as above",
}  # fmt: skip
BY_VALUE = ("window larger", "gather index out of range", "updates, got")  # legal or not: the evaluator does not check
SAME, ILLEGAL, REFUSED, WRONG = "same", "not legal", "refused", "wrong"


@dataclass(frozen=True)
class Swept:
    """One case at one set of shapes."""

    case: str
    shapes: tuple[tuple[int, ...], ...]
    result: str
    said: str = ""


def suite(pattern: str = "") -> list:
    """Cases of one node over tensors of plain numeric types."""
    found = []
    for case in conformance.cases("node"):
        graph = case.model.graph
        plain = all(v.type.HasField("tensor_type") and v.type.tensor_type.HasField("shape") for v in graph.input)
        doubtful = graph.node and (graph.node[0].op_type in LEFT_OUT or case.name.startswith(tuple(DOUBTFUL)))
        if len(graph.node) == 1 and plain and pattern in case.name and not doubtful and graph.input:
            if not any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in graph.node[0].attribute):
                found.append(case)
    return found


def without_sizes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with names for all sizes of inputs, and nothing said of outputs."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for value in made.graph.input:
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"{value.name}_{i}"
    for value in made.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return made


def fixed_sizes(node: onnx.NodeProto) -> set[int]:
    """Sizes that attributes speak of: hidden_size, groups, heads, blocks."""
    return {a.i for a in node.attribute if a.type == onnx.AttributeProto.INT} - {-1, 0, 1}


def resized(inputs: list[np.ndarray], kept: set[int], fixed: set[int], random: np.random.Generator) -> list[np.ndarray]:
    """The inputs with every size above 1 changed, the same ones in the same way; elements are repeated or cut. `kept`: numbers of
    inputs that stay (axes, shapes), `fixed`: sizes that do."""
    free = sorted({n for i, x in enumerate(inputs) if i not in kept for n in x.shape if n > 1 and n not in fixed})
    sizes = {n: int(random.integers(1, SIZE_MAX + 1)) for n in free}
    if random.random() < 0.5:  # change one size alone: more of these are legal
        one = random.choice(list(sizes)) if sizes else 0
        sizes = {n: m if n == one else n for n, m in sizes.items()}
    made = []
    for i, x in enumerate(inputs):
        for axis, n in enumerate(x.shape if i not in kept else ()):
            x = np.take(x, np.arange(sizes.get(n, n)) % n, axis=axis) if n else x
        made.append(np.ascontiguousarray(x).reshape(x.shape))
    return made


def sweep(case: object, shapes: int, random: np.random.Generator) -> Iterator[Swept]:
    """A case at some other shapes, all through one session."""
    model, session, reference = without_sizes(case.model), None, None
    inputs = [np.asarray(conformance._plain(v)) for v in case.data_sets[0][0]]
    names = [v.name for v in model.graph.input][: len(inputs)]
    node = session_node(model)
    found = table.find(node)
    present = [i for i, name in enumerate(node.inputs) if name]
    kept = {present.index(i) for i in (found.on_host if found else ()) if i in present}
    for _ in range(shapes):
        given = resized(inputs, kept, fixed_sizes(node.proto), random)
        sizes = tuple(x.shape for x in given)
        try:
            reference = reference or ReferenceEvaluator(model)
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                wanted = [conformance._plain(v) for v in reference.run(None, dict(zip(names, given, strict=True)))]
        except Exception as error:  # whatever it raises: these shapes are not legal, or it cannot
            yield Swept(case.name, sizes, ILLEGAL, f"{type(error).__name__}: {error}")
            continue
        yield _compared(case, session := session or load(model), names, given, wanted)


def session_node(model: onnx.ModelProto) -> Node:
    return read(model).graph.nodes[0]


def _compared(case: object, session: Session, names: list[str], given: list[np.ndarray], wanted: list) -> Swept:
    sizes = tuple(x.shape for x in given)
    try:
        got = session.run(dict(zip(names, given, strict=True)))
    except DvmError as error:
        said = f"{type(error).__name__}: {error}"
        return Swept(case.name, sizes, ILLEGAL if any(part in said for part in BY_VALUE) else REFUSED, said)
    said = conformance.differs(wanted, got, max(case.rtol, 1e-3), max(case.atol, 1e-5))
    return Swept(case.name, sizes, WRONG if said else SAME, said)


def run(cases: int | None, shapes: int, seed: int, pattern: str = "") -> list[Swept]:
    """A sample of the cases (all of them where None), each at some shapes."""
    operators.load()
    random, found = np.random.default_rng(seed), suite(pattern)
    if cases is not None and cases < len(found):
        found = [found[i] for i in sorted(random.choice(len(found), cases, replace=False))]
    with dvm.Runtime(inline=True):
        return [row for case in found for row in sweep(case, shapes, random)]


def main() -> None:
    parser = argparse.ArgumentParser(description="ONNX's node cases at other shapes")
    parser.add_argument("--cases", type=int)
    parser.add_argument("--shapes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pattern", default="")
    arguments = parser.parse_args()
    rows = run(arguments.cases, arguments.shapes, arguments.seed, arguments.pattern)
    for row in rows:
        if row.result in (WRONG, REFUSED):
            print(f"{row.case} {row.shapes}: {row.result}: {row.said[:240]}")
    print(f"{len({r.case for r in rows})} cases, {dict(Counter(r.result for r in rows))}")


if __name__ == "__main__":
    main()
