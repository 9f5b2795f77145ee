"""The encoder worker: plans and graphs and operator instances in, programs and plans out.

One loop around a blocking receive. Instances are encoded natively in pieces of about 50 us, so that the first program does
not wait for the last. A local worker pushes programs into its ring to the device and counts in the control page; a remote
one sends them back. Graphs are planned by `dvm_rt.fusion`, which is imported when the first one comes. It maps no tensors
and holds nothing durable: whatever it held when it died is given to another. It may be slow, never the device: niceness
+10. Local workers are told from remote ones by their `Link` alone."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from typing import Protocol

from dvm_rt import _native, config, errors, wire
from dvm_rt.errors import DvmError, ProtocolError
from dvm_rt.transport import DealerSocket, PullSocket, PushSocket, make_context

DISMISSED, REPLACED, REFUSED = 0, 1, 3  # exit codes of a pool's worker: over; start another; nobody takes us
LEAVE_MS = 200  # for BYE to get out
IDLE_S = 0.05
RING_FULL_S = 0.0005  # the device is behind: nothing is lost by waiting this long


class Link(Protocol):
    """How messages come and answers go."""

    def receive(self) -> bytes: ...

    def receive_within(self, timeout_s: float) -> bytes | None: ...

    def answer(self, message: wire.Message) -> None: ...

    def encode(self, encoder: _native.Encoder, batch: wire.Instances, start: int) -> int:
        """Encodes from byte `start` and sends the programs; returns the byte to go on from."""


class LocalLink:
    """An inbox at our own address; answers to the client's; programs through the ring."""

    def __init__(self, inbox: str, answers: str) -> None:
        context = make_context()
        self._inbox = PullSocket(context, inbox)
        self._answers = PushSocket(context, answers)
        self._budget_us = float(config.integer("worker_budget_us"))
        self.receive, self.receive_within = self._inbox.receive, self._inbox.receive_within

    def answer(self, message: wire.Message) -> None:
        self._answers.send(wire.encode(message))

    def encode(self, encoder: _native.Encoder, batch: wire.Instances, start: int) -> int:
        end = encoder.encode(batch.body, start, self._budget_us)
        if end == start:
            time.sleep(RING_FULL_S)
        return end


class RemoteLink:
    """One socket to a listening scheduler, both ways."""

    def __init__(self, endpoint: str) -> None:
        self._socket, self._joined = DealerSocket(make_context(), endpoint), False
        self._budget_us = float(config.integer("worker_budget_us"))
        self.receive, self.receive_within = self._socket.receive, self._socket.receive_within

    def join(self) -> None:
        """HELLO until WELCOME. Raises what the scheduler refuses us with, ProtocolError if it never answers."""
        deadline = time.monotonic() + config.number("connect_s")
        while time.monotonic() < deadline:
            self.answer(hello(0, 0))
            frame = self._socket.receive_within(1.0)
            if frame is None:
                continue
            message = wire.decode(frame, wire.FROM_SCHEDULER)
            if isinstance(message, wire.Welcome):
                self._joined = True
                return
            if isinstance(message, wire.Refused):
                raise _error(message)
            raise ProtocolError(f"encoder: join: answer, got {message}, allowed WELCOME")
        raise ProtocolError(f"encoder: join: no scheduler, got silence, allowed {config.number('connect_s')} s")

    def leave(self) -> None:
        """The scheduler need not wait for our lease to end."""
        self.answer(wire.Bye("stopped"))
        self._socket.close(LEAVE_MS)

    def drain(self) -> None:
        """Nothing new: what was sent is still answered, then the scheduler says BYE. Raises _Stopped if we are not there yet."""
        if not self._joined:
            raise _Stopped
        self.answer(wire.Bye(wire.DRAINING))

    def answer(self, message: wire.Message) -> None:
        self._socket.send(wire.encode(message))

    def encode(self, encoder: _native.Encoder, batch: wire.Instances, start: int) -> int:
        end, programs = encoder.encode_programs(batch.body, start, self._budget_us)
        self.answer(wire.Programs(batch.lease, len(programs), wire.pack_programs(programs)))
        return end


class Worker:
    """Handles messages, one after another, until BYE. `plans`: graphs are expected."""

    def __init__(self, link: Link, encoder: _native.Encoder, plans: bool = False) -> None:
        self._link, self._encoder, self._plans = link, encoder, plans

    def serve(self) -> str:
        """Returns why it was told to leave."""
        frame = self._link.receive_within(IDLE_S) if self._plans else None
        if self._plans and frame is None:  # nobody is in a hurry: what the first graph would have to import is imported now
            from dvm_rt.encoder_workers import planner  # noqa: F401
        while True:
            message = wire.decode(frame or self._link.receive(), wire.FROM_SCHEDULER)
            frame = None
            if isinstance(message, wire.Bye):
                return message.why
            if isinstance(message, wire.Refused):
                raise _error(message)
            self._handle(message)

    def _handle(self, message: wire.Message) -> None:
        if isinstance(message, wire.Instances):
            start = 0
            while start < len(message.body):
                start = self._link.encode(self._encoder, message, start)
        elif isinstance(message, wire.PlanMessage):
            self._encoder.add_plan(message.plan, message.body)
        elif isinstance(message, wire.ForgetPlan):
            self._encoder.forget_plan(message.plan)
        elif isinstance(message, wire.Graph):
            self._link.answer(_planned(message))


def _planned(message: wire.Graph) -> wire.Message:
    """The plan of a graph, or why there is none. Any error of the package is an answer; anything else is a crash."""
    from dvm_rt.encoder_workers.planner import plan_graph

    try:
        return wire.Planned(message.lease, message.graph, plan_graph(message.body))
    except DvmError as error:
        return wire.Refused(message.lease, message.graph, type(error).__name__, str(error)[:1000])


def _error(message: wire.Refused) -> DvmError:
    kind = getattr(errors, message.error, DvmError)
    known = isinstance(kind, type) and issubclass(kind, DvmError)
    return (kind if known else DvmError)(message.text)


def hello(worker: int, incarnation: int) -> wire.Hello:
    host = os.uname().nodename[:64]
    return wire.Hello(wire.PROTOCOL_MAJOR, wire.PROTOCOL_MINOR, _native.TABLE_HASH, worker, incarnation, host)


def main(request: dict, fds: dict[str, int]) -> None:
    """A local worker, in a child of the zygote. `fds`: control, ring, trace."""
    os.nice(config.integer("worker_nice"))
    link = LocalLink(request["inbox"], request["answers"])
    encoder = _native.Encoder(fds["control"], fds["ring"], request["index"], fds["trace"], request["encode_work_ns"])
    link.answer(hello(request["index"], request["incarnation"]))
    Worker(link, encoder, request["plans"]).serve()


def main_remote(endpoint: str, pool: int) -> int:
    """A worker of the pool with this process number: joins, serves until the scheduler says BYE or the pool SIGTERM; after
    SIGUSR1 it drains. Returns how it ended, as exit code."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it dies with the pool
    if os.getppid() != pool:
        return REPLACED
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    os.nice(config.integer("worker_nice"))
    try:
        link = RemoteLink(endpoint)
        signal.signal(signal.SIGUSR1, lambda *_: link.drain())
        try:
            link.join()
            why = Worker(link, _native.Encoder()).serve()
        finally:
            link.leave()
    except DvmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return REFUSED
    except _Stopped:
        return DISMISSED
    return DISMISSED if why in (wire.CLOSED, wire.DRAINED) else REPLACED


class _Stopped(BaseException):
    """SIGTERM: raised wherever the worker is, also inside a blocking receive."""


def _stop(*_: object) -> None:
    raise _Stopped
