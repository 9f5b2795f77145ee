"""Attention found by pattern: in the forms that people write, with the values of the written form; and where it is not."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np
import pytest

from dvm_rt.dtypes import float32
from dvm_rt.fusion import fuse
from dvm_rt.fusion.patterns import rewritten
from dvm_rt.graph.graph import Graph, Make, Node, parameter
from dvm_rt.graph.symbols import Facts, symbol

from tests.fusion.running import check, normal

Form = Callable[..., Node]
B, H, M, T, D = 2, 3, 5, 140, 32
Q, K, V = normal(B, H, M, D), normal(B, H, T, D), normal(B, H, T, D)
INFINITE = float("-inf")


def swapped(op: Make, x: Node) -> Node:
    rank = len(x.shape)
    return op.permute_dims(x, axes=(*range(rank - 2), rank - 1, rank - 2))


def scores(op: Make, q: Node, k: Node) -> Node:
    return op.matmul(q, swapped(op, k))


def by_hand(op: Make, x: Node, shift: bool = True, divide: bool = True) -> Node:
    axes = {"axes": (len(x.shape) - 1,), "keepdims": True}
    e = op.exp(op.subtract(x, op.max(x, **axes)) if shift else x)
    total = op.sum(e, **axes)
    return op.divide(e, total) if divide else op.multiply(op.reciprocal(total), e)


def softmax(op: Make, x: Node) -> Node:
    return op.softmax(x, axis=len(x.shape) - 1)


PLAIN: dict[str, Form] = {
    "bare": lambda op, q, k, v: op.matmul(softmax(op, scores(op, q, k)), v),
    "scaled": lambda op, q, k, v: op.matmul(softmax(op, op.multiply(scores(op, q, k), 0.2)), v),
    "scaled from the left": lambda op, q, k, v: op.matmul(softmax(op,
        op.multiply(op.constant(value=0.2, dtype="float32"), scores(op, q, k))), v),
    "divided": lambda op, q, k, v: op.matmul(softmax(op, op.divide(scores(op, q, k), sqrt(D))), v),
    "queries scaled before": lambda op, q, k, v: op.matmul(softmax(op, scores(op, op.multiply(q, 0.2), k)), v),
    "scaled twice": lambda op, q, k, v: op.matmul(softmax(op, op.divide(op.multiply(scores(op, q, k), 0.5), 3.0)), v),
    "softmax by hand": lambda op, q, k, v: op.matmul(by_hand(op, op.multiply(scores(op, q, k), 0.2)), v),
    "softmax without a shift": lambda op, q, k, v: op.matmul(by_hand(op, scores(op, q, k), shift=False), v),
    "reciprocal of the sum": lambda op, q, k, v: op.matmul(by_hand(op, scores(op, q, k), divide=False), v),
    "result transposed": lambda op, q, k, v: op.reshape(
        op.permute_dims(op.matmul(softmax(op, scores(op, q, k)), v), axes=(0, 2, 1, 3)), shape=(q.shape[0], q.shape[2], H * D)
    ),
}
MASKED: dict[str, Form] = {
    "added": lambda op, q, k, v, m: op.matmul(softmax(op, op.add(op.multiply(scores(op, q, k), 0.2), m)), v),
    "added from the left": lambda op, q, k, v, m: op.matmul(softmax(op, op.add(m, op.multiply(scores(op, q, k), 0.2))), v),
    "where": lambda op, q, k, v, m: op.matmul(softmax(op, op.where(op.greater(m, 0.0),
        op.multiply(scores(op, q, k), 0.2), INFINITE)), v),
    "where, hidden first": lambda op, q, k, v, m: op.matmul(softmax(op, op.where(op.less(m, -1.0), -1e30, scores(op, q, k))), v),
}


@pytest.mark.parametrize("form", PLAIN.values(), ids=PLAIN)
def test_forms(form: Form) -> None:
    check(form, [Q, K, V], atol=3e-6)
    assert used(form, Q, K, V) == [""]


@pytest.mark.parametrize("form", MASKED.values(), ids=MASKED)
@pytest.mark.parametrize("shape", [(B, 1, 1, T), (M, T), (1, T), (B, H, M, T), (T,)])
def test_masks(form: Form, shape: tuple[int, ...]) -> None:
    mask = normal(*shape)
    mask[..., 0] = 1
    check(form, [Q, K, V, mask], atol=3e-6)
    (reason,) = used(form, Q, K, V, mask)
    computed = shape == (B, H, M, T) and form in (MASKED["where"], MASKED["where, hidden first"])
    assert reason == ("its mask is computed for every score" if computed else "")


def used(form: Form, *arrays: np.ndarray) -> list[str]:
    """The reason for each place found; empty where it was used. Over symbolic sizes, and over these."""
    answers = []
    for symbolic in (False, True):
        facts, count, parameters = Facts(), 0, []
        for i, array in enumerate(arrays):
            shape = []
            for size in array.shape:
                shape.append(symbol(count) if symbolic and size not in (1, D, H) else size)
                count += 1
            parameters.append(parameter(i, tuple(shape), float32))
        graph = Graph.of(parameters, [form(Make(facts), *parameters)], facts)
        answers.append([one.reason for one in rewritten(graph)[1]])
    assert answers[0] == answers[1]
    return answers[0]


def two_results(op: Make, q: Node, k: Node, v: Node) -> Node:
    p = softmax(op, scores(op, q, k))
    return op.add(op.sum(op.matmul(p, v), axes=(3,), keepdims=True), op.sum(p, axes=(3,), keepdims=True))


REFUSED: dict[str, tuple[Form, str]] = {
    "probabilities read elsewhere": (two_results, "the result of softmax inside of it is read elsewhere"),
    "activation between": (
        lambda op, q, k, v: op.matmul(softmax(op, op.tanh(scores(op, q, k))), v), "its scores come from tanh",
    ),
    "scaled after the mask": (
        lambda op, q, k, v: op.matmul(softmax(op, op.multiply(op.add(scores(op, q, k),
            op.constant(value=1.0, dtype="float32")), 2.0)), v),
        "its scores go through add before they are scaled or masked",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("form", "reason"), REFUSED.values(), ids=REFUSED)
def test_why_not(form: Form, reason: str) -> None:
    assert used(form, Q, K, V) == [reason]
    check(form, [Q, K, V], atol=1e-5)


def test_values_of_another_width() -> None:
    for values in (V[..., :20].copy(), normal(B, H, T, 70), V[..., :1].copy()):
        assert used(PLAIN["scaled"], Q, K, values) == [""]
        check(PLAIN["scaled"], [Q, K, values], atol=3e-6)


def test_a_query_without_keys_is_nan_as_in_softmax() -> None:
    mask = normal(M, T)
    mask[2] = -1
    check(MASKED["where"], [Q, K, V, mask], atol=3e-6)


def test_the_report_says_so() -> None:
    parameters = [parameter(i, x.shape, float32) for i, x in enumerate((Q, K, V))]
    graph = Graph.of(parameters, [PLAIN["scaled"](Make(Facts()), *parameters)], Facts())
    report = fuse(graph).report
    assert [k.kind for k in report.kernels] == ["attention"]
    assert "pattern attention [2, 3, 5, 32]: used" in report.text()
    assert not any(b.role == "TEMPORARY" for b in fuse(graph).plan.buffers), "no scores in memory"
