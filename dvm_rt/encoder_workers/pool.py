"""A pool: encoder workers for a scheduler that listens, here or elsewhere, and the one who watches them.

Each worker is a process of its own (`python -P -m dvm_rt.encoder_workers`), killed by the kernel when the pool dies. The
pool waits for the scheduler, starts a worker that died again, gives up after `deaths_max` deaths in a row of workers that
never joined or lived less than a second, and ends when the scheduler says that it closes, or on SIGTERM or SIGINT."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from dvm_rt import config
from dvm_rt.encoder_workers.worker import DISMISSED, REFUSED
from dvm_rt.errors import PoolUnhealthyError
from dvm_rt.zygote import child_environment

SHORT_LIFE_S = 1.0


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
        self._short_lives = 0
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os.write(self._stop_write, b"x"))
        try:
            self._members = [self._start() for _ in range(self.encoders)]
            self.say(f"pool: {self.encoders} workers for {self.endpoint}")
            while self._members:
                ready, *_ = select.select([self._stop_read, *(m.pidfd for m in self._members)], [], [])
                if self._stop_read in ready:
                    self.say("pool: stopped")
                    return
                if any(self._ended(member) == DISMISSED for member in [m for m in self._members if m.pidfd in ready]):
                    break  # and those that it does not know yet need not wait for it
            self.say("pool: the scheduler has closed")
        finally:
            self._end_all()

    def _start(self) -> _Member:
        command = [sys.executable, "-P", "-m", "dvm_rt.encoder_workers", self.endpoint, str(os.getpid())]
        process = subprocess.Popen(command, env=child_environment(), stdin=subprocess.DEVNULL, start_new_session=True)
        return _Member(process, os.pidfd_open(process.pid), time.monotonic())

    def _ended(self, member: _Member) -> int:
        """Takes note of a worker's end, and starts another where that is due. Returns its exit code."""
        code = member.process.wait()
        os.close(member.pidfd)
        self._members.remove(member)
        if code == REFUSED:
            raise PoolUnhealthyError(f"pool: {self.endpoint}: worker not taken, got a refusal or silence (see above), allowed WELCOME")
        if code == DISMISSED:
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
