"""The zygote: a process without threads that has imported what children need and forks them on request.

Forking it costs a few milliseconds, where starting Python costs a hundred; forking the client, which has threads and
sockets, would be unsafe. The first children are forked at once and import for themselves, beside the client; the zygote
imports for their successors as soon as nobody asks for anything: a start waits for little, a restart for nothing.

Rules. One request is one JSON object with the descriptors that its names list; the answer is the pid with the pidfd, opened
before the child can be reaped. Children are killed by the kernel when the zygote goes (PDEATHSIG; the zygote has one thread,
which forks, so the signal means what it should). The zygote goes when its line ends or the client's pidfd says that the
client is dead (a forked copy of the client may hold the line open), and removes the session folder. It ignores SIGINT and
has a session of its own, so that Ctrl-C reaches the client alone.

`Zygote` below is the client's handle on it. This module and what it imports stay light: no NumPy, no asyncio."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
from typing import NamedTuple

from dvm_rt import config
from dvm_rt.errors import PoolUnhealthyError
from dvm_rt.session import remove_session

_LINE = 3  # the zygote's end of the line is this descriptor
_REQUEST_BYTES_MAX = 16384
_FDS_MAX = 64
_ENDED_MAX = 1024
_IDLE_MS = 20
_PR_SET_PDEATHSIG = 1
_SCHED_SETATTR = 314  # system call of x86-64
_SLICE_NS = 100_000  # the shortest that Linux gives


class Child(NamedTuple):
    pid: int
    pidfd: int


# ---- the client's side ----------------------------------------------------------------------------------------------
class Zygote:
    """A zygote process, started at once; `wait_ready` before the first `fork`."""

    def __init__(self, session: str) -> None:
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            arguments = [sys.executable, "-P", "-m", "dvm_rt.zygote", str(os.getpid()), session]
            actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), _LINE)]
            self.pid = os.posix_spawn(sys.executable, arguments, child_environment(), file_actions=actions, setsid=True)
        self.pidfd = os.pidfd_open(self.pid)
        self._ready = self._closed = False

    def wait_ready(self) -> None:
        """Raises PoolUnhealthyError if it does not answer in time."""
        if not select.select([self.line], [], [], config.number("start_s"))[0] or not self.take_ready():
            raise PoolUnhealthyError(f"zygote: start: no answer, got silence or its death, allowed {config.number('start_s')} s")

    def take_ready(self) -> bool:
        """Reads the word that it is up. False: it is gone."""
        try:
            self._ready = self.line.recv(16) == b"ready"
        except ConnectionError:
            pass  # it is gone
        return self._ready

    def fork(self, request: dict[str, object], fds: dict[str, int]) -> Child | None:
        """A child that runs `request["role"]`, with these descriptors. None: the zygote is dead or cannot fork."""
        answer, pidfds = self._ask({**request, "fds": list(fds)}, list(fds.values()))
        return Child(int(answer), pidfds[0]) if answer and pidfds else None

    def was_killed(self, pid: int) -> bool:
        """Whether a child that is dead died of SIGKILL. False also where nobody knows."""
        answer, _ = self._ask({"ended": pid}, [])
        return answer == str(-signal.SIGKILL).encode()

    def _ask(self, request: dict[str, object], fds: list[int]) -> tuple[bytes, list[int]]:
        """The answer, empty if the zygote is not up yet, dead or silent."""
        if not self._ready:
            return b"", []
        try:
            socket.send_fds(self.line, [json.dumps(request).encode()], fds)
            self.line.settimeout(config.number("fork_s"))
            answer, pidfds, *_ = socket.recv_fds(self.line, 64, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return b"", []
        return answer, pidfds

    def close(self, timeout_s: float) -> int:
        """Ends it, if it is not dead already; its children go with it. Returns its exit code (negative: the signal)."""
        if self._closed:
            return 0
        self._closed = True
        self.line.close()
        if not select.select([self.pidfd], [], [], timeout_s)[0]:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.pidfd)
        return code


def child_environment() -> dict[str, str]:
    """Our environment, with this package importable where it is not installed. Children start with -P, so that nothing in
    the working directory is taken for a module."""
    import sysconfig

    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if root in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return dict(os.environ)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


# ---- the zygote's side ----------------------------------------------------------------------------------------------
def main() -> None:
    client_pid, session = int(sys.argv[1]), sys.argv[2]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = socket.socket(fileno=_LINE)
    line.set_inheritable(False)
    _take_short_turns()
    try:
        client = os.pidfd_open(client_pid)
        if os.getppid() == client_pid:  # else it died before, and the number may be somebody else's
            line.send(b"ready")
            _serve(line, client)
    except (ProcessLookupError, ConnectionError):
        pass  # the client is gone
    remove_session(session)


def _take_short_turns() -> None:
    """Who is woken on a CPU that one of us has, the client above all, waits for the end of our turn: some milliseconds, while we
    import. Turns of a tenth of that are ours to choose since Linux 6.12 (before, this changes nothing); children inherit them."""
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        attributes = struct.pack("IIQiIQQQ", 48, os.SCHED_OTHER, 0, os.getpriority(os.PRIO_PROCESS, 0), 0, _SLICE_NS, 0, 0)
        ctypes.CDLL(None).syscall(_SCHED_SETATTR, 0, attributes, 0)


def _preload() -> None:
    """What children need, imported once. None of it may start a thread."""
    import dvm_rt.encoder_workers.worker
    import dvm_rt.npu_device.device  # noqa: F401

    gc.collect()
    gc.freeze()


def _serve(line: socket.socket, client: int) -> None:
    ended: dict[int, int] = {}
    first_idle = True
    poll = select.poll()
    poll.register(line, select.POLLIN)
    poll.register(client, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll(_IDLE_MS if first_idle else 1000)}
        if not ready and first_idle:
            first_idle = False
            _preload()
        _reap(ended)
        if client in ready:
            return
        if line.fileno() not in ready:
            continue
        message, fds, *_ = socket.recv_fds(line, _REQUEST_BYTES_MAX, _FDS_MAX)
        if not message:
            return
        request = json.loads(message)
        if "ended" in request:
            line.send(str(ended.pop(request["ended"], 0)).encode())
        else:
            _fork(line, request, fds)
        for fd in fds:
            os.close(fd)


def _reap(ended: dict[int, int]) -> None:
    """The dead ones, with their exit codes; their pidfds have told the client already."""
    try:
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = os.waitstatus_to_exitcode(found[1])
    except ChildProcessError:
        pass
    while len(ended) > _ENDED_MAX:
        del ended[next(iter(ended))]


def _fork(line: socket.socket, request: dict, fds: list[int]) -> None:
    zygote = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        line.send(b"0")
        return
    if pid == 0:
        _become(line, zygote, request, dict(zip(request["fds"], fds, strict=True)))
    pidfd = os.pidfd_open(pid)
    socket.send_fds(line, [str(pid).encode()], [pidfd])
    os.close(pidfd)


def _become(line: socket.socket, zygote: int, request: dict, fds: dict[str, int]) -> None:
    """The child: it never returns."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != zygote:
            os._exit(1)
        line.close()
        os.sched_setaffinity(0, request["cpus"])
        if request["role"] == "device":
            from dvm_rt.npu_device.device import main as run
        else:
            from dvm_rt.encoder_workers.worker import main as run
        run(request, fds)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main()
