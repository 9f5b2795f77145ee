"""Runtimes with real processes: the same bytes whoever encodes and whoever is killed meanwhile, and nothing left over."""

import asyncio
import gc
import hashlib
import os
import random as randoms
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dvm_rt import runtime
from dvm_rt.array.array import asarray
from dvm_rt.errors import (
    AuthError,
    ClosedError,
    DvmError,
    ForkedClientError,
    GraphError,
    PoisonRequestError,
    PoolUnhealthyError,
)
from dvm_rt.runtime import Runtime
from dvm_rt.scheduler.shell import Shell
from dvm_rt.zygote import Zygote
from tests.native.streams import axpy, pick_rows, random, two_steps

ROOT = Path(__file__).parent.parent
PLANS = (axpy(0.5), two_steps())
PATIENT_S = 10.0  # a lease for tests in which nobody may be blamed, however busy the machine is


def work(rt: Runtime, launches: int, pause: float = 0.0) -> str:
    """A chain of launches with many new shapes between; the digest of everything that came out."""
    stream = rt.stream
    plans = [stream.register(p) for p in PLANS]
    chain, ones, kept = stream.asarray(random(7, 33)), stream.asarray(random(7, 33, seed=1)), []
    for i in range(launches):
        (chain,) = stream.call(plans[0], [chain, ones])
        shape = (1 + i % 61, 1 + i % 89)
        x = stream.asarray(random(*shape, seed=i % 3))
        kept.append(stream.call(plans[1], [x])[0] if i % 2 else stream.call(plans[0], [x, x])[0])
        if i % 50 == 49:
            stream.item(stream.call(plans[0], [stream.asarray(random(1, 1)), stream.asarray(random(1, 1))])[0])
            time.sleep(pause)
    digest = hashlib.blake2b(stream.read(chain).tobytes(), digest_size=16)
    for tensor in kept:
        digest.update(stream.read(tensor).tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def expected() -> str:
    with Runtime(inline=True) as rt:
        return work(rt, 600)


HUNG_S = 120.0  # what takes so long does not come, however busy the machine is


def wait_until(true, what: str, limit_s: float = HUNG_S) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, f"not within {limit_s} s: {what}"
        time.sleep(0.005)


# ---- who encodes ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("encode", "encoders"), [("caller", 1), ("auto", 1), ("workers", 1), ("workers", 2), ("workers", 0)])
def test_the_same_bytes_whoever_encodes(expected, encode, encoders):
    with Runtime(encoders=encoders, encode=encode, lease_s=PATIENT_S) as rt:
        assert work(rt, 600) == expected
        stats = rt.stats()
    by_workers = sum(stats["encodes"]["workers"])
    assert (by_workers > 100) == (encode == "workers" and encoders > 0)
    assert stats["deaths"] == 0 and stats["refused"] == 0
    assert stats["done"] == stats["launched"] == stats["launches"]


def test_every_worker_gets_work():
    with Runtime(encoders=2, encode="workers", encode_work_ns=200_000) as rt:
        work(rt, 200)
        assert all(n > 10 for n in rt.stats()["encodes"]["workers"])


def test_plans_that_are_given_up_are_given_up_by_everybody(monkeypatch):
    monkeypatch.setenv("DVM_RT_PLANS_RECHECK", "8")
    with Runtime(encoders=1, encode="workers", lease_s=PATIENT_S) as rt:
        x = rt.stream.asarray(random(3, 3))
        for factor in range(40):
            plan = rt.stream.register(axpy(float(factor)))
            assert rt.stream.read(rt.stream.call(plan, [x, x])[0])[0, 0] == random(3, 3)[0,
                0] * np.float32(factor) + random(3, 3)[0, 0]
            rt.stream.forget(plan)
        wait_until(lambda: len(rt._shell.plans) < 16, "plans are forgotten")
        assert len(rt._shell.state.book.workers[0].plans) < 16
        assert rt.stats()["deaths"] == 0


def test_stats_say_where_the_time_went():
    with Runtime(encoders=1, encode="workers", encode_work_ns=1_000_000) as rt:
        work(rt, 60)
        stats = rt.stats()
    assert stats["busy_ns"] > 0 and stats["exposed_ns"] > 10_000_000 and stats["exposed_count"] > 0
    assert {"starved_client_ns", "starved_user_ns", "memory", "plans", "programs", "recoveries"} <= stats.keys()


# ---- kills ------------------------------------------------------------------------------------------------------------
def killed_meanwhile(rt: Runtime, victims: list[tuple[str, int]], signals: list[int], work_done: threading.Event) -> None:
    """Kills one process after another, each as soon as the last death is dealt with."""
    rng = randoms.Random(5)
    for number in signals:
        before = rt.stats()["recoveries"]
        role, index = rng.choice(victims)
        rt.kill(role, number, index)
        while rt.stats()["recoveries"] == before and not work_done.is_set():
            time.sleep(0.002)
        if work_done.is_set():
            return
        time.sleep(rng.uniform(0.005, 0.02))


@pytest.mark.parametrize("encode", ["workers", "caller"])
@pytest.mark.parametrize("signals", [[signal.SIGKILL] * 15, [signal.SIGSTOP] * 3], ids=["kills", "hangs"])
def test_kills_and_hangs_cost_time_only(expected, encode, signals):
    victims = [("device", 0), ("encoder", 0), ("encoder", 1), ("device", 0)]
    victims += [("zygote", 0)] if signals[0] == signal.SIGKILL else []
    if signals[0] == signal.SIGSTOP:  # a stopped encoder is missed only where it has something to do
        victims = victims if encode == "workers" else [("device", 0)]
    done, over = [], threading.Event()
    with Runtime(encoders=2, encode=encode) as rt:
        chaos = threading.Thread(target=killed_meanwhile, args=(rt, victims, signals, over))
        chaos.start()
        while chaos.is_alive() or not done:
            done.append(work(rt, 600, 0.002))
        over.set()
        chaos.join()
        stats = rt.stats()
    assert set(done) == {expected}
    assert stats["recoveries"] >= len(signals) and stats["protocol_errors"] == 0


def test_a_waiting_caller_survives_the_death_of_its_device():
    with Runtime(encoders=1) as rt:
        plan = rt.stream.register(axpy())
        x = rt.stream.asarray(random(64, 64))
        for _ in range(3):
            rt.kill("device", signal.SIGSTOP)
            (y,) = rt.stream.call(plan, [x, x])
            threading.Timer(0.05, rt.kill, ("device",)).start()
            assert np.array_equal(rt.stream.read(y), random(64, 64) * np.float32(2) + random(64, 64))


# ---- the six bugs that only kills found -------------------------------------------------------------------------------
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_caller_who_works_on_the_devices_cpu_leaves_it_and_may_come_back():
    """A device that wakes up on the CPU of its caller keeps it from going on, and nothing moves either of them."""
    import ctypes

    def work_for(seconds: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    cpu_now, allowed = ctypes.CDLL(None).sched_getcpu, os.sched_getaffinity(0)
    with Runtime(encoders=1) as rt:
        x, plan = rt.stream.asarray(random(4, 4)), rt.stream.register(axpy())
        device = max(os.sched_getaffinity(rt.pids()["device"]))
        left = 0
        try:
            for _ in range(20):
                rt.stream.wait(rt.stream.call(plan, (x, x))[0].seq)
                os.sched_setaffinity(0, {device})
                os.sched_setaffinity(0, allowed)
                rt.stream.wait(rt.stream.call(plan, (x, x))[0].seq)
                work_for(0.001)
                rt.stream.call(plan, (x, x))
                left += cpu_now() != device
                assert os.sched_getaffinity(0) == allowed
            os.sched_setaffinity(0, {device})
            rt.stream.wait(rt.stream.call(plan, (x, x))[0].seq)  # it has to share it
            assert os.sched_getaffinity(0) == {device}
        finally:
            os.sched_setaffinity(0, allowed)
    assert left > 10


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_caller_who_waits_for_little_leaves_the_devices_cpu():
    """There both would sleep and wake up in turns, for every launch."""
    import ctypes

    cpu_now, allowed = ctypes.CDLL(None).sched_getcpu, os.sched_getaffinity(0)
    with Runtime(encoders=1) as rt:
        x, plan = rt.stream.asarray(random(4, 4)), rt.stream.register(axpy())
        device = max(os.sched_getaffinity(rt.pids()["device"]))

        def leaves() -> bool:
            for _ in range(200):
                rt.stream.wait(rt.stream.call(plan, (x, x))[0].seq)
            return cpu_now() != device

        try:
            os.sched_setaffinity(0, {device})
            assert not leaves()
            os.sched_setaffinity(0, allowed)
            wait_until(leaves, "it stays")
            assert os.sched_getaffinity(0) == allowed
        finally:
            os.sched_setaffinity(0, allowed)


def test_who_copies_a_tensor_in_wakes_the_device_that_will_want_it():
    """It takes as long to wake up as to copy some megabytes. On the caller's own CPU it would only be in its way."""
    import ctypes

    from dvm_rt.isa import layout

    asleep, allowed, cpu_now = layout.CONTROL_WORD["asleep"], os.sched_getaffinity(0), ctypes.CDLL(None).sched_getcpu
    with Runtime(encoders=1) as rt:
        pid, word = rt.pids()["device"], lambda: rt.stream.control(asleep)
        device = max(os.sched_getaffinity(pid))

        def sleeps_and_stays_there() -> bool:
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T", "it does not stop")
            if not word():
                os.kill(pid, signal.SIGCONT)
            return bool(word())

        try:
            for cpus in ({device}, allowed - {device} or allowed):
                wait_until(sleeps_and_stays_there, "the device does not sleep")
                os.sched_setaffinity(0, cpus)
                rt.stream.asarray(random(4, 4))
                assert word() == (device == cpu_now())
                os.kill(pid, signal.SIGCONT)
        finally:
            os.sched_setaffinity(0, allowed)
            os.kill(pid, signal.SIGCONT)


@pytest.mark.skipif(tuple(map(int, os.uname().release.split(".")[:2])) < (6, 12), reason="needs slices that can be asked for")
def test_children_take_short_turns():
    """Else who is woken on their CPU, the caller for example, waits while they import."""
    import ctypes
    import struct

    with Runtime(encoders=1) as rt:
        for pid in rt.pids().values():
            attributes = ctypes.create_string_buffer(48)
            assert ctypes.CDLL(None).syscall(315, pid, attributes, 48, 0) == 0  # sched_getattr
            assert struct.unpack("IIQiIQQQ", attributes.raw)[5] == 100_000  # ns


def test_lost_wake_up():
    """A device that dies between its commit and its wake-up: the supervisor rings all bells. The wait outlives many bells."""
    with Runtime(encoders=1) as rt:
        rt.kill("device", signal.SIGSTOP)
        plan = rt.stream.register(axpy())
        x = rt.stream.asarray(random(3, 3))
        results = []
        calls = [rt.stream.call(plan, [x, x])[0] for _ in range(4)]
        waiter = threading.Thread(target=lambda: results.append(rt.stream.wait(calls[-1].seq, 20.0)))
        waiter.start()
        for _ in range(3):
            before = rt.stats()["recoveries"]
            rt.kill("device")
            wait_until(lambda b=before: rt.stats()["recoveries"] > b, "the device comes back")
        waiter.join()
        assert results == [True]


def test_unleased_refill():
    """Device first, then at once the encoder that would refill the next one."""
    with Runtime(encoders=1, encode="workers", encode_work_ns=300_000) as rt:
        plan = rt.stream.register(axpy())
        kept = []
        for round_ in range(4):
            shapes = [(1 + i, 2 + round_) for i in range(40)]
            inputs = [rt.stream.asarray(random(*s)) for s in shapes]
            kept += [(s, rt.stream.call(plan, [x, x])[0]) for s, x in zip(shapes, inputs, strict=True)]
            rt.stream.wait(rt.stream.launched - 20)
            rt.kill("device")
            time.sleep(0.005)
            rt.kill("encoder")
        for shape, tensor in kept:
            assert np.array_equal(rt.stream.read(tensor), random(*shape) * np.float32(2) + random(*shape))


def test_stale_self_report():
    """A stopped device last wrote that it misses a program. The encoder, which has encoded it since, is not to blame."""
    with Runtime(encoders=1, encode="workers", encode_work_ns=150_000_000, lease_s=0.25) as rt:
        plan = rt.stream.register(axpy())
        x = rt.stream.asarray(random(5, 5))
        encoder = rt.pids()["encoder 0"]
        (y,) = rt.stream.call(plan, [x, x])
        waiter = threading.Thread(target=rt.stream.wait, args=(y.seq, 20.0))
        waiter.start()
        wait_until(lambda: rt.stats()["waiting_program"], "the device misses the program")
        rt.kill("device", signal.SIGSTOP)
        waiter.join()
        assert np.array_equal(rt.stream.read(y), random(5, 5) * np.float32(3))
        assert rt.pids()["encoder 0"] == encoder


@pytest.mark.parametrize("role", ["device", "encoder"])
def test_crash_loop(role, monkeypatch, capfd):
    """A process that dies at once is not started for ever: everybody is told instead."""
    starts, request = [], Shell._request

    def broken(shell, process, incarnation):
        made, fds = request(shell, process, incarnation)
        starts.append(process.role)
        return (made, {}) if process.role == role else (made, fds)

    monkeypatch.setattr(Shell, "_request", broken)
    with Runtime(encoders=1) as rt:
        if role == "device":
            rt.kill(role)  # the first one is there before the scheduler
        plan = rt.stream.register(axpy())
        with pytest.raises(PoolUnhealthyError, match="deaths in a row without progress, got 5, allowed 4"):
            wait_until(lambda: rt.stats()["deaths"] >= 5, "five deaths")
            x = rt.stream.asarray(random(3, 3))
            rt.stream.read(rt.stream.call(plan, [x, x])[0])
    assert starts.count(role) == 5
    assert "KeyError" in capfd.readouterr().err  # the child says what it died of


def test_names_in_the_working_directory_shadow_nothing(tmp_path):
    """`python -m` puts the working directory first on the path, unless told not to."""
    for name in ("dis.py", "zmq.py", "socket.py", "json.py", "select.py", "msgpack.py"):
        (tmp_path / name).write_text("raise ImportError('the wrong module')")
    (tmp_path / "dvm_rt").mkdir()
    (tmp_path / "dvm_rt" / "__init__.py").write_text("raise ImportError('the wrong package')")
    script = "from dvm_rt.runtime import Runtime\nwith Runtime(encoders=1) as rt: print(sorted(rt.pids()))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-P", "-c", script], cwd=tmp_path, env=environment, capture_output=True,
                         text=True, timeout=60)
    assert out.stdout.strip() == "['device', 'encoder 0', 'zygote']", out.stderr


def test_control_page_offsets():
    """Python and C++ see the same words: what the native side writes by name is found at the layout's offset."""
    import mmap

    from dvm_rt.isa import layout
    from tests.native.streams import Stepped

    world = Stepped(workers=2, encode_mode="workers")
    plan = world.stream.register(axpy())
    x = world.stream.asarray(random(4, 4))
    world.stream.call(plan, [x, x])
    encoder = world.encoder(1)
    encoder.add_plan(plan, axpy())
    encoder.encode(world.stream.take_outbox(8))
    world.run()
    with mmap.mmap(world.fds["control"], layout.CONTROL_BYTES) as page:
        words = np.frombuffer(page, np.uint64).copy()
    assert words[layout.CONTROL_WORD["done"]] == world.stream.done == 1
    stats = world.stream.stats()
    for name in ("busy_ns", "exposed_ns", "exposed_count", "waiting_program", "client_ns"):
        assert words[layout.CONTROL_WORD[name]] == stats[name]
    assert [words[layout.worker_word(w, "encoded")] for w in (0, 1)] == [0, 1]
    places = [*layout.CONTROL_WORD.values(), *(layout.worker_word(w, n) for w in range(8) for n in layout.WORKER_LINE)]
    assert len(set(places)) == len(places) and max(places) * 8 < layout.CONTROL_BYTES
    assert all(layout.worker_word(w, "encoded") % 8 == 0 for w in range(8))  # a cache line each


# ---- before there is a scheduler --------------------------------------------------------------------------------------
@pytest.fixture
def no_scheduler_by_itself(monkeypatch):
    monkeypatch.setenv("DVM_RT_SCHEDULER_AFTER_S", "60")


def test_launches_need_no_scheduler(expected, no_scheduler_by_itself):
    with Runtime(encoders=1) as rt:
        assert work(rt, 600) == expected
        assert rt._starting.scheduler is None and rt.graphs_waiting == rt.planners == 0
        assert asyncio.run(rt.run(lambda: "done")) == "done"
        device = rt._starting._child.pid
    assert alive([device]) == []
    with Runtime(encoders=1) as rt:
        assert len(rt.pids()) == 3 and rt._starting.scheduler is not None and rt.planners == 1
        assert work(rt, 600) == expected


def test_a_device_that_dies_before_there_is_a_scheduler(expected, no_scheduler_by_itself):
    with Runtime(encoders=1) as rt:
        wait_until(lambda: rt._starting._forked, "the device is there")
        os.kill(rt._starting._child.pid, signal.SIGKILL)
        threading.Timer(0.1, rt.stats).start()  # makes the scheduler, which finds the device dead
        assert work(rt, 600) == expected
        assert rt.stats()["deaths"] == 1


def test_a_zygote_that_dies_before_there_is_a_scheduler(expected, no_scheduler_by_itself):
    with Runtime(encoders=1) as rt:
        wait_until(lambda: rt._starting._forked, "the device is there")
        os.kill(rt._starting._zygote.pid, signal.SIGKILL)
        threading.Timer(0.1, rt.stats).start()
        assert work(rt, 600) == expected
        wait_until(lambda: len(rt.pids()) == 3, "all are there")


def test_a_start_that_fails_fails_what_comes_next(monkeypatch, no_scheduler_by_itself):
    before = descriptors()
    monkeypatch.setattr(Zygote, "take_ready", lambda zygote: False)
    with Runtime(encoders=1) as rt:
        with pytest.raises(PoolUnhealthyError, match="zygote: start: no answer"):
            rt.stats()
        with pytest.raises(PoolUnhealthyError, match="zygote: start: no answer"):
            rt.stream.asarray(random(2))
    del rt
    assert descriptors() <= before


def test_a_runtime_that_is_closed_at_once_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("DVM_RT_SESSION_ROOT", str(tmp_path / "root"))
    Runtime(encoders=1).close()
    before = descriptors()
    for pause in (0.0, 0.0, 0.002, 0.02, 0.05, 0.1):
        rt = Runtime(encoders=1)
        time.sleep(pause)
        zygote = rt._starting._zygote.pid
        rt.close()
        assert alive([zygote]) == [] and os.listdir(tmp_path / "root") == []
        del rt
    assert descriptors() <= before
    assert not [t for t in threading.enumerate() if t.name.startswith("dvm-rt")]


# ---- poison and other errors --------------------------------------------------------------------------------------------
def test_a_request_that_no_encoder_survives_is_poison_and_the_next_one_works():
    with Runtime(encoders=1, encode="workers", encode_work_ns=10**13, lease_s=0.25) as rt:
        plan = rt.stream.register(axpy())
        x = rt.stream.asarray(random(3, 3))
        with pytest.raises(PoisonRequestError, match="got 2, allowed 1"):
            rt.stream.read(rt.stream.call(plan, [x, x])[0])
        rt.stream.set_encode_mode("caller")
        rt.stream.set_encode_work_ns(0)
        y = rt.stream.asarray(random(2, 2))
        assert rt.stream.read(rt.stream.call(plan, [y, y])[0]).shape == (2, 2)


def test_arguments_out_of_range_are_refused():
    for bad in ({"encoders": 9}, {"encoders": -1}, {"encoders": "2"}, {"encoders": 1.5}, {"encode": "nobody"},
                {"lease_s": 0.0}, {"spin_us": -1}, {"target": 3}, {"target": "neon"}, {"encode_work_ns": -1},
                {"encode_work_ns": 0.5}, {"cache": 3}, {"cache": b"plans"}, {"cache": ""}, {"listen": 3}, {"listen": "here"},
                {"listen": "tcp://127.0.0.1"}, {"listen": "tcp://127.0.0.1:99999"}, {"listen": "ipc://relative"},
                {"listen": "ipc:///no/such/folder/socket"}, {"listen": "tcp://127.0.0.1:0", "inline": True}):
        with pytest.raises(DvmError, match="got .* allowed"):
            Runtime(**bad).close()


def test_an_instruction_set_that_nobody_has_is_refused(monkeypatch):
    monkeypatch.setenv("DVM_RT_TARGET", "neon")
    with pytest.raises(DvmError, match="DVM_RT_TARGET: out of range, got 'neon', allowed nothing, baseline"):
        Runtime(inline=True)
    Runtime(inline=True, target="baseline").close()


def test_a_folder_for_sessions_that_cannot_be_made_is_refused(monkeypatch):
    monkeypatch.setenv("DVM_RT_SESSION_ROOT", "/proc/none")
    with pytest.raises(AuthError, match="/proc/none"):
        Runtime(encoders=0).close()


def test_an_address_that_is_taken_is_refused(tmp_path):
    with Runtime(encoders=0, listen="tcp://127.0.0.1:0") as first:
        with pytest.raises(DvmError, match="cannot be bound"):
            Runtime(encoders=0, listen=first.endpoint).close()
    file = tmp_path / "notes"
    file.write_text("kept")
    with pytest.raises(DvmError, match="no socket"):
        Runtime(encoders=0, listen=f"ipc://{file}").close()
    assert file.read_text() == "kept" and os.listdir(tmp_path) == ["notes"]


@pytest.mark.parametrize("endpoint", ["tcp://0.0.0.0:5555", "tcp://192.168.1.2:5555", "tcp://example.org:1"])
def test_listening_beyond_this_machine_is_refused(endpoint):
    with pytest.raises(AuthError, match="loopback"):
        Runtime(encoders=0, listen=endpoint)


# ---- what is left -----------------------------------------------------------------------------------------------------
def alive(pids) -> list[int]:
    return [p for p in pids if Path(f"/proc/{p}").exists() and Path(f"/proc/{p}/stat").read_text().split(") ")[1][0] != "Z"]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def shared_memory() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:dvm_rt")


@pytest.fixture
def without_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_close_leaves_nothing(tmp_path, monkeypatch, without_collector):
    """Descriptors are given back at once, memory when nobody holds the runtime any more: nothing waits for the collector."""
    monkeypatch.setenv("DVM_RT_SESSION_ROOT", str(tmp_path / "root"))
    for turn in range(3):
        before, mapped, shm = descriptors(), shared_memory(), os.listdir("/dev/shm")
        rt = Runtime(encoders=2)
        pids = rt.pids().values()
        work(rt, 5)
        assert len(os.listdir(tmp_path / "root")) == 1
        rt.close()
        rt.close()
        assert alive(pids) == [] and os.listdir(tmp_path / "root") == [] and os.listdir("/dev/shm") == shm
        with pytest.raises(ClosedError):
            rt.stats()
        with pytest.raises(ClosedError):
            rt.stream.asarray(random(2))
        assert descriptors() <= before + (turn == 0)  # uvloop keeps one of its own from its first loop on
        del rt
        assert shared_memory() == mapped
    assert not [t for t in threading.enumerate() if t.name.startswith("dvm-rt")]


CLIENT = """
import sys, time
from dvm_rt.runtime import Runtime
rt = Runtime(encoders=2)
print(*rt.pids().values(), flush=True)
time.sleep(60)
"""


def test_a_killed_client_leaves_nothing(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVM_RT_SESSION_ROOT": str(tmp_path / "root")}
    shm = os.listdir("/dev/shm")
    with subprocess.Popen([sys.executable, "-P", "-c", CLIENT], env=environment, stdout=subprocess.PIPE, text=True) as client:
        pids = [int(p) for p in client.stdout.readline().split()]
        assert len(alive(pids)) == 4
        client.kill()
    wait_until(lambda: not alive(pids), "the children go")
    wait_until(lambda: not os.listdir(tmp_path / "root"), "the session folder goes")
    assert os.listdir("/dev/shm") == shm


def test_what_a_killed_zygote_and_client_leave_is_swept_by_the_next_start(tmp_path, monkeypatch):
    root = tmp_path / "root"
    monkeypatch.setenv("DVM_RT_SESSION_ROOT", str(root))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-P", "-c", CLIENT], env=environment, stdout=subprocess.PIPE, text=True) as client:
        pids = [int(p) for p in client.stdout.readline().split()]
        os.kill(client.pid, signal.SIGSTOP)
        os.kill(pids[0], signal.SIGKILL)
        client.kill()
    wait_until(lambda: not alive(pids), "the children go")
    assert len(os.listdir(root)) == 1
    with Runtime(encoders=0):
        assert len(os.listdir(root)) == 1  # ours
    assert os.listdir(root) == []


def test_a_session_folder_that_others_may_enter_is_refused(tmp_path, monkeypatch):
    (tmp_path / "open").mkdir(mode=0o755)
    monkeypatch.setenv("DVM_RT_SESSION_ROOT", str(tmp_path / "open"))
    with pytest.raises(AuthError, match="owner and mode"):
        Runtime(encoders=0)


def test_a_forked_child_is_refused_and_the_parent_unharmed():
    with Runtime(encoders=1) as rt:
        plan = rt.stream.register(axpy())
        x = rt.stream.asarray(random(3, 3))
        pid = os.fork()
        if pid == 0:
            refused = 0
            for call in (lambda: rt.stream.call(plan, [x, x]), rt.stats, rt.close, lambda: rt.kill("device")):
                try:
                    call()
                except ForkedClientError:
                    refused += 1
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
        assert rt.stream.read(rt.stream.call(plan, [x, x])[0]).shape == (3, 3)


def test_a_forked_child_has_an_inline_runtime_of_its_own():
    mine = runtime.current()
    pid = os.fork()
    if pid == 0:
        theirs = runtime.current()
        x = theirs.stream.asarray(random(3, 3))
        (y,) = theirs.stream.call(theirs.stream.register(axpy()), [x, x])
        os._exit(theirs is not mine and theirs.stream.read(y).shape == (3, 3))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_arrays_from_before_a_fork_say_so_in_the_child():
    x = asarray(random(3, 3))
    pid = os.fork()
    if pid == 0:
        try:
            np.asarray(x + 1)
        except ForkedClientError:
            os._exit(float(asarray(1.0) + 1) == 2)  # new ones work
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


# ---- current, async -----------------------------------------------------------------------------------------------------
def test_current_is_the_innermost_of_this_thread():
    default = runtime.current()
    assert default.inline and runtime.current() is default
    with Runtime(inline=True) as outer:
        with Runtime(inline=True) as inner:
            assert runtime.current() is inner
            seen = []
            thread = threading.Thread(target=lambda: seen.append(runtime.current()))
            thread.start()
            thread.join()
            assert seen == [default]
        assert runtime.current() is outer
    assert runtime.current() is default


async def test_waiting_in_the_users_own_loop():
    async with Runtime(encoders=1, encode="workers", encode_work_ns=2_000_000) as rt:
        plan = rt.stream.register(axpy())

        def launch(n: int):
            x = rt.stream.asarray(random(n, n))
            return rt.stream.call(plan, [x, x])[0]

        async def one(n: int):
            tensor = await rt.run(launch, n)
            assert runtime.current() is rt and rt.stream.done >= tensor.seq
            return rt.stream.read(tensor, timeout_s=0.0)

        for n, value in enumerate(await asyncio.gather(*(one(n) for n in range(1, 30))), 1):
            assert np.array_equal(value, random(n, n) * np.float32(3))

        async def coroutine():
            return launch(99)

        assert (await rt.run(coroutine)).shape == (99, 99)


async def test_many_loops_wait_on_one_runtime():
    with Runtime(encoders=1, encode="workers", encode_work_ns=1_000_000) as rt:
        plan, found = rt.stream.register(axpy()), []

        async def one(n: int):
            x = rt.stream.asarray(random(n, 3))
            (y,) = rt.stream.call(plan, [x, x])
            await rt.reached(y.seq)
            found.append(rt.stream.read(y, timeout_s=0.0).shape)

        async def several(first: int):
            await asyncio.gather(*(one(n) for n in range(first, first + 10)))

        threads = [threading.Thread(target=lambda f=f: asyncio.run(several(f))) for f in (1, 11, 21)]
        for thread in threads:
            thread.start()
        await several(31)
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert sorted(found) == [(n, 3) for n in range(1, 41)]


async def test_an_awaiting_caller_survives_kills_and_hears_of_failure():
    async with Runtime(encoders=1) as rt:
        plan = rt.stream.register(axpy())
        x = rt.stream.asarray(random(8, 8))
        for _ in range(3):
            rt.kill("device", signal.SIGSTOP)
            (y,) = rt.stream.call(plan, [x, x])
            asyncio.get_running_loop().call_later(0.02, rt.kill, "device")
            await rt.reached(y.seq)
        rt.kill("device", signal.SIGSTOP)
        (y,) = rt.stream.call(plan, [x, x])
        asyncio.get_running_loop().call_later(0.02, rt.stream.fail, "DeviceLostError", "planted")
        with pytest.raises(DvmError, match="planted"):
            await rt.reached(y.seq)


# ---- graphs, traces -----------------------------------------------------------------------------------------------------
def small_graph() -> tuple:
    from dvm_rt.dtypes import float32
    from dvm_rt.graph.graph import Graph, Make, parameter
    from dvm_rt.graph.symbols import Facts, symbol

    facts = Facts()
    x = parameter(0, (symbol(0), symbol(1)), float32)
    return Graph.of([x], [Make(facts).tanh(x)], facts).to_wire()


@pytest.mark.parametrize("inline", [True, False])
def test_a_worker_plans_a_graph(inline):
    with Runtime(inline=inline) as rt:
        plan = rt.plan_ahead(small_graph()).result(20)
        x = rt.stream.asarray(random(4, 5))
        (y,) = rt.stream.call(rt.stream.register(plan), [x])
        assert np.allclose(rt.stream.read(y), np.tanh(random(4, 5)), atol=1e-6)
        with pytest.raises(GraphError):
            rt.plan_ahead((1, 2, 3)).result(20)


def test_a_graph_survives_its_worker():
    with Runtime(encoders=1) as rt:
        rt.kill("encoder", signal.SIGSTOP)
        future = rt.plan_ahead(small_graph())
        rt.kill("encoder")
        assert len(future.result(20)) > 100


def test_a_planned_graph_cannot_be_cancelled():
    with Runtime(encoders=1) as rt:
        rt.kill("encoder", signal.SIGSTOP)
        future = rt.plan_ahead(small_graph())
        assert not future.cancel()
        rt.kill("encoder")
        assert len(future.result(20)) > 100


def test_a_trace_shows_every_process_and_leads_from_instance_to_launch(tmp_path):
    import json

    from dvm_rt import trace

    with Runtime(encoders=1, encode="workers") as rt:
        work(rt, 60)
        count = rt.trace(tmp_path / "run.json")
    events = json.loads((tmp_path / "run.json").read_text())["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    assert len(spans) == count and {e["cat"] for e in spans} == {"client", "device", "encoder 0"}
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    assert starts.keys() == ends.keys()
    programs = [i for i, e in starts.items() if e["name"] == "program" and e["tid"] == 2]
    assert len(programs) > 40 and all(ends[i]["tid"] == trace.DEVICE and starts[i]["ts"] <= ends[i]["ts"] for i in programs)
    summary = {t.name: t for t in trace.summarise(tmp_path / "run.json")}
    assert summary["device"].spans["launch"] == rt_launches(spans) and summary["encoder 0"].busy_us["encode"] > 0


def rt_launches(spans: list[dict]) -> int:
    return sum(e["name"] == "launch" for e in spans)


def test_traps_are_errors_of_the_value_and_the_next_call_works():
    from dvm_rt.errors import DeviceTrap

    with Runtime(encoders=1, encode="workers") as rt:
        plan = rt.stream.register(pick_rows())
        x, rows = rt.stream.asarray(random(2, 3)), rt.stream.asarray(random(4, 3))
        bad, good = (rt.stream.asarray(np.array([[0], [i]], np.int32)[:, 0]) for i in (9, 1))
        with pytest.raises(DeviceTrap):
            rt.stream.read(rt.stream.call(plan, [x, rows, bad])[0])
        assert np.array_equal(rt.stream.read(rt.stream.call(plan, [x, rows, good])[0]), random(2, 3) + random(4, 3)[[0, 1]])


def products_and_sums(rt: Runtime) -> bytes:
    """Large enough for several threads: a product with an epilogue, rows, and one reduction over everything."""
    import dvm_rt as dvm

    with rt:
        x, w = dvm.asarray(random(700, 300)), dvm.asarray(random(300, 500, seed=1))
        y = dvm.tanh(x @ w) * 0.5
        out = np.asarray(y).tobytes() + np.asarray(dvm.sum(y, axis=1)).tobytes() + np.asarray(dvm.sum(dvm.exp(y))).tobytes()
        assert rt.stats()["sections_split"] > 0 if rt.threads > 1 else rt.stats()["sections_split"] == 0
        return out


def test_bytes_do_not_depend_on_the_number_of_threads() -> None:
    want = products_and_sums(Runtime(inline=True))
    assert products_and_sums(Runtime(inline=True, threads=3)) == want
    assert products_and_sums(Runtime(encoders=1, threads=2)) == want


def test_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    cpus = len(os.sched_getaffinity(0))
    monkeypatch.delenv("DVM_RT_THREADS", raising=False)
    with Runtime(inline=True) as rt:
        assert rt.threads == rt.stats()["threads"] == 1
    with Runtime(encoders=1) as rt:
        assert rt.stats()["threads"] == max(1, cpus - 2)
    monkeypatch.setenv("DVM_RT_THREADS", "2")
    with Runtime(inline=True) as rt:
        assert rt.stats()["threads"] == 2
    with pytest.raises(DvmError, match="threads: out of range, got 65"):
        Runtime(inline=True, threads=65)


def test_threads_in_a_forked_child() -> None:
    """The child has none of the parent's threads: it must neither wait for them nor fail to end."""
    rt = Runtime(inline=True, threads=4)
    want = products_and_sums(rt)
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if products_and_sums(Runtime(inline=True, threads=2)) == want else 2
            del rt
            gc.collect()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
