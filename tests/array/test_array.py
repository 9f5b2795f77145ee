"""Lazy arrays: values, laziness, errors where they are caused, plans found again by structure."""

from __future__ import annotations

import asyncio
import gc
import warnings

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.array import session as sessions
from dvm_rt.array.session import Pending
from dvm_rt.errors import DeviceTrap, DTypeError, GraphError, ShapeError
from tests.array.conftest import F32, fresh


def test_operators_methods_and_numbers() -> None:
    a, b = fresh(4, 5), fresh(5)
    x, y = dvm.asarray(a), dvm.asarray(b)
    cases = [
        (x + y, a + b), (x - 1, a - 1), (2 * x, 2 * a), (1 - x, 1 - a), (x / y, a / b), (1 / y, 1 / b), (-x, -a),
        (abs(x), abs(a)), (+x, a),
        (x**2, a**2), (x @ y, a @ b), (x < y, a < b), (x >= 0, a >= 0), (x == x, a == a), ((x > 0) & (y > 0), (a > 0) & (b > 0)),
        (~(x > 0) | (y != 0), ~(a > 0) | (b != 0)), ((x > 0) ^ (y > 0), (a > 0) ^ (b > 0)), (x.T, a.T), (x.sum(), a.sum()),
        (x.mean(axis=0), a.mean(0)), (x.max(axis=1, keepdims=True), a.max(1, keepdims=True)), (x.min(), a.min()),
        ((x > 0).any(axis=0), (a > 0).any(0)), ((x > 0).all(), (a > 0).all()), (x.reshape(2, -1), a.reshape(2, -1)),
        (x.reshape((20,)), a.reshape(20)), ((x > 0).astype(dvm.float32), (a > 0).astype(F32)), (x + b, a + b), (b * x, b * a),
        (x * np.float32(2), a * 2), (np.float64(2) - x, 2 - a), (dvm.where(x > 0, x, 0.0), np.where(a > 0, a, 0)),
        (dvm.where(x > 0, 1.0, -1), np.where(a > 0, 1, -1)), (dvm.maximum(x, 0.5), np.maximum(a, 0.5)),
        (dvm.clip(x, -1, 1), np.clip(a, -1, 1)),
        (dvm.concat([x, x], axis=1), np.concatenate([a, a], 1)), (dvm.stack([y, y], axis=1), np.stack([b, b], 1)),
        (dvm.split(x, [2], axis=1)[1], a[:, 2:]), (dvm.split(x, 2)[1], a[2:]), (dvm.zeros((2, 3)), np.zeros((2, 3))),
        (dvm.full((2,), True), np.full(2, True)), (dvm.broadcast_to(y, (4, 5)), np.broadcast_to(b, (4, 5))),
        (dvm.permute_dims(x, (1, 0)), a.T), (dvm.squeeze(dvm.expand_dims(x, axis=(0, -1)), (0, 3)), a),
        (dvm.var(x, axis=1), a.var(1)),
    ]  # fmt: skip
    for number, (got, want) in enumerate(cases):
        assert got.shape == want.shape, number
        assert got.dtype.numpy == np.asarray(want, F32 if want.dtype != bool else bool).dtype, number
        np.testing.assert_allclose(np.asarray(got), want, 2e-5, 2e-6, err_msg=str(number))


def test_indexing() -> None:
    a = fresh(4, 5, 6)
    x = dvm.asarray(a)
    n = None
    keys = [
        0, -1, np.int64(2), slice(1, 3), slice(None, -1), slice(None, None, -2), (slice(None), 2), (..., 1),
        (1, ..., slice(2, 4)),
        (n, 0), (slice(None), n, slice(1, None)), (..., n), (0, n, 1), (0, 1, 2), slice(10, 20), slice(3, 1),
        (slice(None, 2), slice(None, None, 3)), (),
    ]  # fmt: skip
    for key in keys:
        want = a[key]
        assert x[key].shape == want.shape, key
        assert np.asarray(x[key]).tobytes() == np.ascontiguousarray(want).tobytes(), key
    rows = np.array([[3, -1], [0, 2]], np.int32)
    assert np.asarray(x[dvm.asarray(rows)]).tobytes() == a[rows].tobytes()
    assert np.asarray(x[rows]).tobytes() == a[rows].tobytes()
    assert [float(row.sum()) for row in x] == [float(x[i].sum()) for i in range(4)]


def test_conversions_of_values() -> None:
    x = dvm.asarray([[1.5]])
    assert (float(x), int(x), bool(x), x.item(), x.tolist(), len(x), x.size, x.ndim) == (1.5, 1, True, 1.5, [[1.5]], 1, 1, 2)
    assert dvm.asarray(True).item() is True and dvm.asarray(7).dtype is dvm.int64 and [0, 1, 2][dvm.asarray(2)] == 2
    assert repr(dvm.asarray([1.0, 2.0]) + 1) == "Array([2., 3.], dtype=float32)"
    view = np.asarray(x)
    assert not view.flags.writeable and np.asarray(x, dtype=np.float64).dtype == np.float64 and np.array(x).flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 2
    with pytest.raises(TypeError, match="no dimensions"):
        len(dvm.asarray(1.0))
    with pytest.raises(ShapeError, match="one element"):
        float(dvm.asarray([1.0, 2.0]))


def test_python_control_flow_on_values(counts) -> None:
    x, steps = dvm.asarray(fresh(10)) * 0 + 1, 0
    while float(x.sum()) < 1000:
        x = x * 2
        steps += 1
    assert steps == 7 and counts["flush item"] == 8
    assert "yes" if (x > 0).all() else False


def test_errors_come_from_the_line_that_caused_them() -> None:
    x = dvm.asarray(fresh(3, 4))
    for error, cause in [
        (ShapeError, lambda: x + dvm.asarray(fresh(5))), (ShapeError, lambda: x @ x), (ShapeError, lambda: x[5]),
        (ShapeError, lambda: x[0, 0, 0]),
        (ShapeError, lambda: x.reshape(5, -1)), (ShapeError, lambda: x.sum(axis=2)), (ShapeError, lambda: x[0].T),
        (ShapeError, lambda: x[1.5]),
        (ShapeError, lambda: dvm.concat([])), (ShapeError, lambda: dvm.asarray([[1.0], [1.0, 2.0]])),
        (ShapeError, lambda: dvm.split(x, 2, axis=0)),
        (DTypeError, lambda: x << 1), (DTypeError, lambda: dvm.exp(dvm.asarray([1]))), (DTypeError, lambda: x & x),
        (DTypeError, lambda: dvm.asarray("text")),
        (DTypeError, lambda: dvm.asarray(1.0).astype("nothing")), (DTypeError, lambda: dvm.asarray([1], "uint8") + 300),
        (DTypeError, lambda: dvm.asarray([1], "uint64") + dvm.asarray([1])), (ShapeError, lambda: x[x > 0, 1]),
        (TypeError, lambda: x + "text"), (GraphError, lambda: dvm.eval(3)),
    ]:  # fmt: skip
        with pytest.raises(error):
            cause()
    with pytest.raises(DeviceTrap):
        np.asarray(dvm.take(x, dvm.asarray([5])))
    assert float((x * 0).sum()) == 0  # and the next request works


# ---- laziness -----------------------------------------------------------------------------------------------------


def test_nothing_runs_before_a_value_is_needed(counts) -> None:
    x = dvm.asarray(fresh(8))
    y = dvm.tanh(x * 2 + 1) - x
    assert counts["launched"] == 0 and y.shape == (8,)
    float(y.sum())
    assert counts["launched"] == 1


def test_a_temporary_is_never_stored(counts) -> None:
    a = fresh(64, 64)
    x = dvm.asarray(a)
    y = dvm.exp(x) + 1
    del x
    before = dvm.stats()["memory"]["tensors"]
    total = (y * y).sum()
    del y
    assert abs(float(total) - float(((np.exp(a) + 1) ** 2).sum())) < 1e-3 * float(total)
    assert dvm.stats()["memory"]["tensors"] - before <= 256  # the sum alone


def test_what_somebody_holds_is_stored_once(counts) -> None:
    x = dvm.asarray(fresh(9))
    y = dvm.exp(x)
    float((y + 1).sum())
    assert y._tensor is not None and counts["launched"] == 1
    np.asarray(y)
    assert counts["launched"] == 1


def test_eval_computes_several_in_one_launch(counts) -> None:
    x = dvm.asarray(fresh(9))
    y, z = dvm.exp(x), dvm.tanh(x)
    dvm.eval(y, z, x)
    assert counts["launched"] == 1 and y._tensor is not None and z._tensor is not None
    dvm.eval()


def test_aeval() -> None:
    async def work() -> float:
        y = dvm.exp(dvm.asarray([0.0, 1.0]))
        await dvm.aeval(y)
        assert y._tensor is not None
        return float(y.sum())

    assert abs(asyncio.run(work()) - 1 - np.e) < 1e-5


def test_a_long_graph_is_cut(counts, monkeypatch) -> None:
    monkeypatch.setattr(sessions.session(), "pending_max", 50)
    x = dvm.asarray(fresh(3)) * 0
    y = x
    for _ in range(120):
        y = y + 1
    assert counts["flush size limit"] == 2
    assert np.asarray(y).tolist() == [120.0] * 3


def test_shared_nodes_do_not_make_a_graph_look_long(counts, monkeypatch) -> None:
    monkeypatch.setattr(sessions.session(), "pending_max", 50)
    y = dvm.asarray(fresh(3))
    for _ in range(20):
        y = (y + y) * 0.5
    assert counts["flush size limit"] == 0 and y.shape == (3,)


def test_a_computed_graph_forgets_what_it_came_from() -> None:
    y = dvm.asarray(fresh(3))
    for _ in range(5):
        y = y + 1
    node = y._node
    float(y.sum())
    assert not node.inputs and node.data is y._tensor and not isinstance(node.data, Pending)


# ---- plans --------------------------------------------------------------------------------------------------------


def test_the_structure_finds_the_plan_for_every_shape(counts) -> None:
    for n in (3, 4, 5, 130):
        a = fresh(n, 7)
        x = dvm.asarray(a)
        got = dvm.softmax(x * 3 + 1, axis=0)[1:, :-1].reshape(-1)
        e = np.exp((a * 3 + 1) - (a * 3 + 1).max(0))
        np.testing.assert_allclose(np.asarray(got), (e / e.sum(0))[1:, :-1].reshape(-1), 1e-5, 1e-6)
    assert counts["plans"] == 1


def test_a_size_of_one_is_another_structure(counts) -> None:
    for n in (3, 1, 4, 1):
        np.asarray(dvm.asarray(fresh(n, 4)) + dvm.asarray(fresh(2, 1, 4)))
    assert counts["plans"] == 2


def test_fixed_sizes_get_plans_of_their_own(counts) -> None:
    for n in (6, 12, 6, 12):
        a = fresh(n)
        assert np.asarray(dvm.tanh(dvm.asarray(a)).reshape(2, n // 2)).shape == (2, n // 2)
    assert counts["plans"] <= 3


def test_numbers_that_change_become_inputs(counts) -> None:
    a = fresh(5)
    x = dvm.asarray(a)
    for i in range(12):
        np.testing.assert_array_equal(np.asarray(x * float(i) + 0.5), a * F32(i) + F32(0.5))
    assert counts["plans"] <= sessions.VARIANTS_MAX + 1


def test_slices_are_cut_off_as_in_numpy_whatever_the_plan_assumed() -> None:
    for n in (8, 3, 5, 2):
        a = fresh(n, 2)
        for key in (slice(2, 5), slice(None, 4), slice(-4, None), slice(1, None)):
            assert np.asarray(dvm.exp(dvm.asarray(a)[key]) * 0 + dvm.asarray(a)[key]).tobytes() == a[key].tobytes()


def test_a_broadcast_that_only_some_sizes_have() -> None:
    y = fresh(4, 3)
    for n in (5, 2, 5):  # x[1:] has 4 rows, or 1 that stretches
        a = fresh(n, 3)
        np.testing.assert_allclose(np.asarray(dvm.asarray(a)[1:] + dvm.asarray(y)), a[1:] + y, 1e-6)


def test_plans_are_forgotten_beyond_the_limit(monkeypatch) -> None:
    monkeypatch.setattr(sessions.session(), "plans_max", 3)
    x = dvm.asarray(fresh(3))
    for name in ("exp", "tanh", "erf", "abs", "floor", "ceil"):
        np.asarray(getattr(dvm, name)(x))
    assert len(sessions.session().plans) <= 3
    np.asarray(dvm.exp(x))


def test_names_are_there_and_loaded_lazily() -> None:
    assert all(hasattr(dvm, name) for name in dvm.__all__)
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        dvm.nothing_of_this_name  # noqa: B018
    assert dvm.bool is dvm.bool_ and GraphError.__mro__[1].__name__ == "DvmError"


def test_arrays_of_two_runtimes() -> None:
    outside = dvm.asarray(fresh(3))
    with dvm.Runtime(inline=True):
        inside = dvm.asarray(fresh(3))
        assert float((inside * 0).sum()) == 0
        assert float((outside * 0).sum()) == 0  # in its own runtime
        with pytest.raises(GraphError, match="arrays of two"):
            inside + outside
    with pytest.raises(dvm.ClosedError):
        float((inside * 0).sum())
    assert float((outside * 0).sum()) == 0


def test_a_runtime_does_not_live_on_in_its_arrays() -> None:
    import weakref

    with dvm.Runtime(inline=True) as runtime:
        dvm.eval(dvm.asarray(fresh(3)) + 1)
        dvm.function(lambda x: x + 1)(dvm.asarray(fresh(3)))
    gone = weakref.ref(runtime)
    del runtime
    gc.collect()
    assert gone() is None


def test_a_symbolic_size_meets_zero() -> None:
    x = dvm.asarray(fresh(4, 0))
    assert np.asarray((x + 1).reshape(0, 7)).shape == (0, 7)
    empty = dvm.zeros((0, 2))
    assert np.asarray(dvm.function(lambda a: dvm.concat([a, empty], axis=1))(dvm.asarray(fresh(0, 3)))).shape == (0, 5)


def test_one_element_is_formatted_as_its_number() -> None:
    x = dvm.asarray([1.5, 2.25])
    assert f"{x.sum():.3f} {x[0]:>5}" == "3.750   1.5" and f"{x}" == str(x)


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x.reshape(4.0, 3),
        lambda x: dvm.zeros((2.0,)),
        lambda x: dvm.split(x, 0),
        lambda x: x + 10**400,
        lambda x: dvm.take(dvm.zeros((0, 3)), [0], axis=0),
    ],
)
def test_arguments_that_mean_nothing(act) -> None:
    with pytest.raises((ShapeError, DTypeError), match=r"^array: \w+: .*, got .*, allowed .*"):
        act(dvm.asarray(fresh(3, 4)))


def test_rows_by_plain_lists() -> None:
    a = fresh(3, 4)
    assert (np.asarray(dvm.take(a, [2, -1, 0], axis=0)) == a[[2, -1, 0]]).all()
    assert np.asarray(dvm.take(dvm.zeros((0, 3)), np.zeros(0, np.int64), axis=0)).shape == (0, 3)


@pytest.mark.parametrize("axes", [(0, 3, 1, 2), (3, 0, 1, 2), (2, 0, 1, 3), (2, 3, 1, 0)])
def test_products_of_single_rows_however_they_lie(axes: tuple[int, ...]) -> None:
    a = fresh(3, 1, 4, 5)
    left = a.transpose(axes)
    b = fresh(left.shape[-1], 6)
    assert np.allclose(np.asarray(dvm.permute_dims(dvm.asarray(a), axes) @ dvm.asarray(b)), left @ b, atol=1e-5)


def test_numbers_of_a_lazy_graph_are_told_apart_exactly() -> None:
    x = dvm.asarray(np.ones(3, np.float32))
    for number in (0.0, -0.0, 0.0, np.nan, 1.0, -1.0):
        got, want = np.asarray(x * number), np.ones(3, np.float32) * np.float32(number)
        assert got.tobytes() == want.tobytes() or np.isnan(number)
        assert np.isnan(got).all() == np.isnan(number)


def test_attributes_that_are_equal_but_not_the_same_have_plans_of_their_own() -> None:
    """`full` of -0.0 found the plan of 0.0, and gave its bytes."""
    for _ in range(3):
        for value in (0.0, -0.0):
            assert np.signbit(np.asarray(dvm.full((3,), value))).tolist() == [np.signbit(value)] * 3


def test_every_flush_says_why_and_where(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DVM_RT_LOG_FLUSHES", "1")
    with dvm.Runtime(inline=True):
        x = dvm.asarray(np.ones(3, np.float32))
        for _ in range(2):
            float(dvm.sum(x * 2))
        dvm.eval(x + 1)
        reasons = {what: n for what, n in dvm.stats().items() if what.startswith("flush ")}
    lines = capsys.readouterr().err.splitlines()
    assert reasons == {"flush item": 2, "flush eval": 1}
    assert [line.rpartition(":")[0] for line in lines] == [
        f"dvm_rt: flush 1: item: 2 operators, 1 results, new: {__file__}",
        f"dvm_rt: flush 2: item: 2 operators, 1 results, seen before: {__file__}",
        f"dvm_rt: flush 3: eval: 1 operators, 1 results, new: {__file__}",
    ]


@pytest.mark.parametrize("correction", [0.0, 1.0, 2.0, 3.0, 4.5])
def test_a_variance_is_never_negative(correction: float) -> None:
    def both(x: dvm.Array) -> tuple[dvm.Array, dvm.Array]:
        return dvm.var(x, axis=0, correction=correction), dvm.std(x, axis=0, correction=correction)

    for a in (fresh(3, 4), fresh(2, 4), fresh(1, 4), fresh(0, 4)):
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the correction is beyond the count
            want = np.var(a.astype(np.float64), axis=0, ddof=correction)
        for call in (both, dvm.function(both)):
            var, std = call(dvm.asarray(a))
            np.testing.assert_allclose(np.asarray(var), want, 1e-5)
            np.testing.assert_allclose(np.asarray(std), np.sqrt(want), 1e-5)
