"""The stream inline: right values, typed errors for wrong arguments, bounded caches, memory that lives as long as it must."""

from __future__ import annotations

import gc
import os
import sys
import threading

import numpy as np
import pytest

from dvm_rt import _native, dtypes
from dvm_rt.errors import (
    ClosedError,
    DeviceOutOfMemoryError,
    DeviceTrap,
    DTypeError,
    ForkedClientError,
    GraphError,
    ShapeError,
)
from dvm_rt.isa.layout import RECORD, enum_value
from tests.native.streams import axpy, linear, pick_rows, random, two_steps

MIB = 1 << 20


@pytest.fixture
def stream() -> _native.Stream:
    return _native.Stream(arena_bytes_max=16 * MIB)


def test_calls_give_what_numpy_gives(stream: _native.Stream) -> None:
    plan = stream.register(axpy())
    for shape in [(1, 1), (3, 5), (7, 128), (2, 1000), (3, 5)]:
        x, y = random(*shape), random(*shape, seed=1)
        (out,) = stream.call(plan, [stream.asarray(x), stream.asarray(y)])
        assert out.shape == shape
        assert out.dtype == dtypes.float32.code
        np.testing.assert_array_equal(stream.read(out), x * 2 + y)
    assert stream.stats()["programs"] == 4
    assert stream.launched == stream.done == 5


@pytest.mark.parametrize("dtype", [d for d in dtypes.DTYPES if d is not dtypes.bfloat16], ids=str)
def test_every_dtype_comes_back_as_it_went_in(stream: _native.Stream, dtype: dtypes.DType) -> None:
    for array in (np.arange(12).reshape(3, 4), np.array(1), np.zeros((2, 0, 3)), np.arange(24).reshape(4, 6)[::2, ::-1]):
        array = array.astype(dtype.numpy) if array.flags.c_contiguous else array.astype(dtype.numpy)[:, ::-1]
        tensor = stream.asarray(array)
        assert (tensor.dtype, tensor.shape) == (dtype.code, array.shape)
        back = stream.read(tensor)
        assert back.dtype == dtype.numpy
        assert not back.flags.writeable
        np.testing.assert_array_equal(back, array)


def test_bfloat16_is_named_by_its_code(stream: _native.Stream) -> None:
    bits = np.array([0x3F80, 0x4000], np.uint16)
    tensor = stream.asarray(bits, dtypes.bfloat16.code)
    assert tensor.dtype == dtypes.bfloat16.code
    np.testing.assert_array_equal(stream.read(tensor), bits)
    with pytest.raises(DTypeError):
        stream.asarray(bits, dtypes.float32.code)


@pytest.mark.parametrize("array", [np.zeros(2, complex), np.array(["a"]), np.array([None]), np.zeros(2, ">f4"),
                                   np.zeros(2, "M8[s]")])
def test_other_dtypes_are_refused(stream: _native.Stream, array: np.ndarray) -> None:
    with pytest.raises(DTypeError, match="stream: asarray: dtype, got"):
        stream.asarray(array)


def test_one_element_as_a_python_scalar(stream: _native.Stream) -> None:
    for value in (np.float32(1.5), np.int8(-3), np.uint64(2**63), np.bool_(True), np.float16(0.25), np.float64(1e300)):
        assert stream.item(stream.asarray(np.asarray(value))) == value.item()
    with pytest.raises(ShapeError):
        stream.item(stream.asarray(np.zeros(2)))


def test_wrong_arguments_are_named(stream: _native.Stream) -> None:
    plan = stream.register(axpy())
    x = stream.asarray(random(3, 5))
    for other, error, text in (
        (np.zeros((3, 5), np.int32), DTypeError, "plan 1: parameter 1: dtype, got int32, allowed float32"),
        (np.zeros((5,), np.float32), ShapeError, r"plan 1: parameter 1: rank of shape \(5,\), got 1, allowed 2"),
        (np.zeros((3, 6), np.float32), ShapeError, r"plan 1: parameter 1: dimension 1 of shape \(3, 6\), got 6, allowed 5"),
    ):
        with pytest.raises(error, match=text):
            stream.call(plan, [x, stream.asarray(other)])
        (again,) = stream.call(plan, [x, x])
        assert again.seq == stream.done
    with pytest.raises(ShapeError, match="arguments, got 1, allowed 2"):
        stream.call(plan, [x])
    with pytest.raises(GraphError, match="unknown number, got 9"):
        stream.call(9, [x])
    with pytest.raises(TypeError, match="not a tensor"):
        stream.call(plan, [x, 3])
    with pytest.raises(GraphError):
        stream.register(axpy()[:-8])
    assert stream.stats()["programs"] == 1, "a wrong call left a program behind"


def test_arguments_may_come_from_any_iterable(stream: _native.Stream) -> None:
    plan, x = stream.register(axpy()), random(3, 5)
    (out,) = stream.call(plan, (stream.asarray(x) for _ in range(2)))
    np.testing.assert_array_equal(stream.read(out), x * 2 + x)


def test_tensors_of_another_stream_are_refused(stream: _native.Stream) -> None:
    other = _native.Stream(arena_bytes_max=MIB)
    plan, x = stream.register(axpy()), other.asarray(random(3, 5))
    with pytest.raises(GraphError, match="array of another"):
        stream.call(plan, [x, x])
    with pytest.raises(GraphError, match="array of another"):
        stream.read(x)


def test_nothing_runs_for_empty_arrays(stream: _native.Stream) -> None:
    plan = stream.register(axpy())
    x = stream.asarray(np.zeros((0, 4), np.float32))
    (out,) = stream.call(plan, [x, x])
    assert stream.read(out).shape == (0, 4)
    assert stream.launched == 0


def test_captured_tensors_are_the_last_parameters(stream: _native.Stream) -> None:
    x, w = random(5, 40), random(40, 33)
    plan = stream.register(linear(), [stream.asarray(w)])
    for _ in range(3):
        (out,) = stream.call(plan, [stream.asarray(x)])
        np.testing.assert_allclose(stream.read(out), x @ w, rtol=1e-5, atol=1e-5)
    stats = stream.stats()
    assert stats["packs"] == 1
    records = np.frombuffer(stream.trace_records(), RECORD["TraceRecord"].numpy)
    (pack,) = records[records["kind"] == enum_value("TraceKind", "PACK")].tolist()
    assert pack[1] >= pack[0] and pack[4] == stats["memory"]["packed"] >> 10
    assert stats["memory"]["packed"] >= 40 * 64 * 4
    stream.forget(plan)
    stream.asarray(x)
    assert stream.stats()["memory"]["packed"] == 0
    with pytest.raises(GraphError):
        stream.call(plan, [stream.asarray(x)])


def test_a_reshaped_tensor_shares_memory_and_packs(stream: _native.Stream) -> None:
    x, w = random(5, 12), random(24, 8)
    plan, whole = stream.register(linear()), stream.asarray(w)
    view = whole.reshape((12, 16))
    assert view.arena_offset == whole.arena_offset
    (out,) = stream.call(plan, [stream.asarray(x), view])
    np.testing.assert_allclose(stream.read(out), x @ w.reshape(12, 16), rtol=1e-5, atol=1e-5)
    with pytest.raises(ShapeError):
        whole.reshape((5, 5))


def test_temporaries_share_one_growing_workspace(stream: _native.Stream) -> None:
    plan = stream.register(two_steps())
    for shape in [(2, 3), (300, 200), (4, 4)]:
        x = random(*shape)
        (out,) = stream.call(plan, [stream.asarray(x)])
        np.testing.assert_array_equal(stream.read(out), x * 3 + x)
    assert stream.stats()["memory"]["workspace"] >= 300 * 200 * 4


def test_out_of_memory_in_a_call_gives_back_what_it_took() -> None:
    stream = _native.Stream(arena_bytes_max=4 * MIB)
    plan = stream.register(axpy())
    x = stream.asarray(random(400, 1024))
    for _ in range(3):
        kept = stream.call(plan, [x, x])
        with pytest.raises(DeviceOutOfMemoryError):
            stream.call(plan, [x, x])
        del kept
    (out,) = stream.call(plan, [x, x])
    np.testing.assert_array_equal(stream.read(out), random(400, 1024) * 2 + random(400, 1024))


def test_programs_are_evicted_by_bytes_and_made_again() -> None:
    stream = _native.Stream(arena_bytes_max=MIB, program_cache_bytes=20_000)
    plan, x = stream.register(axpy()), random(40, 4)
    for rows in [*range(1, 40), *range(1, 40)]:
        part = stream.asarray(x[:rows])
        (out,) = stream.call(plan, [part, part])
        np.testing.assert_array_equal(stream.read(out), x[:rows] * 2 + x[:rows])
        assert stream.stats()["program_cache_bytes"] <= 20_000
    stats = stream.stats()
    assert stats["evicted"] > 50
    assert stats["encoded"] == 78
    assert len(stream.programs(plan)) == stats["programs"]


def test_what_is_used_last_stays_in_the_cache() -> None:
    stream = _native.Stream(arena_bytes_max=MIB, program_cache_bytes=10_000)
    plan = stream.register(axpy())
    keep = stream.asarray(random(3, 3))
    for rows in range(4, 60):
        other = stream.asarray(random(rows, 3))
        stream.call(plan, [other, other])
        stream.call(plan, [keep, keep])
    assert stream.stats()["encoded"] == 57


def test_a_trap_poisons_only_what_is_computed_from_it(stream: _native.Stream) -> None:
    pick, add = stream.register(pick_rows()), stream.register(axpy())
    x, rows = random(4, 6), random(3, 6, seed=1)
    bx, brows = stream.asarray(x), stream.asarray(rows)
    good = stream.asarray(np.array([0, -3, 2, 1], np.int32))
    (bad,) = stream.call(pick, [bx, brows, stream.asarray(np.array([0, 1, 3, 2], np.int32))])
    (after,) = stream.call(add, [bx, bad])
    (fine,) = stream.call(pick, [bx, brows, good])
    for tensor in (bad, after, bad):
        with pytest.raises(DeviceTrap, match="gather index out of range, got 3, allowed -3 to 2") as caught:
            stream.read(tensor)
        assert caught.value.got == 3
    np.testing.assert_array_equal(stream.read(fine), x + rows[[0, -3, 2, 1]])
    assert stream.stats()["traps"] == 1


def test_arrays_outlive_tensors_and_the_stream(stream: _native.Stream) -> None:
    plan, x = stream.register(axpy()), random(50, 50)
    a = stream.asarray(x)
    (out,) = stream.call(plan, [a, a])
    view, part = stream.read(out), stream.read(out)[3:5]
    del out
    for _ in range(50):
        stream.call(plan, [a, a])
    stream.close()
    with pytest.raises(ClosedError):
        stream.read(a)
    with pytest.raises(ClosedError):
        stream.call(plan, [a, a])
    del stream, a
    gc.collect()
    np.testing.assert_array_equal(view, x * 2 + x)
    np.testing.assert_array_equal(part, (x * 2 + x)[3:5])


def test_a_fork_is_noticed(stream: _native.Stream) -> None:
    tensor = stream.asarray(random(2, 2))
    if (child := os.fork()) == 0:
        code = 1
        try:
            stream.read(tensor)
        except ForkedClientError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert stream.read(tensor).shape == (2, 2)


def test_threads_share_a_stream(stream: _native.Stream) -> None:
    plan, wrong = stream.register(axpy()), []

    def work(seed: int) -> None:
        x = random(200 + seed, 300, seed=seed)  # long enough that the interpreter lock is given up
        a = stream.asarray(x)
        for _ in range(20):
            (out,) = stream.call(plan, [a, a])
            if not np.array_equal(stream.read(out), x * 2 + x):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert stream.done == 80


class Holder:
    """As dvm_rt.array.Array: what the dispatcher reads and makes."""

    __slots__ = ("_tensor", "_node", "_session")

    def __init__(self, tensor: _native.Tensor | None) -> None:
        self._tensor, self._node, self._session = tensor, None, "a session"


def test_the_dispatcher_tells_plans_by_dtype_rank_and_ones(stream: _native.Stream) -> None:
    dispatcher, plan = _native.Dispatcher(stream, Holder), stream.register(axpy())
    x, y = random(3, 5), random(3, 1)
    held, one = Holder(stream.asarray(x)), Holder(stream.asarray(y))
    code = dtypes.float32.code
    assert dispatcher((held, held)) is None
    dispatcher.add([(code, 2, 0), (code, 2, 0)], plan, True)
    out = dispatcher((held, held))
    assert type(out) is Holder and out._node is None and out._session is held._session
    np.testing.assert_array_equal(stream.read(out._tensor), x * 2 + x)
    assert dispatcher((held, one)) is None, "a dimension that is 1 is another signature"
    assert dispatcher((held, Holder(None))) is None
    assert dispatcher((held,)) is None
    assert dispatcher((held, x)) is None, "another type of object"
    dispatcher.add([(code, 2, 0b10), (code, 2, 0b10)], plan, False)
    (out,) = dispatcher((one, one))
    np.testing.assert_array_equal(stream.read(out._tensor), y * 2 + y)
    with pytest.raises(TypeError):
        _native.Dispatcher(stream, type("NoSlots", (), {"_tensor": None, "_node": None, "_session": None}))


def test_arrays_of_the_dispatcher_do_not_leak(stream: _native.Stream) -> None:
    dispatcher, held = _native.Dispatcher(stream, Holder), Holder(stream.asarray(random(3, 5)))
    dispatcher.add([(dtypes.float32.code, 2, 0)] * 2, stream.register(axpy()), False)
    counts = []
    for _ in range(3):
        for _ in range(100):
            (out,) = dispatcher((held, held))
        counts.append((sys.getrefcount(None), sys.getrefcount("a session"), sys.getrefcount(out),
                       stream.stats()["memory"]["tensors"]))
    assert abs(counts[2][0] - counts[1][0]) < 50 and counts[2][1:] == counts[1][1:]


def test_program_bytes_are_what_the_plan_encodes(stream: _native.Stream) -> None:
    plan, x = stream.register(axpy()), stream.asarray(random(3, 5))
    assert stream.program_bytes(plan, [x, x]) == _native.Plan(axpy()).encode([3, 5])


def test_every_launch_is_in_the_trace(stream: _native.Stream) -> None:
    plan, x = stream.register(axpy()), stream.asarray(random(3, 5))
    for _ in range(5):
        stream.call(plan, [x, x])
    records = np.frombuffer(stream.trace_records(), RECORD["TraceRecord"].numpy)
    launches = records[records["kind"] == enum_value("TraceKind", "LAUNCH")]
    assert launches["id"].tolist() == [1, 2, 3, 4, 5]
    assert (launches["begin_ns"] <= launches["end_ns"]).all()
    calls, encoded = (records[records["kind"] == enum_value("TraceKind", kind)] for kind in ("CALL", "ENCODE"))
    assert calls["id"].tolist() == [1, 2, 3, 4, 5] and calls["begin_ns"][0] <= encoded["begin_ns"][0]
    assert (calls["begin_ns"] <= launches["begin_ns"]).all() and (launches["end_ns"] <= calls["end_ns"]).all()
    assert (records["kind"] == enum_value("TraceKind", "ENCODE")).sum() == 1
