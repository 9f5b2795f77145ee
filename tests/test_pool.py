"""Remote workers: real pools, kills among them, and peers that do not keep the protocol."""

import os
import random as randoms
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dvm_rt import _native, wire
from dvm_rt.errors import AuthError
from dvm_rt.runtime import Runtime
from dvm_rt.transport import DealerSocket, make_context
from tests.native.streams import axpy, random
from tests.test_runtime import HUNG_S, ROOT, expected, wait_until, work  # noqa: F401

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def start_pool(endpoint: str, encoders: int = 1, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "dvm_rt", "pool", "--connect", endpoint, "--encoders", str(encoders)]
    return subprocess.Popen(
        command, env=ENVIRONMENT | variables, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def workers_of(pool: subprocess.Popen[str]) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pool.pid}/task/{pool.pid}/children").read_text().split()]


@pytest.fixture
def endpoint(tmp_path) -> str:
    return f"ipc://{tmp_path}/scheduler"


def joined(rt: Runtime, count: int) -> None:
    wait_until(lambda: rt.stats()["remote_workers"] == count, f"{count} remote workers")


@pytest.mark.parametrize("where", ["ipc", "tcp"])
def test_a_pool_encodes_everything(expected, endpoint, where):  # noqa: F811
    with Runtime(encoders=0, encode="workers", listen=endpoint if where == "ipc" else "tcp://127.0.0.1:0") as rt:
        pool = start_pool(rt.endpoint, 2)
        joined(rt, 2)
        assert work(rt, 600) == expected
        stats = rt.stats()
        pids = workers_of(pool)
    assert stats["encodes"]["caller"] == 0 and stats["deaths"] == 0 and stats["protocol_errors"] == 0
    assert stats["encodes"]["workers"] == [] and stats["encodes"]["remote"] == stats["programs"] > 10
    assert pool.wait(HUNG_S) == 0  # the scheduler has closed
    assert "closed" in pool.stdout.read()
    assert not [p for p in pids if Path(f"/proc/{p}").exists()]


def test_workers_of_a_pool_may_die(expected, endpoint):  # noqa: F811
    with Runtime(encoders=1, encode="workers", listen=endpoint) as rt:
        pool = start_pool(rt.endpoint, 2)
        joined(rt, 2)
        digests, over = [], threading.Event()

        def kill():
            rng = randoms.Random(1)
            for _ in range(4):
                os.kill(rng.choice(workers_of(pool)), signal.SIGKILL)
                over.wait(0.1)
                wait_until(lambda: len(workers_of(pool)) == 2, "the pool starts another")
            over.set()

        killer = threading.Thread(target=kill)
        killer.start()
        while not over.is_set():
            digests.append(work(rt, 600))
        killer.join()
        joined(rt, 2)  # one that has not joined would wait for the next scheduler
        assert set(digests) == {expected}
    assert pool.wait(HUNG_S) == 0


def test_a_pool_waits_for_its_scheduler_and_ends_on_sigterm(endpoint):
    pool = start_pool(endpoint)
    wait_until(lambda: len(workers_of(pool)) == 1, "the worker")
    with Runtime(encoders=0, listen=endpoint) as rt:
        joined(rt, 1)
        pids = workers_of(pool)
        pool.send_signal(signal.SIGTERM)
        assert pool.wait(HUNG_S) == 0
        joined(rt, 0)
    assert not [p for p in pids if Path(f"/proc/{p}").exists()]


def test_a_pool_that_is_told_to_drain_while_it_starts_drains(endpoint):
    pool = start_pool(endpoint)
    bit = 1 << (signal.SIGUSR1 - 1)

    def is_ready_for_it() -> bool:  # held back, or handled: whatever comes first
        fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pool.pid}/status").read_text().splitlines())
        return bool((int(fields["SigBlk"], 16) | int(fields["SigCgt"], 16)) & bit)

    wait_until(is_ready_for_it, "the first lines of the command")
    pool.send_signal(signal.SIGUSR1)
    assert pool.wait(HUNG_S) == 0
    assert "pool: drains" in pool.stdout.read()


def test_a_pool_gives_up_without_a_scheduler(endpoint):
    pool = start_pool(endpoint, DVM_RT_CONNECT_S="0.2")
    assert pool.wait(HUNG_S) == 1
    assert "no scheduler" in pool.stdout.read()


def test_a_pool_whose_workers_die_at_once_gives_up(endpoint):
    pool = start_pool(endpoint, DVM_RT_MESSAGE_BYTES_MAX="1")  # out of range: no worker gets past its first socket
    assert pool.wait(HUNG_S) == 1
    assert "PoolUnhealthyError" in pool.stdout.read()


def test_workers_die_with_a_killed_pool(endpoint):
    with Runtime(encoders=0, listen=endpoint) as rt:
        pool = start_pool(rt.endpoint, 2)
        joined(rt, 2)
        pids = workers_of(pool)
        pool.kill()
        pool.wait()
        wait_until(lambda: not [p for p in pids if Path(f"/proc/{p}").exists()], "the workers go")


def test_a_second_runtime_may_not_bind_the_same_endpoint(endpoint):
    with Runtime(encoders=0, listen=endpoint), pytest.raises(AuthError, match="already bound"):
        Runtime(encoders=0, listen=endpoint)
    with Runtime(encoders=0, listen=endpoint):
        pass


# ---- pools that come and go -------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "dvm_rt", "pool", *arguments], env=ENVIRONMENT, cwd="/", capture_output=True,
        text=True, timeout=HUNG_S
    )


@pytest.fixture
def alone(tmp_path, monkeypatch) -> None:
    """No pools but those of the test are listed."""
    (tmp_path / "sessions").mkdir(mode=0o700)
    monkeypatch.setitem(ENVIRONMENT, "DVM_RT_SESSION_ROOT", str(tmp_path / "sessions"))


def pid_of(started: subprocess.CompletedProcess[str]) -> int:
    assert started.returncode == 0, started.stderr
    return int(started.stdout.split()[1])


def test_pools_are_started_listed_drained_and_stopped(expected, endpoint, alone, monkeypatch):  # noqa: F811
    monkeypatch.setenv("DVM_RT_REMOTE_LEASE_S", "0.5")
    with Runtime(encoders=0, encode="workers", listen=endpoint) as rt:
        assert work(rt, 600) == expected  # nobody is there: the caller encodes
        first = pid_of(command("--connect", endpoint, "--encoders", "2", "--detach"))
        joined(rt, 2)
        assert work(rt, 600) == expected
        second = pid_of(command("start", "--connect", endpoint, "--detach"))
        joined(rt, 3)
        listed = command("list").stdout
        assert f"pool: {first}: 2 workers for {endpoint}" in listed and f"pool: {second}: 1 workers" in listed
        assert command("list", "--connect", endpoint + ".other").stdout == ""
        os.kill(first, signal.SIGKILL)  # its workers die with it, and its file is nobody's
        assert work(rt, 600) == expected  # which finds out that two are gone
        joined(rt, 1)
        assert str(first) not in command("list").stdout
        encodes, deaths = rt.stats()["encodes"], rt.stats()["deaths"]
        drained = command("drain", "--connect", endpoint)
        assert drained.returncode == 0 and str(second) in drained.stdout
        joined(rt, 0)
        assert rt.stats()["deaths"] == deaths  # who drains has not died
        assert work(rt, 600) == expected and rt.stats()["encodes"]["caller"] > encodes["caller"]
        third = pid_of(command("--connect", endpoint, "--detach"))
        joined(rt, 1)
        stopped = command("stop")
        assert stopped.returncode == 0 and str(third) in stopped.stdout
        joined(rt, 0)
        assert work(rt, 600) == expected
    for action in ("drain", "stop"):
        out = command(action)
        assert out.returncode == 1 and "pools, got none" in out.stderr
    out = command("start")
    assert out.returncode == 1 and "--connect, got none" in out.stderr


def test_pools_drain_under_load_and_lose_nothing(expected, endpoint, alone):  # noqa: F811
    with Runtime(encoders=0, encode="workers", listen=endpoint) as rt:
        digests, over = [], threading.Event()

        def pools_come_and_go() -> None:
            for _ in range(3):
                pool = start_pool(endpoint, 2)
                joined(rt, 2)
                over.wait(0.2)
                pool.send_signal(signal.SIGUSR1)
                output = pool.communicate(timeout=HUNG_S)[0]
                assert pool.returncode == 0 and "pool: drained" in output, output
            over.set()

        comes_and_goes = threading.Thread(target=pools_come_and_go)
        comes_and_goes.start()
        while not over.is_set():
            digests.append(work(rt, 600))
            assert comes_and_goes.is_alive() or over.is_set()
        comes_and_goes.join()
        assert set(digests) == {expected} and rt.stats()["deaths"] == 0


def test_a_pool_that_cannot_drain_is_stopped(endpoint, alone):
    pool = start_pool(endpoint, DVM_RT_DRAIN_S="0.3")  # no scheduler: its worker is not there yet, and leaves at once
    wait_until(lambda: len(workers_of(pool)) == 1, "the worker")
    with Runtime(encoders=0, listen=endpoint) as rt:
        joined(rt, 1)
        worker = workers_of(pool)[0]
        os.kill(worker, signal.SIGSTOP)
        pool.send_signal(signal.SIGUSR1)
        output = pool.communicate(timeout=HUNG_S)[0]
        assert pool.returncode == 0 and "have not drained in 0.3 s" in output


# ---- peers that do not keep the protocol ------------------------------------------------------------------------------
class Peer:
    """A worker under the test's control."""

    def __init__(self, rt: Runtime) -> None:
        self.socket = DealerSocket(make_context(), rt.endpoint)

    def send(self, message: wire.Message) -> None:
        self.socket.send(wire.encode(message))

    def join(self) -> None:
        self.send(wire.Hello(wire.PROTOCOL_MAJOR, 0, _native.TABLE_HASH, 0, 0, "test"))
        assert isinstance(self.next(), wire.Welcome)

    def next(self) -> wire.Message:
        frame = self.socket.receive_within(10.0)
        assert frame is not None
        return wire.decode(frame, wire.FROM_SCHEDULER)

    def batch(self) -> tuple[_native.Encoder, wire.Instances]:
        encoder = _native.Encoder()
        while not isinstance(message := self.next(), wire.Instances):
            encoder.add_plan(message.plan, message.body)
        return encoder, message


@pytest.mark.parametrize(
    ("hello", "error"),
    [
        (wire.Hello(wire.PROTOCOL_MAJOR + 1, 0, _native.TABLE_HASH, 0, 0, ""), "VersionMismatchError"),
        (wire.Hello(wire.PROTOCOL_MAJOR, 0, _native.TABLE_HASH ^ 1, 0, 0, ""), "VersionMismatchError"),
        (wire.Planned(1, 2, b""), "ProtocolError"),
    ],
)
def test_strangers_are_told_why_they_are_refused(endpoint, hello, error):
    with Runtime(encoders=0, listen=endpoint) as rt:
        peer = Peer(rt)
        peer.send(hello)
        refused = peer.next()
        assert isinstance(refused, wire.Refused) and refused.error == error
        assert rt.stats()["remote_workers"] == 0


def garbage(encoder: _native.Encoder, batch: wire.Instances, how: str, peer: Peer) -> None:
    """Answers a batch in a way that must not be believed."""
    _, programs = encoder.encode_programs(batch.body)
    ids = [program for program, _ in programs]
    if how == "noise":
        peer.socket.send(os.urandom(200))
    elif how == "another lease":
        peer.send(wire.Programs(batch.lease + 1, 1, wire.pack_programs(programs[:1])))
    elif how == "another's program":
        peer.send(wire.Programs(batch.lease, 1, wire.pack_programs([(ids[0] + 1000, programs[0][1])])))
    elif how == "a flipped bit":
        broken = bytearray(programs[0][1])
        broken[len(broken) // 2] ^= 4
        peer.send(wire.Programs(batch.lease, 1, wire.pack_programs([(ids[0], bytes(broken))])))
    elif how == "valid, but of other dimensions":
        other = bytearray(batch.body)
        other[16] ^= 1
        _, wrong = encoder.encode_programs(bytes(other))
        peer.send(wire.Programs(batch.lease, 1, wire.pack_programs([(ids[0], wrong[0][1])])))
    elif how == "a huge count":
        peer.send(wire.Programs(batch.lease, 2**32 - 1, b""))
    elif how == "bye":
        peer.send(wire.Bye("enough"))


@pytest.mark.parametrize(
    "how",
    ["noise", "another lease", "another's program", "a flipped bit", "valid, but of other dimensions",
     "a huge count", "bye", "silence"],
)
def test_a_lying_worker_costs_time_only(endpoint, how, monkeypatch):
    monkeypatch.setenv("DVM_RT_RECHECK_EVERY", "1")
    monkeypatch.setenv("DVM_RT_REMOTE_LEASE_S", "0.5")
    with Runtime(encoders=0, encode="workers", listen=endpoint) as rt:
        liar = Peer(rt)
        liar.join()
        joined(rt, 1)
        plan = rt.stream.register(axpy())
        x = rt.stream.asarray(random(4, 6))
        out = []
        caller = threading.Thread(target=lambda: out.append(rt.stream.read(rt.stream.call(plan, [x, x])[0])))
        caller.start()
        garbage(*liar.batch(), how, liar)
        joined(rt, 0)
        caller.join()
        assert (out[0] == random(4, 6) * 3).all()
        stats = rt.stats()
        assert stats["deaths"] == 1 and stats["encodes"]["caller"] == 1  # nobody else is there
