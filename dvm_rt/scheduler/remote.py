"""Remote workers of a listening runtime: the socket they connect to, who they are, what they send.

A peer is nobody until its HELLO names our protocol and instruction table; then it has a number that no other ever gets. It
is trusted for nothing: a frame that breaks the protocol, a program that it does not owe or that the device refuses ends
it, and one program in `recheck_every` is encoded again here and compared, because the verifier proves that a program is
safe, not that it means the right thing. Everything here runs on the loop's thread."""

from __future__ import annotations

import os
from collections import deque

from dvm_rt import _native, config, wire
from dvm_rt.errors import BackpressureTimeout, DvmError, ProtocolError, WorkerLostError
from dvm_rt.scheduler import events as e
from dvm_rt.scheduler.shell import Shell
from dvm_rt.transport import RouterSocket

FIRST_NUMBER = 1000  # local workers are numbered from 0
GOODBYE_MS = 200  # for the last messages to leave; a worker that never hears that we closed would wait for ever


class RemoteWorkers:
    def __init__(self, shell: Shell, endpoint: str) -> None:
        self._shell = shell
        self._socket = RouterSocket(shell.context, endpoint)
        self.endpoint = self._socket.endpoint
        self._session = os.urandom(16)
        self._numbers: dict[bytes, int] = {}
        self._peers: dict[int, bytes] = {}
        self._left: deque[bytes] = deque(maxlen=config.integer("remote_workers_max"))
        self._joined = self._seen = 0
        self._recheck_every = config.integer("recheck_every")

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> None:
        for peer, frame in self._socket.drain_peers():
            try:
                self._handle(peer, wire.decode(frame, wire.FROM_WORKER))
            except DvmError as error:
                self._shell.protocol_errors += 1
                self._refuse(peer, error)

    def _handle(self, peer: bytes, message: wire.Message) -> None:
        if isinstance(message, wire.Hello):
            self._join(peer, message)
            return
        worker = self._numbers.get(peer)
        if worker is None and peer in self._left:
            return  # sent before it read that it was dropped
        if worker is None:
            raise ProtocolError(f"scheduler: remote worker: first message, got {type(message).__name__}, allowed Hello")
        if isinstance(message, wire.Programs):
            self._programs(worker, message)
        elif isinstance(message, wire.Planned | wire.Refused):
            self._shell.graph_answered(message, worker)
        elif isinstance(message, wire.Bye):
            self._shell.tell(e.RemoteDrains(worker) if message.why == wire.DRAINING else e.RemoteLeft(worker, message.why))

    def _join(self, peer: bytes, hello: wire.Hello) -> None:
        wire.check_peer(hello, _native.TABLE_HASH)
        if peer not in self._numbers:
            most = config.integer("remote_workers_max")
            if len(self._numbers) >= most:
                raise BackpressureTimeout(f"scheduler: remote workers: connected, got {most + 1}, allowed {most}")
            self._numbers[peer] = worker = FIRST_NUMBER + self._joined
            self._peers[worker] = peer
            self._joined += 1
            self._shell.tell(e.RemoteJoined(worker))
        self._socket.send(peer, wire.encode(wire.Welcome(self._session, self._numbers[peer])))

    def _programs(self, worker: int, message: wire.Programs) -> None:
        programs = wire.unpack_programs(message.body, message.count)
        for program, data in programs:
            self._seen += 1
            if self._seen % self._recheck_every == 0 and not self._is_ours(program, data):
                raise ProtocolError(
                    f"scheduler: worker {worker}: program {program}, got other bytes, allowed those of its instance")
        self._shell.programs_received(worker, message.lease, programs)

    def _is_ours(self, program: int, data: bytes) -> bool:
        """The same bytes as we would encode. Instances that are over are not looked at: their programs are dropped anyway."""
        instance = self._shell.instance_bytes(program)
        if instance is None:
            return True
        ((_, plan, start, end),) = wire.instances(instance)
        encoder = _native.Encoder()
        encoder.add_plan(plan, self._shell.plans[plan])
        _, ((_, ours),) = encoder.encode_programs(instance[start:end])
        return ours == data

    def _refuse(self, peer: bytes, error: DvmError) -> None:
        """Tell the peer why, and forget it."""
        try:
            self._socket.send(peer, wire.encode(wire.Refused(0, 0, type(error).__name__, str(error)[:1000])))
        except WorkerLostError:
            pass  # it is gone already
        if peer in self._numbers:
            self._shell.tell(e.RemoteLeft(self._numbers[peer], str(error)))

    # ---- for the shell -------------------------------------------------------------------------------------------
    def send(self, worker: int, frame: bytes) -> None:
        peer = self._peers.get(worker)
        if peer is None:
            return  # dropped meanwhile: what was meant for it is leased anew
        try:
            self._socket.send(peer, frame)
        except WorkerLostError as error:
            self._shell.tell(e.RemoteLeft(worker, str(error)))
        self.read()  # sending may use up the descriptor's edge that says that something came

    def drop(self, worker: int, why: str) -> None:
        self._dismiss(worker, why)
        self.read()

    def close(self) -> None:
        for worker in list(self._peers):
            self._dismiss(worker, wire.CLOSED)
        self._socket.close(GOODBYE_MS)

    def _dismiss(self, worker: int, why: str) -> None:
        peer = self._peers.pop(worker, None)
        if peer is None:
            return
        del self._numbers[peer]
        self._left.append(peer)
        try:
            self._socket.send(peer, wire.encode(wire.Bye(why[:256])))
        except WorkerLostError:
            pass  # it is gone already
