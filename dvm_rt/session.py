"""Session folders: a private place for the sockets of one runtime.

Only the owner may enter (mode 0700: that is what protects a socket, not its own mode). A folder is held by a lock on it as
long as its owner lives; what a killed owner left behind is removed by its zygote, or swept by the next start. Sockets
of each life of a process have their own names. Imports no zmq: it comes before everything else in a start."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from dvm_rt import config
from dvm_rt.errors import AuthError, ProtocolError

PATH_BYTES_MAX = 107  # of a Unix socket
REMOVALS_MAX = 50  # what is there after that is swept by the next start


class SessionDirectory:
    """A private folder for the sockets of one runtime. The lock on it lives as long as its owner."""

    def __init__(self) -> None:
        root = session_root()
        sweep(root)
        while True:
            self.path = os.path.join(root, "s-" + os.urandom(6).hex())
            os.mkdir(self.path, 0o700)
            lock = _held(self.path)
            if lock is not None:
                self._lock = lock
                return

    def worker(self, worker: int, incarnation: int) -> str:
        return check_path(f"ipc://{self.path}/e{worker}.{incarnation}")

    def answers(self) -> str:
        return check_path(f"ipc://{self.path}/answers")

    def close(self) -> None:
        remove_session(self.path)
        os.close(self._lock)


def _held(path: str) -> int | None:
    """The lock on a new folder; None: another start has swept it, as nobody held it yet."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.exists(path):
            return lock
    except BlockingIOError:
        pass  # it is being swept
    os.close(lock)
    return None


def remove_session(path: str) -> None:
    """Deletes a session folder: sockets and nothing else. A child that dies meanwhile may still bind one: then again."""
    for _ in range(REMOVALS_MAX):
        try:
            for name in os.listdir(path):
                os.unlink(os.path.join(path, name))
            os.rmdir(path)
        except FileNotFoundError:
            if not os.path.exists(path):
                return  # somebody swept it
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            time.sleep(0.005)
        else:
            return


def session_root() -> str:
    """The folder of the session folders: ours alone, and not a link."""
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR")
    default = os.path.join(runtime_dir, "dvm_rt") if runtime_dir else os.path.join(os.environ.get("TMPDIR", "/tmp"),
        f"dvm_rt-{os.getuid()}")
    root = config.text("session_root") or default
    try:
        os.makedirs(root, mode=0o700, exist_ok=True)
    except OSError as error:
        raise AuthError(f"transport: {root}: folder, got {error.strerror}, allowed one that can be made") from None
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


def check_path(endpoint: str) -> str:
    """An ipc endpoint that a Unix socket can have: no abstract names, nothing relative."""
    path = endpoint.removeprefix("ipc://")
    if not path.startswith("/") or "*" in path:
        raise ProtocolError(f"session: endpoint: path, got {path!r}, allowed an absolute path")
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise ProtocolError(f"session: endpoint: bytes of the path, got {len(os.fsencode(path))}, allowed {PATH_BYTES_MAX}")
    return endpoint
