"""Sockets, and the only module that imports zmq: four kinds of socket for frames, and which endpoints are allowed.

Rules. A frame is bytes from `wire.encode`; nothing here looks inside. Local sockets are ipc files in a session folder,
never abstract names, never bound twice: each life of a process has its own address, so what was queued for a dead one
reaches nobody. No send blocks: credits bound every queue, not high-water marks. LINGER is 0 but for
goodbyes: what else was not delivered was leased. A listening runtime binds, workers connect; without keys only local
addresses are allowed.

The zygote imports this before it forks, so importing must not make a context (a context has threads)."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator

import zmq

from dvm_rt import config
from dvm_rt.errors import AuthError, ProtocolError, WorkerLostError
from dvm_rt.session import check_path

_HEARTBEAT_MS, _SILENCE_MS = 1000, 3000
_HANDSHAKE_MS = 2000


# ---- endpoints ------------------------------------------------------------------------------------------------------
def check_endpoint(endpoint: str) -> str:
    """The endpoint, if a pool may use it: ipc://<absolute path>, or tcp:// on this machine (there are no keys yet)."""
    from urllib.parse import urlsplit  # only who listens or connects needs it

    try:
        parts = urlsplit(endpoint)
        complete = parts.scheme == "tcp" and parts.hostname is not None and parts.port is not None
    except (AttributeError, ValueError):  # no text; a port beyond 65535
        parts = complete = None
    if parts is not None and parts.scheme == "ipc":
        return check_path(endpoint)
    if not complete:
        raise ProtocolError(f"transport: endpoint: form, got {endpoint!r}, allowed ipc:///path or tcp://127.0.0.1:port")
    if not _is_loopback(parts.hostname):
        raise AuthError(f"transport: endpoint: host, got {parts.hostname}, allowed a loopback address (there are no keys)")
    return endpoint


def _is_loopback(host: str) -> bool:
    import ipaddress  # slow to import, and workers do not need it

    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# ---- sockets --------------------------------------------------------------------------------------------------------
def make_context() -> zmq.Context:
    return zmq.Context(io_threads=1)


class _Socket:
    def __init__(self, context: zmq.Context, kind: int) -> None:
        self.socket = context.socket(kind)
        self.socket.linger = 0
        self.socket.maxmsgsize = config.integer("message_bytes_max")
        self.socket.sndhwm = self.socket.rcvhwm = 0
        self.socket.reconnect_ivl = 1  # ms: a worker binds a moment after we connect

    def fileno(self) -> int:
        """Readable when `drain` may have something. Edge triggered, and an edge is used up by sending too: so drain until
        there is nothing, also after a send."""
        return self.socket.getsockopt(zmq.FD)

    def receive(self) -> bytes:
        return self._next(0)

    def receive_within(self, timeout_s: float) -> bytes | None:
        return self._next(0) if self.socket.poll(timeout_s * 1000) else None

    def drain(self) -> Iterator[bytes]:
        """What is there now. A message of more than one frame is dropped: nobody here sends such."""
        while self.socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            yield self._next(zmq.DONTWAIT)

    def _next(self, flags: int) -> bytes:
        frame = self.socket.recv(flags)
        while self.socket.getsockopt(zmq.RCVMORE):
            self.socket.recv(flags)
            frame = b""
        return frame

    def close(self, linger_ms: int = 0) -> None:
        self.socket.close(linger=linger_ms)


class PushSocket(_Socket):
    """One way to one peer. Connects, so that sending works before the peer is up."""

    def __init__(self, context: zmq.Context, endpoint: str) -> None:
        super().__init__(context, zmq.PUSH)
        self.socket.connect(endpoint)

    def send(self, frame: bytes) -> None:
        self.socket.send(frame, zmq.DONTWAIT)


class PullSocket(_Socket):
    """The other end: binds at an address that nobody else ever had."""

    def __init__(self, context: zmq.Context, endpoint: str) -> None:
        super().__init__(context, zmq.PULL)
        self.socket.bind(endpoint)


class DealerSocket(_Socket):
    """A remote worker's line to a listening scheduler."""

    def __init__(self, context: zmq.Context, endpoint: str) -> None:
        super().__init__(context, zmq.DEALER)
        _guard(self.socket)
        self.socket.reconnect_ivl, self.socket.reconnect_ivl_max = 100, 5000
        self.socket.connect(check_endpoint(endpoint))

    def send(self, frame: bytes) -> None:
        self.socket.send(frame, zmq.DONTWAIT)


class RouterSocket(_Socket):
    """Where remote workers connect. A peer is known by the identity that the socket gave its connection."""

    def __init__(self, context: zmq.Context, endpoint: str) -> None:
        self._lock = _lock_ipc(check_endpoint(endpoint))
        super().__init__(context, zmq.ROUTER)
        _guard(self.socket)
        self.socket.router_mandatory, self.socket.router_handover = 1, 0
        umask = os.umask(0o077)
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            text = f"transport: {endpoint}: cannot be bound, got {error.strerror}, allowed an address that is free"
            raise ProtocolError(text) from None
        finally:
            os.umask(umask)
        self.endpoint: str = self.socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()

    def send(self, peer: bytes, frame: bytes) -> None:
        """Raises WorkerLostError where ROUTER would drop the frame silently."""
        try:
            self.socket.send_multipart([peer, frame], zmq.DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, zmq.EAGAIN):
                raise
            raise WorkerLostError(f"transport: remote worker: unreachable, got {error}, allowed a connected peer") from None

    def drain_peers(self) -> Iterator[tuple[bytes, bytes]]:
        """(peer, frame) of what is there now; frames of messages that have another form come as b""."""
        while self.socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            peer, *frames = self.socket.recv_multipart(zmq.DONTWAIT)
            yield peer, frames[0] if len(frames) == 1 else b""

    def close(self, linger_ms: int = 0) -> None:
        super().close(linger_ms)
        if self._lock is None:
            return
        path, handle = self._lock
        for name in (path, path + ".lock"):
            if os.path.exists(name):
                os.unlink(name)
        os.close(handle)


def _guard(socket: zmq.Socket) -> None:
    """For peers that we did not start: silence and half handshakes end connections."""
    socket.handshake_ivl = _HANDSHAKE_MS
    socket.heartbeat_ivl, socket.heartbeat_timeout, socket.heartbeat_ttl = _HEARTBEAT_MS, _SILENCE_MS, _SILENCE_MS
    socket.tcp_keepalive = 1


def _lock_ipc(endpoint: str) -> tuple[str, int] | None:
    """A second bind on the same path would succeed and steal the traffic: the lock refuses it."""
    if not endpoint.startswith("ipc://"):
        return None
    path = check_path(endpoint).removeprefix("ipc://")
    if os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise ProtocolError(f"transport: {endpoint}: path, got what is no socket, allowed a new one, or that of a dead runtime")
    try:
        handle = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ProtocolError(f"transport: {endpoint}: lock, got {error.strerror}, allowed a folder that can be written") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise AuthError(f"transport: {endpoint}: already bound, got a second runtime, allowed one") from None
    return path, handle
