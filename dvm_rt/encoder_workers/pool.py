"""A pool: encoder workers for a scheduler that listens, here or elsewhere, and the one who watches them.

Each worker is a process of its own (`python -P -m dvm_rt.encoder_workers`), killed by the kernel when the pool dies. The
pool waits for the scheduler, starts a worker that died again, gives up after `deaths_max` deaths in a row of workers that
never joined or lived less than a second, and ends when the scheduler says that it closes, or on SIGTERM or SIGINT. On SIGUSR1
it drains: its workers answer what they hold, take nothing new, and leave; what has not left after `drain_s` is stopped.

Every pool has a file in the folder of the sessions, named by its process number, which it holds by a lock: `pools` finds those
that live, of this user on this machine, and `end` drains or stops them."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from dvm_rt import config
from dvm_rt.encoder_workers.worker import DISMISSED, REFUSED
from dvm_rt.errors import PoolUnhealthyError
from dvm_rt.session import session_root
from dvm_rt.zygote import child_environment

SHORT_LIFE_S = 1.0
LOOK_AGAIN_S = 0.02
PREFIX = "pool-"
STOP, DRAIN = b"s", b"d"


@dataclass(slots=True)
class _Member:
    process: subprocess.Popen[bytes]
    pidfd: int
    started_at: float


class Pool:
    """`run` serves until the scheduler closes (returns) or the pool cannot go on (raises PoolUnhealthyError)."""

    def __init__(self, endpoint: str, encoders: int, say: Callable[[str], None] = print) -> None:
        self.endpoint, self.encoders, self.say = endpoint, encoders, say
        self._members: list[_Member] = []
        self._short_lives, self._drains_until = 0, 0.0
        self._orders_read, self._orders_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> None:
        for number, order in ((signal.SIGTERM, STOP), (signal.SIGINT, STOP), (signal.SIGUSR1, DRAIN)):
            signal.signal(number, lambda *_, order=order: os.write(self._orders_write, order))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # the command line holds it back until now
        held = _Held(self.endpoint, self.encoders)
        try:
            self._members = [self._start() for _ in range(self.encoders)]
            self.say(f"pool: {self.encoders} workers for {self.endpoint}")
            self.say(f"pool: {self._serve()}")
        finally:
            self._end_all()
            held.release()

    def _serve(self) -> str:
        """Returns why it is over."""
        while self._members:
            left_s = max(0.0, self._drains_until - time.monotonic()) if self._drains_until else None
            ready, *_ = select.select([self._orders_read, *(m.pidfd for m in self._members)], [], [], left_s)
            if self._orders_read in ready:
                if STOP in os.read(self._orders_read, 1 << 10):
                    return "stopped"
                self._drain()
            if not ready:
                return f"stopped, since {len(self._members)} workers have not drained in {config.number('drain_s')} s"
            ended = [self._ended(member) for member in [m for m in self._members if m.pidfd in ready]]
            if DISMISSED in ended and not self._drains_until:
                return "the scheduler has closed"  # and those that it does not know yet need not wait for it
        return "drained"

    def _drain(self) -> None:
        self.say("pool: drains")
        self._drains_until = time.monotonic() + config.number("drain_s")
        for member in self._members:
            member.process.send_signal(signal.SIGUSR1)

    def _start(self) -> _Member:
        command = [sys.executable, "-P", "-m", "dvm_rt.encoder_workers", self.endpoint, str(os.getpid())]
        process = subprocess.Popen(command, env=child_environment(), stdin=subprocess.DEVNULL, start_new_session=True)
        return _Member(process, os.pidfd_open(process.pid), time.monotonic())

    def _ended(self, member: _Member) -> int:
        """Takes note of a worker's end, and starts another where that is due. Returns its exit code."""
        code = member.process.wait()
        os.close(member.pidfd)
        self._members.remove(member)
        if code == REFUSED and not self._drains_until:
            raise PoolUnhealthyError(
                f"pool: {self.endpoint}: worker not taken, got a refusal or silence (see above), allowed WELCOME")
        if code == DISMISSED or self._drains_until:
            return code
        self._short_lives = self._short_lives + 1 if time.monotonic() - member.started_at < SHORT_LIFE_S else 0
        if self._short_lives >= config.integer("deaths_max"):
            raise PoolUnhealthyError(
                f"pool: worker: short lives in a row, got {self._short_lives}, allowed {config.integer('deaths_max') - 1}"
            )
        self.say(f"pool: worker {member.process.pid} died with code {code}, another starts")
        self._members.append(self._start())
        return code

    def _end_all(self) -> None:
        for member in self._members:
            member.process.terminate()
        end = time.monotonic() + config.number("close_s")
        for member in self._members:
            try:
                member.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()
            os.close(member.pidfd)
        self._members.clear()


# ---- the pools of this machine ----------------------------------------------------------------------------------------


class Running(NamedTuple):
    """A pool that lives."""

    pid: int
    endpoint: str
    encoders: int


class _Held:
    """The file of a pool: it appears whole and locked, and is there as long as the pool."""

    def __init__(self, endpoint: str, encoders: int) -> None:
        self._path = os.path.join(session_root(), f"{PREFIX}{os.getpid()}")
        aside = self._path + ".part"
        self._file = os.open(aside, os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        os.write(self._file, f"{encoders} {endpoint}".encode())
        os.rename(aside, self._path)

    def release(self) -> None:
        os.unlink(self._path)
        os.close(self._file)


def pools(endpoint: str | None = None) -> list[Running]:
    """The pools that live, of this user on this machine: all, or those for an endpoint. Files of killed ones are removed."""
    found, root = [], session_root()
    for name in sorted(os.listdir(root)):
        if not name.startswith(PREFIX) or not name.removeprefix(PREFIX).isdigit():
            continue
        try:
            file = os.open(os.path.join(root, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.unlink(os.path.join(root, name))  # nobody holds it
        except BlockingIOError:
            count, _, place = os.read(file, 1 << 12).decode().partition(" ")
            if endpoint is None or place == endpoint:
                found.append(Running(int(name.removeprefix(PREFIX)), place, int(count)))
        finally:
            os.close(file)
    return found


def end(running: list[Running], order: signal.Signals, timeout_s: float) -> list[Running]:
    """Sends SIGTERM (stop) or SIGUSR1 (drain) to pools, and waits until they are over. Returns those that are not."""
    for one in running:
        if one in pools():
            os.kill(one.pid, order)
    deadline = time.monotonic() + timeout_s
    while (left := [one for one in running if one in pools()]) and time.monotonic() < deadline:
        time.sleep(LOOK_AGAIN_S)
    return left
