"""Stream, rings, device and encoders as processes see them, driven here step by step: every order of events can be made.

The oracle is always the same: the bytes of the outputs are those that NumPy gives, whatever died meanwhile."""

from __future__ import annotations

import mmap
import os
import select
import threading
import time
from collections.abc import Callable
from random import Random

import numpy as np
import pytest

from dvm_rt import _native, trace
from dvm_rt.errors import (
    BackpressureTimeout,
    ClosedError,
    DeviceTimeoutError,
    DeviceTrap,
    InvalidBytecodeError,
    PoisonRequestError,
    PoolUnhealthyError,
    ProtocolError,
    ShapeError,
)
from dvm_rt.isa import layout
from dvm_rt.isa.layout import RECORD, enum_value
from tests.native.streams import Stepped, axpy, linear, pick_rows, random, two_steps

MIB = 1 << 20


def words(stepped: Stepped) -> np.ndarray:
    return np.frombuffer(mmap.mmap(stepped.fds["control"], layout.CONTROL_BYTES), np.uint64)


def test_control_words_lie_where_layout_says() -> None:
    stepped = Stepped(workers=2)
    stream, page = stepped.stream, words(stepped)
    plan, x = stream.register(axpy()), stream.asarray(random(2, 2))
    stream.call(plan, [x, x])
    assert page[layout.CONTROL_WORD["launched"]] == 1
    assert page[layout.CONTROL_WORD["done"]] == 0
    assert page[layout.CONTROL_WORD["want_futex"]] == 2**64 - 1
    assert not stream.arm(1)
    assert page[layout.CONTROL_WORD["want_eventfd"]] == 1
    stepped.run()
    assert page[layout.CONTROL_WORD["done"]] == 1
    assert page[layout.CONTROL_WORD["want_eventfd"]] == 2**64 - 1
    assert page[layout.CONTROL_WORD["busy_ns"]] > 0
    assert page[layout.CONTROL_WORD["client_call_began"]] == 0
    assert page[layout.CONTROL_WORD["client_ns"]] > 0
    stream.set_where(plan, "workers")
    y = stream.asarray(random(3, 2))
    stream.call(plan, [y, y])
    encoder = stepped.encoder(1)
    encoder.add_plan(plan, stream.plan_bytes(plan))
    encoder.encode(stream.take_outbox(8))
    assert page[layout.worker_word(1, "encoded")] == page[layout.worker_word(1, "received")] == 1
    assert page[layout.worker_word(1, "encode_ns")] > 0
    assert page[layout.worker_word(0, "encoded")] == 0
    assert [stream.control(i) for i in range(80)] == page[:80].tolist()


def test_a_launch_goes_through_the_ring() -> None:
    stepped = Stepped()
    stream = stepped.stream
    plan, x = stream.register(two_steps()), random(3, 40)
    (out,) = stream.call(plan, [stream.asarray(x)])
    assert [stepped.device.step() for _ in range(5)] == ["took", "took", "ran", "committed", "idle"]
    np.testing.assert_array_equal(stream.read(out), x * 3 + x)


def test_a_value_that_does_not_come_is_a_timeout() -> None:
    stream = Stepped().stream
    plan, x = stream.register(axpy()), stream.asarray(random(2, 2))
    (out,) = stream.call(plan, [x, x])
    with pytest.raises(DeviceTimeoutError, match="launch 1"):
        stream.read(out, timeout_s=0.01)
    assert not stream.wait(1, 0.01)


def test_rings_wrap_around_with_messages_of_all_sizes() -> None:
    stepped, rng = Stepped(program_cache_bytes=100_000), Random(1)
    stream, plan = stepped.stream, stepped.stream.register(axpy())
    out = []
    for _ in range(3000):  # 2 MB through 256 KiB
        rows, columns = rng.randrange(1, 9), rng.randrange(1, 200)
        x = random(rows, columns)
        a = stream.asarray(x)
        out.append((stream.call(plan, [a, a])[0], x))
        if rng.random() < 0.2:
            stepped.run()
            for tensor, value in out:
                np.testing.assert_array_equal(stream.read(tensor, 0.0), value * 2 + value)
            out.clear()
    assert stream.stats()["evicted"] > 100
    assert stepped.device.programs <= stream.stats()["programs"] + 3


def test_a_ring_without_room_only_delays() -> None:
    stepped = Stepped(ring_bytes=1 << 18)
    stream, plan = stepped.stream, stepped.stream.register(axpy())
    x, out = random(2, 2), []
    for columns in range(2, 900):  # about 500 KB of programs before the device looks for the first time
        a = stream.asarray(random(2, columns))
        out.append((stream.call(plan, [a, a])[0], columns))
    for tensor, columns in out:
        x = random(2, columns)
        np.testing.assert_array_equal(stepped.read(tensor), x * 2 + x)


def chain(stepped: Stepped, seed: int, kill: bool) -> tuple[bytes, int]:
    """A random program of calls on a few live tensors, where the device dies between random steps; its outputs' bytes."""
    stream, choices, deaths = stepped.stream, Random(seed), Random(seed + 1)
    plans = [stream.register(axpy()), stream.register(two_steps()), stream.register(linear())]
    workers = [stepped.encoder(i) for i in range(len(stepped.fds["rings"]) - 1)]
    for encoder in workers:
        for plan in plans:
            encoder.add_plan(plan, stream.plan_bytes(plan))
    shipped: list[bytes] = []
    live = [stream.asarray(random(6, 6, seed=i)) for i in range(3)]

    def disturb() -> None:
        if kill and deaths.random() < 0.04:
            stepped.kill()

    def work() -> None:
        """What processes do meanwhile: workers take instances and lose some with their lives, leases end."""
        if not workers:
            return
        if batch := stream.take_outbox(4):
            shipped.append(batch)
        if shipped and deaths.random() < 0.7:
            batch = shipped.pop(0)
            if kill and deaths.random() < 0.3:  # the worker died with it
                ids = [int(np.frombuffer(batch[:8], np.uint64)[0])]
                shipped.append(stream.instances(ids)) if deaths.random() < 0.5 else stream.encode_here(ids)
            if batch:
                workers[0].encode(batch, 0, 1e6)

    for _ in range(60):
        plan = choices.randrange(3)
        arguments = [choices.choice(live) for _ in range(1 if plan == 1 else 2)]
        live.append(stream.call(plans[plan], arguments)[0])
        if len(live) > 6:
            del live[choices.randrange(3)]
        work()
        for _ in range(choices.randrange(4)):
            disturb()
            stepped.device.step()
        if choices.random() < 0.15:
            live.append(stream.asarray(random(6, 6, seed=choices.randrange(9))))
    for _ in range(400):
        disturb()
        work()
        stepped.run(disturb)
        if stream.done == stream.launched:
            break
        if not shipped and not stream.outbox_count:  # leases over: everything is somebody's again
            stream.encode_here([p for plan in plans for p, _ in stream.programs(plan)])
    return b"".join(stream.read(t, 0.0).tobytes() for t in live), stepped.kills


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside"])
@pytest.mark.parametrize("workers", [0, 2])
def test_outputs_are_the_same_bytes_whenever_the_device_dies(workers: int, beside: bool) -> None:
    kills = 0
    for seed in range(25):
        mode = {"workers": workers, "encode_mode": "workers" if workers else "caller", "beside": beside}
        wanted, _ = chain(Stepped(), seed, kill=False)
        got, died = chain(Stepped(**mode), seed, kill=True)
        assert got == wanted, f"seed {seed}"
        kills += died
    assert kills > 50


def loads(stepped: Stepped) -> list[tuple[int, bool, str]]:
    """(program, whether beside a launch, the verifier's word) of what the device has verified."""
    spans = trace.spans(trace.DEVICE, stepped.stream.trace_records(1))
    codes = layout.ENUMS["VerifyCode"]
    return [(s.id, s.track == trace.BESIDE, codes[s.extra]) for s in spans if s.kind == "LOAD"]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def running(stepped: Stepped, plan: int) -> np.ndarray:
    """The device is inside a launch; its value."""
    x = random(2, 3)
    stepped.stream.call(plan, [stepped.stream.asarray(x)] * 2)
    while stepped.device.step() != "ran":
        pass
    return x * 2 + x


def test_programs_are_verified_beside_a_launch() -> None:
    stepped = Stepped(beside=True)
    stream = stepped.stream
    plan = stream.register(axpy())
    running(stepped, plan)
    wanted = []
    for columns in (4, 5, 6):  # each wakes the thread, or finds it awake
        wanted.append(stream.prefetch(plan, [[2, columns]])[0])
        until(lambda: len(loads(stepped)) == 1 + len(wanted))
    x = random(2, 7)
    (out,) = stream.call(plan, [stream.asarray(x)] * 2)  # a program and its launch
    until(lambda: len(loads(stepped)) == 5)
    assert [beside for _, beside, _ in loads(stepped)] == [False, True, True, True, True]
    assert [program for program, *_ in loads(stepped)][1:4] == wanted
    assert stepped.device.step() == "committed"
    np.testing.assert_array_equal(stepped.read(out), x * 2 + x)
    assert len(loads(stepped)) == 5  # once each
    stepped.run()
    for columns in (4, 5, 6):
        x = random(2, columns)
        np.testing.assert_array_equal(stepped.read(stream.call(plan, [stream.asarray(x)] * 2)[0]), x * 2 + x)
    assert len(loads(stepped)) == 5


def test_the_second_thread_changes_nothing() -> None:
    stepped = Stepped(beside=True)
    stream = stepped.stream
    plan, given_up = stream.register(axpy()), stream.register(axpy())
    x = random(2, 4)
    stepped.read(stream.call(given_up, [stream.asarray(x)] * 2)[0])
    running(stepped, plan)
    held, loaded = stepped.device.programs, len(loads(stepped))
    stream.forget(given_up)
    (out,) = stream.call(plan, [stream.asarray(x)] * 2)
    until(lambda: len(loads(stepped)) == loaded + 1)
    assert stepped.device.programs == held
    np.testing.assert_array_equal(stepped.read(out), x * 2 + x)
    assert stepped.device.programs == held  # one more, one less
    assert len(loads(stepped)) == loaded + 1


def held(**options: object) -> tuple[Stepped, int, _native.Tensor, np.ndarray]:
    """The device is inside a launch, and its second thread in the middle of a program; the plan of both, the result that this
    program gives, and what it is to be."""
    stepped = Stepped(beside=True, gate=True, **options)
    stream, x = stepped.stream, random(2, 9)
    plan = stream.register(axpy())
    running(stepped, plan)
    (out,) = stream.call(plan, [stream.asarray(x)] * 2)
    stepped.gate.holds()
    return stepped, plan, out, x * 2 + x


def test_the_device_goes_on_while_a_program_is_verified_beside_it() -> None:
    stepped = Stepped(beside=True, gate=True)
    stream, x, small = stepped.stream, random(2, 3), random(2, 9)
    plan = stream.register(axpy())
    (first,) = stream.call(plan, [stream.asarray(x)] * 2)
    (second,) = stream.call(plan, [stream.asarray(x)] * 2)
    assert [stepped.device.step() for _ in range(4)] == ["took", "took", "took", "ran"]
    (out,) = stream.call(plan, [stream.asarray(small)] * 2)
    stepped.gate.holds()
    stepped.device.serve(2e3)  # the launch that can run comes before the program that is being verified
    assert stream.done == 3
    assert [beside for _, beside, _ in loads(stepped)] == [False, False]
    stepped.gate.open()
    until(lambda: len(loads(stepped)) == 3)
    for tensor, value in ((first, x), (second, x), (out, small)):
        np.testing.assert_array_equal(stepped.read(tensor), value * 2 + value)
    assert stepped.device.programs == 2


def test_a_program_that_is_needed_while_it_is_verified_beside_is_verified_at_once() -> None:
    stepped, plan, out, wanted = held()
    np.testing.assert_array_equal(stepped.read(out), wanted)
    assert [beside for _, beside, _ in loads(stepped)] == [False, False]
    assert stepped.device.programs == 2
    stepped.gate.open()
    until(lambda: len(loads(stepped)) == 3)  # too late: nobody wants it
    running(stepped, plan)
    x = random(2, 11)
    (out,) = stepped.stream.call(plan, [stepped.stream.asarray(x)] * 2)
    stepped.gate.holds()
    stepped.gate.open()
    until(lambda: len(loads(stepped)) == 4)
    np.testing.assert_array_equal(stepped.read(out), x * 2 + x)
    assert [beside for _, beside, _ in loads(stepped)] == [False, False, True, True]
    assert stepped.device.programs == 3


def test_a_program_that_is_dropped_while_it_is_verified_beside_stays_dropped() -> None:
    """By the client, which had made it itself, before the device has come to what the worker sent."""
    stepped, encoder, plan = with_worker(beside=True, gate=True)
    stream, caller, x = stepped.stream, stepped.stream.register(axpy()), random(2, 9)
    stream.set_where(caller, "caller")
    (out,) = stream.call(plan, [stream.asarray(x)] * 2)
    late = stream.take_outbox(8)
    stream.encode_here([p for p, _ in stream.programs(plan)])
    np.testing.assert_array_equal(stepped.read(out), x * 2 + x)
    running(stepped, caller)
    assert stepped.device.programs == len(loads(stepped)) == 2
    encoder.encode(late)
    stepped.gate.holds()
    stream.forget(plan)
    assert stepped.device.step() == "committed"
    assert stepped.device.step() == "took"  # that it is dropped
    stepped.gate.open()
    until(lambda: len(loads(stepped)) == 3)
    stepped.run()
    assert stepped.device.programs == 1
    assert not stream.retire()


def test_a_program_that_is_given_up_while_it_is_verified_beside() -> None:
    """All of it from the client: the program, then that it is dropped."""
    stepped = Stepped(beside=True, gate=True)
    stream = stepped.stream
    plan, given_up = stream.register(axpy()), stream.register(axpy())
    running(stepped, plan)
    stream.prefetch(given_up, [[2, 9]])
    stepped.gate.holds()
    stream.forget(given_up)
    stepped.run()
    assert stepped.device.programs == 1
    stepped.gate.open()
    until(lambda: len(loads(stepped)) == 3)
    stepped.run()
    assert stepped.device.programs == 1


@pytest.mark.parametrize("in_time", [False, True])
def test_what_is_refused_beside_a_launch_is_encoded_again(in_time: bool) -> None:
    """In time: the thread has refused it when the device comes to it; else the device refuses it meanwhile. One refusal."""
    stepped, _, plan = with_worker(beside=True, gate=True)
    stream, x, caller = stepped.stream, random(2, 9), stepped.stream.register(axpy())
    stream.set_where(caller, "caller")
    running(stepped, caller)
    (out,) = stream.call(plan, [stream.asarray(x)] * 2)
    (number,) = (p for p, _ in stream.programs(plan))
    stream.take_outbox(8)
    assert stream.deliver(number, bytes(200))
    stepped.gate.holds()
    if in_time:
        stepped.gate.open()
        until(lambda: any(beside for _, beside, _ in loads(stepped)))
    assert not stream.retire()  # nobody hears of it before the device has come to it
    while not (events := stream.retire()):
        assert stepped.device.step() != "idle"
    assert [(event["kind"], event["program"]) for event in events] == [("PROGRAM_REFUSED", number)]
    stepped.run()
    stepped.gate.open()
    np.testing.assert_array_equal(stepped.read(out), x * 2 + x)
    until(lambda: sum(beside for _, beside, _ in loads(stepped)) >= 1)
    stepped.run()
    assert stream.stats()["refused"] == stepped.device.refused == 1


def busy_and_ahead(programs: int) -> tuple[Stepped, int]:
    """A device that runs what takes long while so many other programs wait in its ring, and their plan."""
    stepped = Stepped(beside=True)
    plan = stepped.stream.register(axpy())
    running(stepped, plan)
    stepped.stream.prefetch(plan, [[2, columns] for columns in range(4, 4 + programs)])
    return stepped, plan


def test_more_programs_than_are_verified_ahead() -> None:
    stepped, _ = busy_and_ahead(200)
    until(lambda: len(loads(stepped)) == 1 + 64)  # as many as may wait to be taken
    stepped.run()
    assert stepped.device.programs == 201
    beside = [beside for _, beside, _ in loads(stepped)]
    assert beside == [False] + [True] * 64 + [False] * 136


def test_a_device_may_end_in_the_middle_of_a_program() -> None:
    stepped, plan, _, _ = held()
    stepped.gate.open_soon()
    stepped.kill()
    x = random(2, 5)
    np.testing.assert_array_equal(stepped.read(stepped.stream.call(plan, [stepped.stream.asarray(x)] * 2)[0]), x * 2 + x)


def test_a_device_may_end_while_its_second_thread_works() -> None:
    for _ in range(20):
        stepped, plan = busy_and_ahead(26)
        stepped.kill()
        x = random(2, 5)
        np.testing.assert_array_equal(stepped.read(stepped.stream.call(plan, [stepped.stream.asarray(x)] * 2)[0]), x * 2 + x)


def test_the_host_does_not_write_where_uncommitted_launches_read() -> None:
    stepped = Stepped(arena_bytes_max=MIB)
    stream, plan = stepped.stream, stepped.stream.register(axpy())
    x = random(64, 1024)  # a quarter of the arena
    a = stream.asarray(x)
    (out,) = stream.call(plan, [a, a])
    del a
    b = stream.asarray(np.zeros((64, 1024), np.float32))  # the last quarter but one
    c = stream.asarray(np.zeros((60, 1024), np.float32))
    threading.Timer(0.05, stepped.run).start()
    d = stream.asarray(np.ones((64, 1024), np.float32))  # only the memory of `a` is left: waits for the launch
    assert stream.done == 1
    np.testing.assert_array_equal(stream.read(out), x * 2 + x)
    assert stream.read(d).all() and not stream.read(b).any() and not stream.read(c).any()


def test_outputs_take_memory_that_the_stream_frees_at_once() -> None:
    stepped = Stepped(arena_bytes_max=4 * MIB)
    stream, plan = stepped.stream, stepped.stream.register(axpy())
    x = random(256, 1024)
    (y,) = stream.call(plan, [stream.asarray(x), stream.asarray(x)])
    wanted = x * 2 + x
    for _ in range(40):  # 40 MB of outputs, none of them run yet
        (y,) = stream.call(plan, [y, y])
        wanted = wanted * 2 + wanted
    assert stream.done == 0
    np.testing.assert_array_equal(stepped.read(y), wanted)


def test_poison_reaches_what_is_computed_from_it_and_nothing_else() -> None:
    stepped = Stepped()
    stream = stepped.stream
    pick, add = stream.register(pick_rows()), stream.register(axpy())
    x, rows = random(3, 6), random(3, 6, seed=1)
    bx, brows = stream.asarray(x), stream.asarray(rows)

    def picked(*index: int) -> _native.Tensor:
        return stream.call(pick, [bx, brows, stream.asarray(np.array(index, np.int32))])[0]

    bad, fine = picked(0, 5, 1), picked(2, 1, 0)
    (after,) = stream.call(add, [fine, bad])
    (later,) = stream.call(add, [after, after])
    (apart,) = stream.call(add, [fine, fine])
    stepped.run()
    (latest,) = stream.call(add, [bx, later])  # launched when its input is known to have failed
    for tensor in (latest, later, after, bad):
        with pytest.raises(DeviceTrap, match="launch 1 .* got 5, allowed -3 to 2"):
            stepped.read(tensor)
    good = x + rows[[2, 1, 0]]
    np.testing.assert_array_equal(stepped.read(apart), good * 2 + good)
    assert stream.stats()["traps"] == 1


def test_a_trap_survives_the_device_that_saw_it() -> None:
    for steps in range(1, 9):
        stepped = Stepped()
        stream = stepped.stream
        pick = stream.register(pick_rows())
        x = stream.asarray(random(2, 6))
        (bad,) = stream.call(pick, [x, x, stream.asarray(np.array([0, 9], np.int32))])
        for _ in range(steps):
            stepped.device.step()
        stepped.kill()
        with pytest.raises(DeviceTrap):
            stepped.read(bad)


def with_worker(**options: bool) -> tuple[Stepped, _native.Encoder, int]:
    stepped = Stepped(workers=1, encode_mode="workers", **options)
    plan = stepped.stream.register(axpy())
    encoder = stepped.encoder()
    encoder.add_plan(plan, stepped.stream.plan_bytes(plan))
    return stepped, encoder, plan


def test_a_launch_waits_for_the_program_that_a_worker_owes() -> None:
    stepped, encoder, plan = with_worker()
    stream, x = stepped.stream, random(3, 7)
    a = stream.asarray(x)
    (out,) = stream.call(plan, [a, a])
    stepped.run()
    assert stream.done == 0
    (number,) = (p for p, _ in stream.programs(plan))
    assert stream.stats()["waiting_program"] == number
    assert stream.program_state(number) == "encoding"
    batch = stream.take_outbox(64)
    assert stream.outbox_count == 0
    assert batch == np.array([number], np.uint64).tobytes() + np.array([plan, 2],
        np.uint32).tobytes() + np.array([3, 7]).tobytes()
    assert stream.instances([number, 999]) == batch
    assert encoder.encode(batch) == len(batch)
    np.testing.assert_array_equal(stepped.read(out), x * 2 + x)
    assert stream.program_state(number) == "ready"
    stats = stream.stats()
    assert stats["exposed_count"] == 1
    assert stats["exposed_ns"] > 0
    assert stats["encoded"] == 0, "the caller encoded what the worker had"


def test_all_ways_give_the_same_program() -> None:
    stepped, encoder, plan = with_worker()
    stream, x = stepped.stream, stepped.stream.asarray(random(3, 7))
    stream.call(plan, [x, x])
    _, [(number, program)] = encoder.encode_programs(stream.take_outbox(8))
    assert program == stream.program_bytes(plan, [x, x]) == _native.Plan(axpy()).encode([3, 7])
    assert stream.deliver(number, program)
    assert stepped.read(stream.call(plan, [x, x])[0]).shape == (3, 7)
    assert not stream.deliver(number, program), "wanted only once"


@pytest.mark.parametrize("garbage", [b"", b"no program", bytes(200)])
def test_garbage_from_a_worker_is_encoded_again_here(garbage: bytes) -> None:
    stepped, _, plan = with_worker()
    stream, x = stepped.stream, random(3, 7)
    a = stream.asarray(x)
    (out,) = stream.call(plan, [a, a])
    (number,) = (p for p, _ in stream.programs(plan))
    stream.take_outbox(8)
    assert stream.deliver(number, garbage)
    while stepped.device.step() != "idle":
        pass
    assert stream.done == 0
    (event,) = stream.retire()
    assert (event["kind"], event["program"]) == ("PROGRAM_REFUSED", number)
    np.testing.assert_array_equal(stepped.read(out), x * 2 + x)
    assert stream.stats()["refused"] == 1


def test_a_flipped_bit_on_the_way_is_an_error_of_that_value_only() -> None:
    """The client's own program arrives damaged: nobody can make a better one, so the reader is told."""
    stepped = Stepped()
    stream, plan, x = stepped.stream, stepped.stream.register(axpy()), random(3, 7)
    a = stream.asarray(x)
    (out,) = stream.call(plan, [a, a])
    ring = mmap.mmap(stepped.fds["rings"][0], 1 << 18)
    ring[128 + 8 + 16 + 100] ^= 1
    with pytest.raises(InvalidBytecodeError) as caught:
        stepped.read(out)
    assert caught.value.code == "CHECKSUM"
    for rows in (2, 3):  # another shape, and the same again
        b = stream.asarray(x[:rows])
        np.testing.assert_array_equal(stepped.read(stream.call(plan, [b, b])[0]), x[:rows] * 2 + x[:rows])


def test_a_program_that_does_not_fit_its_launch_is_a_trap() -> None:
    """Safe, but of another plan: extents come from the launch, so it cannot touch anything else."""
    stepped, encoder, plan = with_worker()
    encoder.add_plan(plan, two_steps())
    stream, x = stepped.stream, stepped.stream.asarray(random(3, 7))
    (out,) = stream.call(plan, [x, x])
    encoder.encode(stream.take_outbox(8))  # it takes one argument less
    with pytest.raises(DeviceTrap, match="BINDING"):
        stepped.read(out)


def test_a_worker_refuses_what_is_no_instance() -> None:
    stepped, encoder, plan = with_worker()
    stream, x = stepped.stream, stepped.stream.asarray(random(3, 7))
    stream.call(plan, [x, x])
    batch = stream.take_outbox(8)
    for bad in (batch[:10], batch[:-4], batch[:8] + b"\xff\0\0\0" + batch[12:], batch[:12] + b"\3\0\0\0" + batch[16:]):
        with pytest.raises(ProtocolError):
            encoder.encode(bad)


def test_a_worker_counts_what_it_began_and_what_it_finished() -> None:
    """Also while its ring is full and it has to begin an instance again, and over its lives."""
    stepped, encoder, plan = with_worker()
    stream = stepped.stream
    for columns in range(1, 1000):
        x = stream.asarray(random(1, columns))
        stream.call(plan, [x, x])
        if columns % 500 == 0:
            stepped.run()
    batch, at = stream.take_outbox(2000), 0
    while (end := encoder.encode(batch, at, 1e6)) != at:
        at = end
    assert at < len(batch), "the ring was not full"
    for _ in range(3):
        assert encoder.encode(batch, at) == at

    def counts() -> tuple[int, int]:
        (worker,) = stream.stats()["workers"]
        return worker["received"], worker["encoded"]

    received, encoded = counts()
    assert received == encoded + 1 == encoder.encoded + 1
    successor = stepped.encoder()
    successor.add_plan(plan, stream.plan_bytes(plan))
    while at < len(batch):
        stepped.run()
        at = successor.encode(batch, at, 1e6)
    assert counts() == (received + successor.encoded, encoded + successor.encoded)


def test_late_programs_of_a_dropped_number_do_not_stay() -> None:
    stepped = Stepped(workers=1, encode_mode="workers", program_cache_bytes=3000)
    stream = stepped.stream
    plan, encoder = stream.register(axpy()), stepped.encoder()
    encoder.add_plan(plan, stream.plan_bytes(plan))
    late = []
    for rows in range(1, 30):
        x = stream.asarray(random(rows, 3))
        stream.call(plan, [x, x])
        late.append(stream.take_outbox(8))
        stream.encode_here([p for p, _ in stream.programs(plan)])  # the lease was over: done here as well
        stepped.run()
    for batch in late:
        encoder.encode(batch)
    stepped.run()
    assert stepped.device.programs <= stream.stats()["programs"]


def test_hostile_rings_do_not_disturb_the_client() -> None:
    stepped, encoder, plan = with_worker()
    stream, x = stepped.stream, random(3, 7)
    stream.set_where(plan, "caller")
    ring = mmap.mmap(stepped.fds["rings"][1], 1 << 18)
    for read, written, first in ((0, 8, 2**64 - 1), (0, 1 << 40, 5), (0, 64, 1 << 60), (0, 7, 0), (8, 0, 0)):
        ring[:8], ring[64:72], ring[128:136] = (int(v).to_bytes(8, "little") for v in (read, written, first))
        stepped.kill()
        a = stream.asarray(x)
        np.testing.assert_array_equal(stepped.read(stream.call(plan, [a, a])[0]), x * 2 + x)


def test_credits_bound_what_is_in_flight() -> None:
    stepped = Stepped(launches_max=16, credit_timeout_s=0.02)
    stream, plan = stepped.stream, stepped.stream.register(axpy())
    x = stream.asarray(random(2, 2))
    for _ in range(16):
        stream.call(plan, [x, x])
    with pytest.raises(BackpressureTimeout, match="16 launches out"):
        stream.call(plan, [x, x])
    for _ in range(40):  # until one is committed
        if stepped.device.step() == "committed":
            break
    stream.call(plan, [x, x])
    stepped.run()
    assert stream.done == stream.launched == 17
    with pytest.raises(ShapeError):
        _native.Stream(inline=False, launches_max=1 << 20)


def test_the_event_loop_is_told_once() -> None:
    stepped = Stepped()
    stream, plan = stepped.stream, stepped.stream.register(axpy())
    x = stream.asarray(random(2, 2))
    stream.call(plan, [x, x])
    stream.call(plan, [x, x])
    assert not stream.arm(2)
    assert not select.select([stepped.fds["eventfd"]], [], [], 0)[0]
    stepped.run()
    assert os.eventfd_read(stepped.fds["eventfd"]) == 1
    assert stream.arm(2)


def test_a_program_that_is_given_up_fails_what_launches_it() -> None:
    stepped, _, plan = with_worker()
    stream, x = stepped.stream, stepped.stream.asarray(random(3, 7))
    (out,) = stream.call(plan, [x, x])
    (after,) = stream.call(plan, [out, x])
    y = stream.asarray(random(2, 2))
    (fine,) = stream.call(plan, [y, y])
    number, other = (p for p, _ in stream.programs(plan))
    stepped.run()
    stream.fail_program(number, "PoisonRequestError", "scheduler: it killed every worker")
    stream.encode_here([other])
    for tensor in (out, after):
        with pytest.raises(PoisonRequestError, match="killed every worker"):
            stepped.read(tensor)
    np.testing.assert_array_equal(stepped.read(fine), random(2, 2) * 2 + random(2, 2))


def test_a_waiter_sleeps_and_is_woken() -> None:
    stepped = Stepped()
    stream, plan, x = stepped.stream, stepped.stream.register(axpy()), random(2, 2)
    a = stream.asarray(x)
    thread = threading.Thread(target=lambda: stepped.device.serve(300_000))
    thread.start()
    for _ in range(50):
        (out,) = stream.call(plan, [a, a])
        np.testing.assert_array_equal(stream.read(out), x * 2 + x)
    thread.join()
    assert stream.done == 50


def test_failure_and_close_reach_whoever_waits() -> None:
    for end, error in ((lambda s: s.fail("PoolUnhealthyError", "runtime: gone"), PoolUnhealthyError),
                       (lambda s: s.close(), ClosedError)):
        stream = Stepped().stream
        plan, x = stream.register(axpy()), stream.asarray(random(2, 2))
        (out,) = stream.call(plan, [x, x])
        threading.Timer(0.05, end, [stream]).start()
        with pytest.raises(error):
            stream.read(out, timeout_s=20)
        with pytest.raises(error):
            stream.call(plan, [x, x])


def test_programs_can_be_made_before_a_launch_wants_them() -> None:
    stepped = Stepped()
    stream, plan, x = stepped.stream, stepped.stream.register(axpy()), random(3, 7)
    number = stream.prefetch(plan, [[3, 7]])[0]
    stepped.run()
    assert stepped.device.programs == 1
    a = stream.asarray(x)
    np.testing.assert_array_equal(stepped.read(stream.call(plan, [a, a])[0]), x * 2 + x)
    assert [p for p, _ in stream.programs(plan)] == [number]
    assert stream.stats()["exposed_count"] == 0


def test_a_launch_that_can_run_goes_before_a_program_that_was_sent_ahead() -> None:
    stepped = Stepped()
    stream, plan = stepped.stream, stepped.stream.register(axpy())
    x = stream.asarray(random(2, 2))
    stream.call(plan, [x, x])
    stepped.run()
    stream.call(plan, [x, x])
    number = stream.prefetch(plan, [[3, 7]])[0]
    stepped.device.serve(20_000.0)
    assert stream.done == 2 and stepped.device.programs == 2
    records = np.frombuffer(stream.trace_records(1), RECORD["TraceRecord"].numpy)
    begins = {(r["kind"], r["id"]): r["begin_ns"] for r in records}
    assert begins[enum_value("TraceKind", "LAUNCH"), 2] < begins[enum_value("TraceKind", "LOAD"), number]


def test_programs_of_two_plans_between_each_other_come_and_go() -> None:
    stepped = Stepped()
    stream, kept, given_up = stepped.stream, stepped.stream.register(axpy()), stepped.stream.register(axpy())
    chance = Random(7)
    wanted: dict[tuple[int, int], int] = {}
    for rows in range(1, 41):  # numbers of the two lie between each other, in runs of all lengths
        for columns in range(1, 26):
            plan = kept if chance.random() < 0.4 else given_up
            (number,) = stream.prefetch(plan, [[rows, columns]])
            if plan == kept:
                wanted[rows, columns] = number
        stepped.run()
    stream.forget(given_up)
    stepped.run()
    assert stepped.device.programs == len(wanted)
    assert sorted(stream.programs(kept)) == sorted((number, list(shape)) for shape, number in wanted.items())
    encoded = stream.stats()["encoded"]
    for shape in chance.sample(sorted(wanted), 60):
        x = random(*shape)
        a = stream.asarray(x)
        np.testing.assert_array_equal(stepped.read(stream.call(kept, [a, a])[0]), x * 2 + x)
    assert stream.stats()["encoded"] == encoded and stepped.device.refused == 0


def test_programs_that_follow_each_other_are_a_range() -> None:
    stream = _native.Stream(inline=False, workers=1, encode_mode="workers", arena_bytes_max=1 << 26, ring_bytes=1 << 18)
    plan = stream.register(axpy())
    first = [stream.prefetch(plan, [[1, n]])[0] for n in range(1, 4)]
    assert stream.take_outbox_batch(2)[1:] == (range(first[0], first[0] + 2), (plan, plan))
    stream.take_outbox_batch(1)
    second = [stream.prefetch(plan, [[2, n]])[0] for n in (1, 2)]
    stream.set_where(plan, "caller")
    stream.prefetch(plan, [[3, 1]])
    stream.set_where(plan, "workers")
    third = stream.prefetch(plan, [[4, 1]])[0]
    assert stream.take_outbox_batch(8)[1] == (*second, third)


def test_idle_time_is_split_and_traced() -> None:
    stepped = Stepped()
    stream, plan = stepped.stream, stepped.stream.register(axpy())
    x = stream.asarray(random(2, 2))
    for _ in range(3):
        stream.call(plan, [x, x])
        stepped.run()
    stats = stream.stats()
    assert stats["starved_client_ns"] > 0
    assert stats["starved_user_ns"] > 0
    records = np.frombuffer(stream.trace_records(1), RECORD["TraceRecord"].numpy)
    for kind, count in (("LAUNCH", 3), ("LOAD", 1), ("STARVED", 2), ("EXPOSED", 0)):
        assert (records["kind"] == enum_value("TraceKind", kind)).sum() == count
    starved = records[records["kind"] == enum_value("TraceKind", "STARVED")]
    assert stats["starved_client_ns"] + stats["starved_user_ns"] == (starved["end_ns"] - starved["begin_ns"]).sum()
