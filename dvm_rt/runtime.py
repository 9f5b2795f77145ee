"""Runtimes: the client's end of everything. Starts, watches and stops the processes, or none (inline).

`Runtime.stream` is the native stream: recording, encoding known plans, launching and waiting happen there, on the caller's
thread. With processes, a zygote forks one device and N encoder workers; a loop's thread supervises. Rules. Nothing of a start
is waited for that is not needed (starting.py). A runtime is entered by `with`, `async with`, or not
at all (then it is used by name). `current()` is the innermost one entered in this context, else an inline runtime
that is made when first asked for; inline runtimes have no children, sockets or threads. After a fork the child has its
own inline runtime; a runtime with processes refuses it. close() ends every process and takes at most about a second.

Importing this is cheap: zmq, asyncio, uvloop and NumPy are imported by what needs them."""

from __future__ import annotations

import atexit
import os
import signal as signals
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Generator
from contextvars import ContextVar, Token
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dvm_rt import config
from dvm_rt.errors import ClosedError, DeviceTimeoutError, DvmError, ForkedClientError

if TYPE_CHECKING:
    from concurrent.futures import Future
    from dvm_rt import _native
    from dvm_rt.scheduler.shell import Shell
    from dvm_rt.session import SessionDirectory
    from dvm_rt.starting import Scheduler, Starting
    from dvm_rt.turns import Deadline, Turns
    from dvm_rt.waiting import Waiters
    from dvm_rt.zygote import Child, Zygote

Result = TypeVar("Result")
SPIN_ASYNC_US = 20.0
SPIN_OWED_US = 20.0  # on two CPUs, a caller that spins longer keeps the encoder from what it waits for
ENCODERS_MAX = 8


class Runtime:
    """One stream of launches and the processes behind it.

    encoders: encoder workers, 0 to 8. inline: no processes at all. encode: who encodes instances of known plans: "auto",
    "workers" or "caller" (the bytes are the same). listen: an endpoint for remote workers (ipc:///path or
    tcp://127.0.0.1:port; port 0 picks one, see `endpoint`). Other arguments override rows of config.py: arena_bytes_max
    (bytes), spin_us, lease_s, threads (that run kernels; the bytes do not depend on it; 0 or nothing: one inline, else the
    CPUs that this process may use less one for the caller and one for each encoder, at least one). target: the instruction set,
    "baseline", "avx2" or "avx512" (the bytes are the same); "": the best that is here. encode_work_ns makes each encode that much
    dearer, for experiments. cache: a folder in which plans and their programs are kept for the next process, written
    by save() and close(); see array/plan_cache.py.
    Raises DvmError for values out of range, PoolUnhealthyError if the processes do not start."""

    def __init__(
        self,
        encoders: int = 1,
        inline: bool = False,
        encode: str | None = None,
        *,
        arena_bytes_max: int | None = None,
        listen: str | None = None,
        spin_us: int | None = None,
        lease_s: float | None = None,
        target: str | None = None,
        encode_work_ns: int = 0,
        threads: int | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self._pid, self._closed, self._tokens = os.getpid(), False, list[Token]()
        self.inline = inline
        self.cache = None if cache is None else _folder(cache)
        if inline and listen is not None:
            raise DvmError(f"runtime: listen: an inline runtime, got {listen!r}, allowed runtimes with processes")
        if type(encode_work_ns) is not int or not 0 <= encode_work_ns < 1 << 50:
            raise DvmError(f"runtime: encode_work_ns: out of range, got {encode_work_ns!r}, allowed 0 to 2^50 ns")
        self.before_close: list[Callable[[], None]] = []  # what the layers above want to be written down
        self.encode = str(_row("encode", encode))
        if type(encoders) is not int or not 0 <= encoders <= ENCODERS_MAX:
            raise DvmError(f"runtime: encoders: out of range, got {encoders!r}, allowed 0 to {ENCODERS_MAX}")
        self.encoders = 0 if inline else encoders
        self._starting: Starting | None = None
        self._waiters: Waiters | None = None
        self._turns: Turns | None = None
        self._lock = threading.Lock()
        options = {"arena_bytes_max": _row("arena_bytes_max", arena_bytes_max), "target": _row("target", target)}
        self.threads = self._count_threads(_row("threads", threads))
        if inline:
            from dvm_rt import _native

            self.stream: _native.Stream = _native.Stream(inline=True, threads=self.threads,
                                                         loop_s=config.number("loop_s"),
                                                         tune=bool(config.integer("tune")), **options)
        else:
            self._start(options, _row("spin_us", spin_us), _row("lease_s", lease_s), listen, encode_work_ns)
        _open_runtimes.add(self)

    def _count_threads(self, asked: int) -> int:
        return asked or (1 if self.inline else max(1, len(os.sched_getaffinity(0)) - 1 - self.encoders))

    def release_sources(self) -> int:
        """Gives up the memory of the matrices that products have packed, and from now on of each as soon as it is packed: weights
        then are there once. Returns the bytes that this has freed now. Such an array stays what it was: whoever reads it, or
        computes with it otherwise, gets it unpacked. What was read as a NumPy array keeps its memory."""
        return self.stream.release_sources()

    # ---- starting ------------------------------------------------------------------------------------------------
    def _start(self, options: dict[str, Any], spin_us: float, lease_s: float, listen: str | None, encode_work_ns: int) -> None:
        from dvm_rt.session import SessionDirectory
        from dvm_rt.zygote import Zygote

        self._directory = SessionDirectory()
        zygote = Zygote(self._directory.path)  # it imports while we do
        try:
            self._start_parts(zygote, options, spin_us, lease_s, listen, encode_work_ns)
        except BaseException:
            if self._starting is None:
                zygote.close(0.0)
            else:
                self._stop_parts()
            self._directory.close()
            raise

    def _start_parts(
        self, zygote: Zygote, options: dict[str, Any], spin_us: float, lease_s: float, listen: str | None, work_ns: int
    ) -> None:
        from dvm_rt import _native
        from dvm_rt.scheduler.placement import Placement, device_request
        from dvm_rt.starting import Starting

        cpus = os.sched_getaffinity(0)
        alone = len(cpus) == 1
        if self.encode == "workers" and len(cpus) <= 2:
            spin_us = min(spin_us, SPIN_OWED_US)
        self.stream = _native.Stream(
            inline=False, workers=self.encoders, ring_bytes=config.integer("ring_bytes"), spin_us=0.0 if alone
            else float(spin_us),
            credit_timeout_s=config.number("wait_s"), encode_mode=self.encode, ahead_depth=config.integer("ahead_depth"),
            ahead_branches=config.integer("ahead_branches"), ahead_max=config.integer("ahead_max"), **options,
        )  # fmt: skip
        self.stream.set_encode_work_ns(work_ns)
        place, spin_us = Placement.of(cpus, self.threads), 0.0 if alone else float(config.integer("device_spin_us"))
        shared = (place, self.encoders, self.encode, lease_s, spin_us, options["target"], work_ns, self.threads)
        device = device_request(self.stream, place, spin_us, options["target"], self.threads)
        self._starting = Starting(self.stream, zygote, device, _scheduler(self.stream, self._directory, zygote, listen, shared),
                                  0.0 if self.encode == "workers" else config.number("scheduler_after_s"))
        self.stream.set_outbox_pump(_weak_pump(self._starting))
        if listen is not None:
            self._starting.shell()

    @property
    def _shell(self) -> Shell | None:
        """Waits for the scheduler, if it is not there yet."""
        return None if self._starting is None else self._starting.shell()

    # ---- entering ------------------------------------------------------------------------------------------------
    def __enter__(self) -> Runtime:
        self._check_open()
        self._tokens.append(_active.set(self))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            _active.reset(self._tokens.pop())
        except ValueError:
            pass  # left in another task or thread than entered: there it was never the current one
        self.close()

    async def __aenter__(self) -> Runtime:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()

    # ---- working -------------------------------------------------------------------------------------------------
    async def run(
        self, function: Callable[..., Result | Awaitable[Result]], *args: object, deadline_s: float | None = None
    ) -> Result:
        """Calls `function(*args)` with this runtime as the current one (and awaits it, if it is a coroutine), then waits, in
        the running event loop, until everything that it launched, or returned without having launched it, is done.

        Requests share the runtime (turns.py): `requests_max` of them run at once, and take turns where they await; a plain
        function runs in one go. A request that is cancelled stops where it awaits; after `deadline_s` seconds it stops at its
        next launch, or where it waits, with DeviceTimeoutError. Raises BackpressureTimeout where too many wait."""
        self._check_open()
        if not callable(function):
            raise DvmError(f"runtime: run: function, got {type(function).__name__}, allowed functions and coroutine functions")
        deadline = self._deadline(deadline_s)
        turns = self._get_turns()
        await turns.take(config.number("wait_s") if deadline is None else deadline.left_s())
        try:
            return await self._run(function, args, deadline)
        finally:
            turns.give()

    def _deadline(self, seconds: float | None) -> Deadline | None:
        from dvm_rt.turns import Deadline

        if seconds is None:
            return None
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e9:
            raise DvmError(f"runtime: run: deadline_s, got {seconds!r}, allowed seconds above 0")
        return Deadline(float(seconds))

    async def _run(self, function: Callable[..., Result | Awaitable[Result]], args: tuple, deadline: Deadline | None) -> Result:
        token = _active.set(self)
        try:
            result = function(*args) if deadline is None else deadline.call(function, *args)
            if hasattr(result, "__await__"):
                result = await (result if deadline is None else deadline.wait(result))
            _launch(result) if deadline is None else deadline.call(_launch, result)
        finally:
            _active.reset(token)
        if deadline is None:
            await self.reached()
        else:
            await deadline.wait(self.reached())
        return result  # type: ignore[return-value]

    def _get_turns(self) -> Turns:
        from dvm_rt.turns import Turns

        with self._lock:
            if self._turns is None:
                self._turns = Turns(config.integer("requests_max"), config.integer("requests_waiting_max"))
            return self._turns

    async def reached(self, seq: int | None = None, timeout_s: float | None = None, turn: bool = True) -> None:
        """Waits in the running event loop until launch `seq` (default: the last one so far) is done. Values are read
        without waiting then. `turn`: others have one first, also where nothing has to be waited for. Raises
        DeviceTimeoutError, PoolUnhealthyError, ClosedError."""
        self._check_open()
        seq = self.stream.launched if seq is None else seq
        if turn:
            await _Turn()
        if self.stream.done < seq:
            if self._starting is None:
                self.stream.wait(seq)  # another thread is inside the launch
                return
            self.stream.run_ahead(seq)
            if self._starting.scheduler is not None or self.stream.outbox_count:
                self._shell.pump(True)
            waiters, limit_s = self._get_waiters(), config.number("wait_s") if timeout_s is None else timeout_s
            spins = not waiters.others_wait()  # else it would only keep those from running who come after it
            if not (spins and self._spin(seq)) and not await waiters.wait(seq, limit_s):
                raise DeviceTimeoutError(
                    f"runtime: reached: seconds for launch {seq}, got {limit_s} ({self.stream.done} are done), "
                    "allowed more"
                )
        if self._waiters is not None:
            await self._waiters.let_others_go_first()

    async def all_are_here(self) -> bool:
        """Whether no task of the running loop waits for a launch, after those whose launches are done have had their turn."""
        return await self._get_waiters().all_are_here()

    def _spin(self, seq: int) -> bool:
        end_ns = time.perf_counter_ns() + int(SPIN_ASYNC_US * 1e3)
        while time.perf_counter_ns() < end_ns:
            if self.stream.done >= seq:
                return True
        return False

    def _get_waiters(self) -> Waiters:
        from dvm_rt.waiting import Waiters

        with self._lock:
            if self._waiters is None:
                self._waiters = Waiters(self.stream)
            return self._waiters

    def plan_ahead(self, graph: tuple) -> Future[bytes]:
        """Has a worker plan a graph (`Graph.to_wire()`), while the caller goes on: the bytes of its plan, to be registered
        with the stream. Without workers it is planned here and now. The future raises what planning raises."""
        from concurrent.futures import Future

        from dvm_rt import wire

        self._check_open()
        body = wire.pack_tree(graph)
        if self._shell is not None and self.encoders:
            return self._shell.want_graph(body)
        from dvm_rt.encoder_workers.planner import plan_graph

        future: Future[bytes] = Future()
        try:
            future.set_result(plan_graph(body))
        except DvmError as error:
            future.set_exception(error)
        return future

    @property
    def planners(self) -> int:
        """Workers that plan graphs while the caller goes on: none before there is a scheduler that gives them any."""
        return 0 if self._starting is None or self._starting.scheduler is None else self.encoders

    @property
    def graphs_waiting(self) -> int:
        """Graphs that workers are planning, or are to plan."""
        return len(self._starting.scheduler.shell.graphs) if self.planners else 0

    def save(self) -> None:
        """Writes plans and programs into the folder `cache`, if there is one, as close() does."""
        self._check_open()
        for act in self.before_close:
            act()

    # ---- looking -------------------------------------------------------------------------------------------------
    @property
    def endpoint(self) -> str | None:
        """Where remote workers connect, if this runtime listens."""
        scheduler = self._starting and self._starting.scheduler
        return scheduler.loop.remote.endpoint if scheduler and scheduler.loop.remote else None

    def stats(self) -> dict[str, Any]:
        """Counters of the stream, then: who encoded how many, deaths and recoveries, all in one dict. Times in ns."""
        self._check_open()
        out = self.stream.stats()
        workers = out.get("workers", [])
        shell = self._shell
        remote = shell.remote_encodes if shell else 0
        out["encodes"] = {"caller": out["encoded"], "workers": [w["encoded"] for w in workers], "remote": remote}
        out["encode"], out["inline"], out["encoders"] = self.encode, self.inline, self.encoders
        out["threads"] = self.threads
        out["launches"] = out["launched"]
        turns = self._turns
        out["requests"] = {"running": turns.running, "waiting": turns.waiting, "refused": turns.refused} if turns else {}
        state = shell.state if shell else None
        out["deaths"] = state.deaths if state else 0
        out["recoveries"] = state.recoveries if state else 0
        out["remote_workers"] = sum(w.remote for w in list(state.book.workers.values())) if state else 0
        out["protocol_errors"] = shell.protocol_errors if shell else 0
        return out

    def trace(self, path: str | Path) -> int:
        """Writes what is in the processes' trace rings as Chrome / Perfetto JSON. Returns the number of spans."""
        from dvm_rt import trace

        self._check_open()
        tracks = range(1 if self.inline else 2 + self.encoders)
        found = [s for track in tracks for s in trace.spans(track, self.stream.trace_records(track))]
        notes = self._shell.state.notes() if self._shell else []
        return trace.write(path, found, notes)

    def story(self, program: int) -> str:
        """What the scheduler remembers of one program."""
        return self._shell.state.story(program) if self._shell else "inline: encoded by the caller"

    def kill(self, role: str, signal: int = signals.SIGKILL, index: int = 0) -> None:
        """Sends a signal to the process of a role ("encoder", "device", "zygote"): for tests."""
        from dvm_rt.scheduler.events import Process

        self._check_open()
        if self._shell is None:
            raise DvmError(f"runtime: kill: inline, got {role}, allowed a runtime with processes")
        self._shell.signal(Process(role, index), signal)

    def pids(self) -> dict[str, int]:
        """Process numbers by role ("encoder 0", ...), for tests and for those who look."""
        self._check_open()
        if self._shell is None:
            return {}
        with self._shell.lock:
            return {"zygote": self._shell.zygote.pid, **{str(p): s.child.pid for p, s in self._shell.seats.items()}}

    # ---- ending --------------------------------------------------------------------------------------------------
    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Ends every process. Twice is once. Whatever is used after that raises ClosedError."""
        if self._closed:
            return
        if self._pid != os.getpid() and not self.inline:
            raise ForkedClientError(
                "runtime: close: made before a fork, got a call in the child, "
                "allowed only in the process that made it"
            )
        for act in self.before_close:
            act()
        self._closed = True
        _open_runtimes.discard(self)
        self._stop_parts()
        if not self.inline:
            self._directory.close()

    def _stop_parts(self) -> None:
        if self._starting is not None:
            scheduler = self._starting.stop()
            if scheduler is not None:
                scheduler.loop.stop()
            self.stream.set_outbox_pump(None)
            if scheduler is not None:
                scheduler.shell.close(config.number("close_s"))
            else:
                self._starting.end(config.number("close_s"))
        self.stream.close()
        if self._waiters is not None:
            self._waiters.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("runtime: call: closed, got a call, allowed none after close()")
        if self._pid != os.getpid() and not self.inline:
            raise ForkedClientError(
                "runtime: call: made before a fork, got a call in the child, "
                "allowed only in the process that made it"
            )


class _Turn:
    """Awaited: other tasks have their turn, also where nothing has to be waited for."""

    def __await__(self) -> Generator[None, None, None]:
        yield


def _launch(result: object) -> None:
    """Lazy arrays in a result are launched: they have a method for it. (This layer does not know arrays.)"""
    if hasattr(result, "__dvm_launch__"):
        result.__dvm_launch__()
    elif isinstance(result, list | tuple):
        for part in result:
            _launch(part)
    elif isinstance(result, dict):
        _launch(list(result.values()))


def _row(name: str, value: config.Value | None) -> Any:
    """An argument, checked against its row of the configuration; None: the row."""
    if value is not None:
        return config.check(name, value, "runtime")
    kinds = {int: config.integer, float: config.number, str: config.text}
    return kinds[type(config.default(name))](name)


def _folder(path: object) -> Path:
    """Where plans are kept. Raises DvmError for what names no folder, and for a file."""
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise DvmError(f"runtime: cache: no path, got {path!r}, allowed a folder, or where one can be made")
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise DvmError(f"runtime: cache: a file, got {str(path)!r}, allowed a folder, or where one can be made")
    return folder


def _scheduler(
    stream: _native.Stream, directory: SessionDirectory, zygote: Zygote, listen: str | None, shared: tuple
) -> Callable[[Child | None], Scheduler]:
    """Makes the scheduler. It must not keep the runtime alive."""

    def make(device: Child | None) -> Scheduler:
        from dataclasses import replace

        from dvm_rt.scheduler.limits import Limits
        from dvm_rt.scheduler.loop import SchedulerLoop
        from dvm_rt.scheduler.shell import Shared, Shell
        from dvm_rt.starting import Scheduler

        place, workers, policy, lease_s, *rest = shared
        limits = replace(Limits.from_config(), lease_s=lease_s)
        shell = Shell(Shared(stream, directory, place, workers, policy, limits, *rest), zygote, device)
        try:
            loop = SchedulerLoop(shell, listen)
            shell.open()
            loop.start()
        except BaseException:
            shell.close(0.0)
            raise
        return Scheduler(shell, loop)

    return make


def _weak_pump(starting: Starting) -> Callable[[bool], None]:
    """The stream must not keep the scheduler alive, which keeps the stream."""
    found = weakref.ref(starting)

    def pump(waits: bool) -> None:
        alive = found()
        if alive is not None:
            alive.shell().pump(waits)

    return pump


# ---- the current runtime --------------------------------------------------------------------------------------------
_active: ContextVar[Runtime | None] = ContextVar("dvm_rt.runtime", default=None)
_open_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()
_default: Runtime | None = None
_of_parents: list[Runtime] = []  # in a forked child: their arrays say that they were made before the fork
_default_lock = threading.Lock()


def current() -> Runtime:
    """The innermost runtime entered in this thread or task, else the inline one."""
    return _active.get() or _default or _make_default()


def _make_default() -> Runtime:
    global _default
    with _default_lock:
        if _default is None:
            _default = Runtime(inline=True)
        return _default


def _forget_default() -> None:
    """In a forked child: its memory is shared with the parent's, so the child makes its own."""
    global _default, _default_lock
    if _default is not None:
        _of_parents.append(_default)
    _default, _default_lock = None, threading.Lock()


@atexit.register
def _close_all() -> None:
    for runtime in list(_open_runtimes):
        if runtime._pid == os.getpid() and not runtime.inline:
            runtime.close()


os.register_at_fork(after_in_child=_forget_default)
