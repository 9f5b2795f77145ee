"""Cuts between kernels: what repeats is planned once, and nothing is lost at a cut."""

from __future__ import annotations

from dvm_rt.fusion import fuser
from dvm_rt.fusion.fuser import fuse
from dvm_rt.fusion.segments import segments
from dvm_rt.graph.symbols import evaluate
from tests.fusion.running import check, graph_of, normal, run_plan

ARRAYS = [normal(3, 5, 8), normal(8, 16), normal(16), normal(16, 8)]


def deep(op, x, up, bias, down):
    """Three layers, each with a residual and a norm, and a head that is no product."""
    x = op.tanh(x)
    for _ in range(3):
        inner = op.gelu(op.add(op.matmul(x, up), bias), approximate="none")
        x = op.layer_norm(op.add(x, op.matmul(inner, down)), eps=1e-5)
    return op.mean(x, axes=(1,), keepdims=False)


def test_equal_layers_are_one_segment_structure() -> None:
    found = segments(graph_of(deep, ARRAYS))
    keys = [s.key() for s in found]
    assert len(found) == 7 and len(set(keys)) == 4  # tanh; up; down and norm; the last one with the head
    assert keys[1] == keys[3] == keys[5] and keys[2] == keys[4]


def test_layers_are_right_and_fused_as_one_graph_would_be() -> None:
    fused = check(deep, ARRAYS, atol=1e-4)
    assert [k.kind for k in fused.report.kernels] == ["vector"] + ["matmul", "matmul", "vector"] * 3 + ["vector"]


def test_values_across_a_cut_that_are_results_too() -> None:
    def build(op, x, v, w):
        h = op.tanh(op.matmul(x, v))
        y = op.matmul(h, w)
        return h, op.add(y, 1.0), op.reshape(h, shape=(-1,)), h, y

    check(build, [normal(4, 6), normal(6, 7), normal(7, 3)])


def test_branches_that_know_nothing_of_each_other_are_cut_apart() -> None:
    def build(op, x, v, w, y):
        return op.add(op.matmul(op.tanh(op.matmul(x, v)), w), op.sum(op.exp(y), axes=(0,), keepdims=True))

    arrays = [normal(4, 6), normal(6, 7), normal(7, 3), normal(5, 3)]
    check(build, arrays, atol=1e-4)
    assert len(segments(graph_of(build, arrays))) == 2


def test_a_value_that_a_kernel_could_take_across_is_no_cut() -> None:
    def build(op, x, v):
        h = op.tanh(x)
        return op.matmul(h, v), op.exp(h)  # exp could join tanh

    arrays = [normal(4, 6), normal(6, 7)]
    assert len(segments(graph_of(build, arrays))) == 1
    assert len(fuse(graph_of(build, arrays)).report.kernels) == 2


def test_a_layout_that_rows_do_not_serve_is_no_cut() -> None:
    def build(op, x, y, w):
        mixed = op.matmul(x, y)  # (batch, heads, tokens, size), stored as its only reader wants it
        b, h, t, d = mixed.shape
        return op.matmul(op.reshape(op.permute_dims(mixed, axes=(0, 2, 1, 3)), shape=(b, t, h * d)), w)

    arrays = [normal(2, 3, 5, 5), normal(2, 3, 5, 4), normal(12, 7)]
    assert len(segments(graph_of(build, arrays))) == 1
    assert not any("copy" in k.operators for k in check(build, arrays).report.kernels)


def test_every_edge_has_a_reason_and_is_counted() -> None:
    graph = graph_of(deep, ARRAYS)
    found = fuse(graph, reasons=True)
    counts = found.report.edges.counts
    assert counts["gelu", "matmul", False, "matmul reads it from memory"] == 3
    assert counts["layer_norm", "matmul", False, "matmul reads it from memory"] == 2
    assert counts["matrix_product", "add", True, "in the tile of the matmul, while it is hot"] == 6
    assert counts["sum", "divide", True, "the result of a row, used along the row"] == 7  # two a norm, and the mean
    alone = fuse(graph, fused=False, reasons=True).report.edges
    assert not any(inside for _, _, inside, _ in alone.counts)
    values = graph.symbol_values([a.shape for a in ARRAYS])
    assert evaluate(found.report.edges.saved_bytes, values) > 0
    assert evaluate(alone.saved_bytes, values) == 0
    assert fuse(graph).plan.to_bytes() == found.plan.to_bytes()


def test_layers_with_sizes_of_their_own_are_one_segment_structure() -> None:
    def build(op, x, *weights):
        for up, bias, down in zip(weights[::3], weights[1::3], weights[2::3], strict=True):
            x = op.layer_norm(op.add(x, op.matmul(op.gelu(op.add(op.matmul(x, up), bias), approximate="none"), down)), eps=1e-5)
        return x

    weights = [a for n in (16, 5, 130) for a in (normal(8, n), normal(n), normal(n, 8))]
    arrays = [normal(3, 5, 8), *weights]
    found = segments(graph_of(build, arrays))
    assert len(found) == 6 and len({s.key() for s in found}) == 2  # up; down and norm
    check(build, arrays, atol=1e-4)


def test_what_was_planned_before_does_not_change_a_plan() -> None:
    def others(op, x, up, bias, down):
        return op.tanh(op.add(deep(op, op.exp(x), up, bias, down), 1.0))

    graphs = [graph_of(deep, ARRAYS), graph_of(others, ARRAYS)]
    fuser.forget_segments()
    alone = fuse(graphs[0])
    for _ in range(2):
        fuse(graphs[1])
        again = fuse(graphs[0])
        assert again.plan.to_bytes() == alone.plan.to_bytes() and again.report.text() == alone.report.text()


def test_sizes_of_a_report_are_those_of_the_graph() -> None:
    def build(op, x, y):
        return op.tanh(x), op.sum(op.exp(y), axes=(1,), keepdims=False)

    domains = [[str(n) for n in k.domain] for k in fuse(graph_of(build, [normal(4, 6), normal(5, 7)])).report.kernels]
    assert domains == [["s0", "s1"], ["s2", "s3"]]
