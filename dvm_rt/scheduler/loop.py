"""The loop: one thread with a uvloop event loop around the shell.

Owns what is watched: pidfds of the children and the zygote, the socket for local workers' answers, the remote workers of a
listening runtime, and the tick that flushes late batches and looks at leases. Rule: it is never on a path that the device
waits for. The caller's thread launches, encodes and waits without it; whoever computes in Python can delay it by the GIL's
switch interval and nobody minds. Everything it learns it tells the shell, under the shell's lock."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from dvm_rt import _native, config, wire
from dvm_rt.errors import DvmError
from dvm_rt.scheduler import events as e
from dvm_rt.scheduler.shell import LoopPort, Seat, Shell
from dvm_rt.transport import PullSocket
from dvm_rt.zygote import Zygote

if TYPE_CHECKING:
    import asyncio

    from dvm_rt.scheduler.remote import RemoteWorkers

IDLE_TICKS = 5  # an idle runtime looks this many times less often


class SchedulerLoop:
    """Starts with `start`, ends with `stop`; between them everything happens on its own thread."""

    def __init__(self, shell: Shell, listen: str | None) -> None:
        self.shell = shell
        self._answers = PullSocket(shell.context, shell.shared.session.answers())
        self.remote = _remote_workers(shell, listen) if listen else None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="dvm-rt scheduler", daemon=True)
        self._stopping = False
        self._zygotes: dict[Zygote, int] = {}  # watched, with their incarnation
        self._tick_s = config.number("tick_s")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        if self._loop is not None:
            self._call(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        import uvloop  # asyncio and uvloop take long to import; nobody waits for this thread

        self._loop = uvloop.new_event_loop()
        try:
            self._watch_everything()
            if not self._stopping:
                self._loop.run_forever()
        finally:
            self._loop.close()
            for zygote in self._zygotes:
                if zygote is not self.shell.zygote:
                    zygote.close(0.0)
            self._answers.close()
            if self.remote:
                self.remote.close()

    def _watch_everything(self) -> None:
        with self.shell.lock:
            self.shell.port = LoopPort(
                lambda process, seat: self._call(self._watch, process, seat),
                lambda zygote, incarnation: self._call(self._watch_zygote, zygote, incarnation),
                lambda zygote: self._call(self._forget_zygote, zygote),
                lambda worker, frame: self._call(self.remote.send, worker, frame) if self.remote else None,
                lambda worker, why: self._call(self.remote.drop, worker, why) if self.remote else None,
            )
            for process, seat in list(self.shell.seats.items()):  # what started before we did
                self._watch(process, seat)
            self._watch_zygote(self.shell.zygote, self.shell.state.seats.seats[e.ZYGOTE].incarnation)
        self._loop.add_reader(self._answers.fileno(), self._read_answers)
        self._read_answers()
        if self.remote:
            self._loop.add_reader(self.remote.fileno(), self.remote.read)
            self.remote.read()
        self._loop.call_soon(self._tick)

    def _call(self, function: object, *args: object) -> None:
        """On the loop's thread, from any; dropped once the loop is closed, when nobody needs it any more."""
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            pass

    # ---- processes -----------------------------------------------------------------------------------------------
    def _watch(self, process: e.Process, seat: Seat) -> None:
        if self.shell.seats.get(process) is seat and not seat.watched:
            seat.watched = True
            self._loop.add_reader(seat.child.pidfd, self._died, process, seat)

    def _died(self, process: e.Process, seat: Seat) -> None:
        self._loop.remove_reader(seat.child.pidfd)
        self.shell.died(process, seat)

    def _watch_zygote(self, zygote: Zygote, incarnation: int) -> None:
        self._zygotes[zygote] = incarnation
        self._loop.add_reader(zygote.pidfd, self._zygote_died, zygote)
        if incarnation:
            self._loop.add_reader(zygote.line, self._zygote_ready, zygote)

    def _zygote_ready(self, zygote: Zygote) -> None:
        self._loop.remove_reader(zygote.line)
        if zygote.take_ready():
            self.shell.tell(self.shell.counters(), e.ZygoteReady(self._zygotes[zygote]))

    def _zygote_died(self, zygote: Zygote) -> None:
        incarnation = self._zygotes.get(zygote)
        if incarnation is None:
            return  # forgotten meanwhile
        self.shell.zygote_died(incarnation, self._end_zygote(zygote))

    def _forget_zygote(self, zygote: Zygote) -> None:
        """Another has taken its place: it did not answer."""
        if zygote in self._zygotes:
            self._end_zygote(zygote)

    def _end_zygote(self, zygote: Zygote) -> int:
        """Descriptors are given back only when nobody watches them; then their numbers may be another's."""
        del self._zygotes[zygote]
        self._loop.remove_reader(zygote.pidfd)
        self._loop.remove_reader(zygote.line)
        return zygote.close(0.0)

    # ---- messages ------------------------------------------------------------------------------------------------
    def _read_answers(self) -> None:
        for frame in self._answers.drain():
            try:
                self._answered(wire.decode(frame, wire.FROM_WORKER))
            except DvmError:
                self.shell.protocol_errors += 1

    def _answered(self, message: wire.Message) -> None:
        """From a local worker: it is up, or it planned a graph."""
        if isinstance(message, wire.Hello):
            wire.check_peer(message, _native.TABLE_HASH)
            self.shell.tell(e.WorkerReady(message.worker, message.incarnation))
        elif isinstance(message, wire.Planned | wire.Refused):
            self.shell.graph_answered(message)

    # ---- time ----------------------------------------------------------------------------------------------------
    def _tick(self) -> None:
        busy = True
        try:
            self._read_answers()
            if self.remote:
                self.remote.read()
            busy = self.shell.tick()
        except DvmError:  # the stream failed or was closed: whoever uses it is told
            busy = False
        finally:  # whatever else went wrong is reported by the loop, and supervision goes on
            if not self._stopping:
                self._loop.call_later(self._tick_s * (1 if busy else IDLE_TICKS), self._tick)


def _remote_workers(shell: Shell, listen: str) -> RemoteWorkers:
    # Here, because a start waits for our imports, and few runtimes listen.
    from dvm_rt.scheduler.remote import RemoteWorkers

    return RemoteWorkers(shell, listen)
