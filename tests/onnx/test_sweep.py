"""A sample of ONNX's node cases at other shapes, one session a case, against the reference evaluator; `python -m
tests.onnx.sweep` runs all of them."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx", reason="the extra `onnx` is not installed")

from tests.onnx import sweep

CASES, SHAPES = 160, 2
# What the evaluator computes although the specification has no such shapes: heads that do not divide; pads below 0.
REFUSED = ("test_attention_", "test_convtranspose_autopad", "test_linear_attention", "test_flex_attention")


@pytest.fixture(scope="module", params=[11])
def rows(request: pytest.FixtureRequest) -> list[sweep.Swept]:
    return sweep.run(CASES, SHAPES, request.param)


def test_no_result_is_wrong(rows: list[sweep.Swept]) -> None:
    assert not [row for row in rows if row.result == sweep.WRONG]
    assert sum(row.result == sweep.SAME for row in rows) > 0.7 * len(rows)


def test_legal_shapes_are_not_refused(rows: list[sweep.Swept]) -> None:
    assert not [row for row in rows if row.result == sweep.REFUSED and not row.case.startswith(REFUSED)]


def test_bodies_that_depend_on_sizes_are_made_for_each_size() -> None:
    """CausalConvWithState has as many groups as channels: a body of other channels was used again."""
    found = sweep.run(None, 4, 0, "test_causal_conv_with_state_basic")
    assert [row.result for row in found].count(sweep.SAME) >= 3, found
