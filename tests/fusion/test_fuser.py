"""What shares a kernel and what does not, layouts, workspace, limits."""

from __future__ import annotations

import numpy as np
import pytest

from dvm_rt.fusion.fuser import Fused, fuse
from dvm_rt.fusion.memory import Lifetime, slots
from tests.fusion.running import check, graph_of, normal


def kinds(fused: Fused) -> list[str]:
    return [k.kind for k in fused.report.kernels]


def test_chains_softmax_and_norms_are_one_kernel() -> None:
    for build in (
        lambda op, x: op.softmax(op.multiply(op.add(x, 1.0), 2.0), axis=2),
        lambda op, x: op.layer_norm(op.tanh(x), eps=1e-5),
        lambda op, x: op.rms_norm(op.silu(x), eps=1e-5),
        lambda op, x: op.var(x, axes=(1,), correction=0.0, keepdims=False),
        lambda op, x: op.softmax(x, axis=0),
        lambda op, x: op.softmax(op.permute_dims(x, axes=(2, 0, 1)), axis=1),
        lambda op, x: op.reshape(op.exp(op.reshape(op.tanh(x), shape=(-1, x.shape[2]))), shape=(-1,)),
    ):
        assert kinds(check(build, [normal(3, 4, 130)], rtol=1e-4, atol=1e-5)) == ["vector"]


def test_a_value_that_is_also_a_result_is_stored_by_the_kernel_that_needs_it() -> None:
    fused = check(lambda op, x, r: (h := op.add(x, r), op.layer_norm(h, eps=1e-5)), [normal(5, 20), normal(5, 20)], atol=1e-5)
    assert kinds(fused) == ["vector"]


def test_siblings_share_what_they_read() -> None:
    fused = check(lambda op, x: (op.exp(y := op.tanh(x)), op.sigmoid(y), op.sum(y, axes=(1,), keepdims=True)), [normal(6, 33)])
    assert kinds(fused) == ["vector"]
    fused = check(lambda op, x: (op.exp(y := op.tanh(x)), op.sum(y, axes=(0,), keepdims=True),
                                 op.sum(y, axes=(1,), keepdims=True)), [normal(6, 33)])
    assert len(kinds(fused)) == 2  # rows along one axis only


def test_epilogues() -> None:
    arrays = [normal(4, 6, 8), normal(16, 8), normal(16), normal(4, 6, 16)]
    for build in (
        lambda op, x, w, b, r: op.add(op.gelu(op.linear(x, w, b), approximate="none"), r),
        lambda op, x, w, b, r: op.where(op.greater(r, 0.0), op.linear(x, w, b), -1.0),
        lambda op, x, w, b, r: op.multiply(op.linear(x, w), op.exp(r)),
        lambda op, x, w, b, r: op.reshape(op.relu(op.linear(op.reshape(x, shape=(-1, x.shape[2])), w, b)),
                                          shape=(x.shape[0], x.shape[1], -1)),
    ):
        assert kinds(check(build, arrays, atol=1e-5)) == ["matmul"]


def test_a_product_that_others_read_too_ends_its_epilogue() -> None:
    arrays = [normal(6, 8), normal(8, 5)]
    fused = check(lambda op, x, w: (y := op.matmul(x, w), op.relu(y)), arrays)
    assert kinds(fused) == ["matmul", "vector"]
    fused = check(lambda op, x, w: op.softmax(op.multiply(op.matmul(x, w), 2.0), axis=1), arrays)
    assert kinds(fused) == ["matmul", "vector"] and fused.report.kernels[0].operators == ("matrix_product", "multiply")


def test_two_products_and_their_sum() -> None:
    arrays = [normal(6, 8), normal(8, 5), normal(8, 5)]
    assert kinds(check(lambda op, x, v, w: op.tanh(op.add(op.matmul(x, v), op.matmul(x, w))), arrays)) == ["matmul", "matmul"]


def test_a_product_is_stored_as_its_reader_wants_it() -> None:
    def heads(op, x, y):
        z = op.matmul(x, y)  # (batch, heads, tokens, size)
        b, h, t, d = z.shape
        return op.tanh(op.reshape(op.permute_dims(z, axes=(0, 2, 1, 3)), shape=(b, t, h * d)))

    fused = check(lambda op, x, y, w: op.matmul(heads(op, x, y), w), [normal(2, 3, 5, 5), normal(2, 3, 5, 4), normal(12, 7)])
    assert not any("copy" in k.operators for k in fused.report.kernels)

    def transposed(op, x, y):
        b, h, t, _ = x.shape
        z = op.reshape(op.permute_dims(op.matmul(x, y), axes=(0, 2, 1, 3)), shape=(b, t, -1))
        return op.softmax(z, axis=2)

    assert kinds(check(transposed, [normal(2, 3, 5, 5), normal(2, 3, 5, 4)])) == ["matmul", "vector"]


def test_operands_that_lie_badly_are_copied() -> None:
    fused = check(lambda op, x, y: op.matmul(op.index(x, entries=((None, None, 2), (None, None, 2))), y),
                  [normal(8, 10), normal(5, 3)])
    assert kinds(fused) == ["copy", "matmul"]
    fused = check(lambda op, x, y: op.matmul(op.astype(x, dtype="float32"), y), [np.ones((4, 5), np.int32), normal(5, 3)])
    assert kinds(fused) == ["vector", "matmul"]


def test_weights_are_packed_whichever_way_they_lie() -> None:
    for build in (lambda op, x, w: op.matmul(x, w), lambda op, x, w: op.matmul(x, op.permute_dims(w, axes=(1, 0)))):
        assert len(check(build, [normal(9, 9), normal(9, 9)]).plan.packs) == 1
    both = check(lambda op, x, w: op.matmul(op.matmul(x, w), w), [normal(5, 9), normal(9, 9)], atol=1e-5)
    assert len(both.plan.packs) == 1


def test_nothing_expensive_is_computed_twice() -> None:
    fused = check(lambda op, x, b: op.add(x, op.exp(b)), [normal(50, 20), normal(20)])
    assert len(kinds(fused)) == 2 and "again and again" in fused.report.text()
    fused = check(lambda op, x, b: op.multiply(x, op.exp(b)), [normal(50, 20), normal(50, 1)])
    assert len(kinds(fused)) == 1  # once a row


def test_what_is_cheap_is_made_by_each_reader() -> None:
    def build(op, x, mask):
        bias = op.multiply(op.subtract(1.0, mask), -1e4)
        return op.softmax(op.add(x, bias), axis=1), op.tanh(op.add(op.exp(x), bias))

    fused = check(build, [normal(7, 9), (normal(9) > 0).astype(np.float32)])
    assert [k.operators.count("subtract") for k in fused.report.kernels] == [2, 1]  # softmax subtracts too


def test_a_reader_in_between_keeps_kernels_apart() -> None:
    def build(op, x, w):
        h = op.exp(op.multiply(x, 0.1))
        return op.add(op.matmul(op.tanh(h), w), h)

    check(build, [normal(4, 4), normal(4, 4)])


@pytest.mark.parametrize("count", [3, 12, 13, 40])
def test_kernels_with_too_many_arguments_are_cut(count: int) -> None:
    def build(op, *xs):
        total = op.tanh(xs[0])
        for x in xs[1:]:
            total = op.add(total, op.tanh(x))
        return op.softmax(total, axis=0)

    fused = check(build, [normal(17) for _ in range(count)])
    assert all(len(k.args) <= 12 and len(k.nodes) <= 64 for k in fused.plan.kernels)
    assert len(fused.plan.kernels) <= 1 + count // 9


def test_long_chains_are_cut_at_the_limit_of_nodes() -> None:
    def build(op, x):
        for _ in range(100):
            x = op.tanh(op.add(x, 0.5))
        return x

    fused = check(build, [normal(200)])
    assert all(len(k.nodes) <= 64 for k in fused.plan.kernels) and len(fused.plan.kernels) <= 5
    small = fuse(graph_of(build, [normal(200)]), nodes_max=16)
    assert all(len(k.nodes) <= 16 for k in small.plan.kernels)


def test_temporaries_share_workspace() -> None:
    def build(op, x, w):
        for _ in range(6):
            x = op.rms_norm(op.matmul(x, w), eps=1e-5)
        return x

    fused = check(build, [normal(9, 9), normal(9, 9)])
    assert fused.plan.slots == 2 and sum(b.role == "TEMPORARY" for b in fused.plan.buffers) == 11


def test_slots_of_values_that_live_together_differ() -> None:
    given = slots([Lifetime(0, 0, 2, 8), Lifetime(1, 1, 3, 8), Lifetime(2, 3, 4, 8), Lifetime(3, 3, 5, 9), Lifetime(4, 5, 6, 9)])
    assert given[0] != given[1] and given[2] == given[0] and len({given[1], given[2], given[3]}) == 3 and given[4] != given[3]


def test_integers_can_be_viewed_and_copied() -> None:
    indices = np.array([[0, 2, 1], [1, 1, 0]], np.int64)
    view = lambda op, t, i: op.take(t, op.index(op.permute_dims(i, axes=(1, 0)), entries=((None, None, -1),)))  # noqa: E731
    check(view, [normal(3, 4), indices])
    fused = check(lambda op, i: op.permute_dims(i, axes=(1, 0)), [indices])
    assert kinds(fused) == ["copy"]
    check(lambda op, i: op.concat(i, op.index(i, entries=((None, None, -1),)), axis=0), [indices])


def test_plans_do_not_depend_on_the_run() -> None:
    build = lambda op, x, w: op.softmax(op.gelu(op.matmul(x, w), approximate="tanh"), axis=0)  # noqa: E731
    plans = {fuse(graph_of(build, [normal(4, 5), normal(5, 6)])).plan.to_bytes() for _ in range(3)}
    assert len(plans) == 1


def test_a_norm_is_not_torn_apart_for_a_mean_along_another_axis() -> None:
    fused = check(lambda op, x, m: op.sum(op.multiply(op.layer_norm(x, eps=1e-3), m), axes=(1,), keepdims=False),
                  [normal(2, 5, 9), normal(2, 5, 1)], atol=1e-5)
    assert [len(k.operators) for k in fused.report.kernels] == [10, 1]


def test_planning_does_not_follow_every_path() -> None:
    def build(op, x, w):
        x = op.matmul(x, w)
        for _ in range(60):
            x = op.multiply(op.add(x, x), 0.5)  # 2^60 paths from the input
        return x

    assert len(check(build, [normal(4, 4), normal(4, 4)], atol=1e-5).plan.kernels) <= 3
