"""Kernels written by hand: one kernel a section, the bytes of the unfused graph, and errors that say why."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.array.function import Function, planned_for
from dvm_rt.errors import GraphError
from dvm_rt.fusion.fuser import fuse
from dvm_rt.graph.graph import evaluate
from dvm_rt.graph.operators import OPERATORS

from tests.fusion.running import normal, run_plan


@dvm.kernel
def whole(k, x, b):
    k.store(k.softmax(k.tanh(k.load(x)) + k.load(b), axis=-1))


@dvm.kernel
def normalised_product(k, x, w):
    with k.section("norm"):
        rows = k.load(x)
        rows = rows / k.sqrt(k.mean(k.square(rows)) + 1e-6)
    with k.section("product"):
        k.store(k.gelu(k.matmul(rows, k.load(w))))


@dvm.kernel
def beside(k, x, y):
    with k.parallel():
        with k.section("largest"):
            a = k.load(x) - k.max(k.load(x))
            k.store(a)
        with k.sequence():
            with k.section("smallest"):
                b = k.load(y) + k.min(k.load(y))
            with k.section("scaled"):
                c = k.clip(b * 0.5, -1.0, 1.0)
                k.store(c)
    with k.section("both"):
        k.store(k.sum(a * c))


@dvm.kernel
def between(k, x):
    scale = k.load(x) * 2.0
    with k.section("rows"):
        total = k.sum(scale)
    k.store(scale - total)
    with k.section("copy"):
        k.store(k.load(x))


@dvm.kernel
def turned(k, x):
    columns = k.permute_dims(k.load(x), (1, 0))  # a view of an argument: both sections read it where it lies
    with k.section("down"):
        k.store(k.sum(columns))
    with k.section("up"):
        k.store(k.exp(columns))


SECTIONS = {
    whole: ["whole"],
    normalised_product: ["norm", "product"],
    beside: ["largest", "smallest", "scaled", "both"],
    between: ["between", "rows", "between", "copy"],
    turned: ["down", "up"],
}


def arguments(kernel: Function, m: int, n: int) -> list[np.ndarray]:
    second = {whole: (n,), normalised_product: (n, 19), beside: (m, n)}.get(kernel)
    return [normal(m, n, seed=1)] + ([normal(*second, seed=2)] if second else [])


@pytest.mark.parametrize("kernel", SECTIONS, ids=lambda kernel: kernel.__name__)
@pytest.mark.parametrize("size", [(5, 7), (1, 131), (33, 1), (2, 16_390), (64, 64)])
def test_bytes_and_values(kernel: Function, size: tuple[int, int]) -> None:
    arrays = arguments(kernel, *size)
    graph = planned_for(kernel, tuple(arrays), {})[1].graph
    fused, alone = fuse(graph), fuse(graph, fused=False)
    got, want = run_plan(fused.plan, arrays), run_plan(alone.plan, arrays)
    called = kernel(*arrays)
    called = called if isinstance(called, tuple) else (called,)
    for a, b, c, exact in zip(got, want, called, evaluate(graph, arrays), strict=True):
        assert a.tobytes() == b.tobytes() == np.asarray(c).tobytes()
        np.testing.assert_allclose(a, exact, 1e-4, 1e-4 * np.max(np.abs(exact)))


@pytest.mark.parametrize("kernel", SECTIONS, ids=lambda kernel: kernel.__name__)
def test_each_section_is_one_kernel_and_all_are_one_launch(kernel: Function) -> None:
    arrays = [dvm.asarray(a) for a in arguments(kernel, 6, 10)]
    report = planned_for(kernel, tuple(arrays), {})[1].fused.report
    assert [one.section for one in report.kernels] == SECTIONS[kernel]
    kernel(*arrays)
    before = dvm.stats()["launches"]
    kernel(*arrays)
    assert dvm.stats()["launches"] == before + 1


def test_an_empty_array() -> None:
    assert np.asarray(whole(np.zeros((0, 5), np.float32), normal(5))).shape == (0, 5)


def test_results_come_in_the_order_of_the_stores() -> None:
    x = normal(4, 3)
    first, second = between(x)
    np.testing.assert_array_equal(np.asarray(second), x)
    np.testing.assert_allclose(np.asarray(first), 2 * x - (2 * x).sum(-1, keepdims=True), 1e-5, 1e-5)


def test_one_plan_for_all_sizes() -> None:
    one = dvm.kernel(whole.python.python)
    one(normal(3, 5), normal(5))
    before = dvm.stats()["traces"]
    for m, n in ((2, 9), (40, 130), (7, 3)):
        one(normal(m, n), normal(n))
    assert dvm.stats()["traces"] == before


def test_inside_of_a_function() -> None:
    @dvm.function
    def around(x, w):
        z = dvm.tanh(x) + 1.0
        return dvm.exp(normalised_product(z * 2.0, w)) + dvm.sum(z)

    x, w = normal(9, 16), normal(16, 19)
    planned = planned_for(around, (x, w), {})[1]
    sections = [one.section for one in planned.fused.report.kernels]
    assert [s for s in sections if s] == ["norm", "product"]
    (want,) = run_plan(fuse(planned.graph, fused=False).plan, [x, w])
    assert np.asarray(around(x, w)).tobytes() == want.tobytes()


def test_twice_inside_of_a_function() -> None:
    @dvm.function
    def around(x, w):
        return normalised_product(x, w) - normalised_product(x * 1.0, w)

    assert not np.asarray(around(normal(9, 16), normal(16, 19))).any()


def test_the_same_graph_travels_to_a_worker() -> None:
    from dvm_rt.graph.graph import Graph

    graph = planned_for(beside, tuple(arguments(beside, 3, 4)), {})[1].graph
    assert fuse(Graph.from_wire(graph.to_wire())).plan == fuse(graph).plan


def test_explain_names_the_sections_and_what_goes_through_memory() -> None:
    text = dvm.explain(normalised_product, *arguments(normalised_product, 5, 8))
    assert "section norm: vector" in text and "section product: matmul" in text
    assert "not fused: divide -> matmul: section norm makes it" in text
    assert "number=" in dvm.dump(normalised_product, *arguments(normalised_product, 5, 8))
    assert dvm.das(normalised_product, *arguments(normalised_product, 5, 8)).count("section") >= 2


def test_arguments_of_other_kinds() -> None:
    @dvm.kernel
    def scaled(k, pair, factor, times=1):
        value = k.load(pair[0]) + k.load(pair[1])
        for _ in range(times):
            value = value * k.load(factor)
        k.store(value)

    x = normal(3, 4)
    np.testing.assert_allclose(np.asarray(scaled((x, x), 0.5, times=2)), x / 2, 1e-6)
    assert scaled.__name__ == "scaled"


def test_threads_do_not_share_a_body() -> None:
    results: list[bytes] = []
    kernel = dvm.kernel(beside.python.python)
    arrays = arguments(beside, 8, 9)
    threads = [threading.Thread(target=lambda: results.append(np.asarray(kernel(*arrays)[2]).tobytes())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and len(set(results)) == 1


# ---- errors -------------------------------------------------------------------------------------------------------


def two_products(k, x):
    with k.section("chain"):
        k.store(k.matmul(k.matmul(k.load(x), k.load(x)), k.load(x)))


def apart(k, x):
    with k.section("torn"):
        k.store(k.exp(k.load(x)))
        k.store(k.sum(k.load(x), axis=None, keepdims=False))


def reads_its_neighbour(k, x):
    with k.parallel():
        with k.section("a"):
            a = k.exp(k.load(x))
        with k.sequence():
            with k.section("b"):
                k.store(a + 1.0)


def section_in_section(k, x):
    with k.section("a"), k.section("b"):
        k.store(k.exp(k.load(x)))


def block_in_section(k, x):
    with k.section("a"), k.parallel():
        k.store(k.exp(k.load(x)))


def without_a_name(k, x):
    with k.section(""):
        k.store(k.exp(k.load(x)))


def stores_memory(k, x):
    k.store(x)


def loads_a_value(k, x):
    k.store(k.load(k.load(x)))


def nothing_stored(k, x):
    k.load(x)


def gives_something(k, x):
    k.store(k.exp(k.load(x)))
    return x


def kernel_in_kernel(k, x):
    k.store(whole(k.load(x), k.load(x)))


ERRORS: dict[Callable, str] = {
    two_products: "section chain: kernels, got 2 .*allowed 1: .*reads it from memory",
    apart: "section torn: kernels, got 2",
    reads_its_neighbour: "parallel: parts, got b that reads what a makes",
    section_in_section: "'b' inside of 'a'",
    block_in_section: "a block inside of 'a'",
    without_a_name: "section: name",
    stores_memory: "store: value, got Memory",
    loads_a_value: "load: memory, got Array",
    nothing_stored: "results, got none",
    gives_something: "result, got Memory, allowed None",
    kernel_in_kernel: "call, got one inside of another kernel",
}


@pytest.mark.parametrize("body", ERRORS, ids=lambda body: body.__name__)
def test_errors(body: Callable) -> None:
    with pytest.raises(GraphError, match=f"kernel: .*{ERRORS[body]}"):
        dvm.kernel(body)(normal(4, 4))
    assert np.asarray(dvm.exp(dvm.asarray(normal(2)))).shape == (2,)  # nothing of the trace is left


def test_names_that_are_not_there() -> None:
    def body(k, x):
        k.store(k.fly(k.load(x)))

    with pytest.raises(AttributeError, match="kernel: fly"):
        dvm.kernel(body)(normal(4))


def test_the_operator_means_nothing_else() -> None:
    x = normal(3)
    assert OPERATORS["section"].meaning(x, 1, "name") is x


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    from runpy import run_path

    run_path(str(Path(__file__).parents[2] / "examples" / "kernel.py"), run_name="__main__")
    printed = capsys.readouterr().out
    errors = [float(line.split()[4]) for line in printed.splitlines() if line.endswith("from float64")]
    assert len(errors) == 3 and max(errors) < 1e-4
    assert [printed.count(f"section {name}:") for name in ("norm", "gate", "up", "gated", "down")] == [1] * 5
