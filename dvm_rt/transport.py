"""Sockets, and the only module that imports zmq: session folders, endpoints, and four kinds of socket for frames.

Rules. A frame is bytes from `wire.encode`; nothing here looks inside. Local sockets are ipc files in a session folder
that only its owner may enter, never abstract names, never bound twice: each life of a process has its own address, so what
was queued for a dead one reaches nobody. No send blocks: credits bound every queue, not high-water marks. LINGER is 0
everywhere: what was not delivered was leased. A listening runtime binds, workers connect; without keys only local
addresses are allowed. A session folder is held by a lock on it; what its owner left behind is swept by the next start.

The zygote imports this before it forks, so importing must not make a context (a context has threads)."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from urllib.parse import urlsplit

import zmq

from dvm_rt import config
from dvm_rt.errors import AuthError, ProtocolError, WorkerLostError

PATH_BYTES_MAX = 107  # of a Unix socket
_HEARTBEAT_MS, _SILENCE_MS = 1000, 3000
_HANDSHAKE_MS = 2000


# ---- session folders ------------------------------------------------------------------------------------------------
class SessionDirectory:
    """A private folder for the sockets of one runtime. The lock on it lives as long as its owner."""

    def __init__(self) -> None:
        root = _root()
        sweep(root)
        self.path = os.path.join(root, "session-" + os.urandom(16).hex())
        os.mkdir(self.path, 0o700)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def worker(self, worker: int, incarnation: int) -> str:
        return _checked(f"ipc://{self.path}/e{worker}.{incarnation}")

    def answers(self) -> str:
        return _checked(f"ipc://{self.path}/answers")

    def close(self) -> None:
        remove_session(self.path)
        os.close(self._lock)


def remove_session(path: str) -> None:
    """Deletes a session folder: sockets and nothing else."""
    try:
        for name in os.listdir(path):
            os.unlink(os.path.join(path, name))
        os.rmdir(path)
    except FileNotFoundError:
        pass  # somebody swept it


def _root() -> str:
    """The folder of the session folders: ours alone, and not a link."""
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR")
    default = os.path.join(runtime_dir, "dvm_rt") if runtime_dir else os.path.join(os.environ.get("TMPDIR", "/tmp"), f"dvm_rt-{os.getuid()}")
    root = config.text("session_root") or default
    os.makedirs(root, mode=0o700, exist_ok=True)
    found = os.lstat(root)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise AuthError(f"transport: {root}: owner and mode, got {found.st_uid} {found.st_mode:o}, allowed {os.getuid()} 40700")
    return root


def sweep(root: str) -> int:
    """Deletes session folders whose owner is dead: nobody holds their lock. Returns how many."""
    swept = 0
    for name in os.listdir(root):
        path = os.path.join(root, name)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_session(path)
            swept += 1
        except OSError:
            pass  # held: somebody lives there
        finally:
            os.close(handle)
    return swept


# ---- endpoints ------------------------------------------------------------------------------------------------------
def check_endpoint(endpoint: str) -> str:
    """The endpoint, if a pool may use it: ipc://<absolute path>, or tcp:// on this machine (there are no keys yet)."""
    parts = urlsplit(endpoint)
    if parts.scheme == "ipc":
        return _checked(endpoint)
    if parts.scheme != "tcp" or parts.hostname is None or parts.port is None:
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


def _checked(endpoint: str) -> str:
    path = endpoint.removeprefix("ipc://")
    if not path.startswith("/") or "*" in path:
        raise ProtocolError(f"transport: endpoint: path, got {path!r}, allowed an absolute path")
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise ProtocolError(f"transport: endpoint: bytes of the path, got {len(os.fsencode(path))}, allowed {PATH_BYTES_MAX}")
    return endpoint


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
        """Readable when `drain` may have something; edge triggered, so drain until it has nothing."""
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

    def close(self) -> None:
        self.socket.close(linger=0)


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
        super().__init__(context, zmq.ROUTER)
        _guard(self.socket)
        self.socket.router_mandatory, self.socket.router_handover = 1, 0
        self._lock = _lock_ipc(endpoint)
        umask = os.umask(0o077)
        try:
            self.socket.bind(check_endpoint(endpoint))
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

    def close(self) -> None:
        super().close()
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
    path = _checked(endpoint).removeprefix("ipc://")
    handle = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise AuthError(f"transport: {endpoint}: already bound, got a second runtime, allowed one") from None
    return path, handle
