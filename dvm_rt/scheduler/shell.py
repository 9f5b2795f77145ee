"""The scheduler's hands: tells `SchedulerState` what happened and does what it orders.

Owns the state, the push sockets to local workers, the children and their pidfds, the bytes of what is in workers' hands,
and the one lock around all of that. It runs on whatever thread has something to tell: the caller's (a full outbox, a wait)
or the loop's (deaths, ticks, answers). Rules. Counters are told before a death, because who was to blame is read from
them. Nothing here waits for the device or for a worker; forking a child (a few ms) is the longest thing done under the lock.
What only the loop's thread may do (watching descriptors, the sockets of remote workers) is handed over to it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dvm_rt import _native, config, errors, wire
from dvm_rt.scheduler import events as e
from dvm_rt.scheduler.limits import Limits
from dvm_rt.scheduler.placement import Placement, device_request
from dvm_rt.scheduler.policy import Costs, Situation, modelled_encode_us, who_encodes
from dvm_rt.scheduler.runs import Runs
from dvm_rt.scheduler.state import SchedulerState
from dvm_rt.session import SessionDirectory
from dvm_rt.transport import PushSocket, make_context
from dvm_rt.zygote import Child, Zygote

if TYPE_CHECKING:
    from concurrent.futures import Future


@dataclass(slots=True)
class Seat:
    """What we hold of one child."""

    child: Child
    incarnation: int
    watched: bool = False


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes of a batch of instances as it came; `even`: all of one plan, so all of one size."""

    programs: Sequence[int]
    data: bytes
    even: bool

    def of(self, run: range) -> bytes:
        """The bytes of some that follow each other."""
        if len(run) == len(self.programs):
            return self.data
        if self.even:
            each = len(self.data) // len(self.programs)
            start = self.programs.index(run.start) * each
            return self.data[start : start + len(run) * each]
        return b"".join(self.data[start:end] for program, _, start, end in wire.instances(self.data) if program in run)


@dataclass(slots=True)
class LoopPort:
    """What only the loop's thread may do, as functions that may be called from any thread."""

    watch: Callable[[e.Process, Seat], None] = lambda process, seat: None
    watch_zygote: Callable[[Zygote, int], None] = lambda zygote, incarnation: None
    forget_zygote: Callable[[Zygote], None] = lambda zygote: None
    send_remote: Callable[[int, bytes], None] = lambda worker, frame: None
    drop_remote: Callable[[int, str], None] = lambda worker, why: None


@dataclass(slots=True)
class Shared:
    """What never changes in a shell's life."""

    stream: _native.Stream
    session: SessionDirectory
    placement: Placement
    workers: int
    policy: str
    limits: Limits
    device_spin_us: float
    target: str = ""
    encode_work_ns: int = 0
    threads: int = 1  # that run kernels
    costs: Costs = field(default_factory=Costs.from_config)


class Shell:
    clock = staticmethod(time.monotonic)

    def __init__(self, shared: Shared, zygote: Zygote, device: Child | None = None) -> None:
        """`device`: the first one, if it runs already."""
        self.shared, self.stream, self.zygote = shared, shared.stream, zygote
        self._first_device = device
        self.state = SchedulerState(shared.workers, shared.policy, shared.limits, shared.costs, shared.placement.free)
        self.lock = threading.RLock()
        self.context = make_context()
        self.port = LoopPort()
        self.seats: dict[e.Process, Seat] = {}
        self.pipes: dict[int, PushSocket] = {}
        self.plans: dict[int, bytes] = {}
        self._plans_checked = 0
        self._bodies: Runs[Body] = Runs()  # of what is live in the state, and perhaps of more
        self.arriving: dict[int, bytes] = {}  # programs of remote workers that found no room yet
        self.remote_encodes = 0
        self.unpushed: list[int] = []  # to encode here as soon as there is room
        self.graphs: dict[int, tuple[bytes, Future[bytes]]] = {}
        self.last_graph = 0
        self.plans_placed = 0
        self.places: dict[int, str] = {}
        self.begin = 0
        self.protocol_errors = 0
        self.closed = False
        self._events: deque[e.Event] = deque()
        self._incoming: dict[int, bytes] = {}
        self._busy = False

    # ---- what happened -------------------------------------------------------------------------------------------
    def tell(self, *events: e.Event) -> None:
        """Handles these events, and those that doing the commands gives, in order."""
        with self.lock:
            self._events += events
            if self._busy:
                return  # a signal handler or a command of ours: whoever is inside goes on with them
            self._busy = True
            try:
                while self._events and not self.closed:
                    for command in self.state.handle(self._events.popleft(), self.clock()):
                        _DO[type(command)](self, command)
            finally:
                self._busy = False
            self.stream.outbox_limit = self.state.batch_limit

    def open(self) -> None:
        """The zygote answers: start the children."""
        self.tell(e.Opening(), e.ZygoteReady(0))

    def pump(self, waits: bool) -> None:
        """Instances are ready to leave, or somebody is about to wait for what they make."""
        with self.lock:
            if self.closed or self._busy:
                return
            body, programs, plans = self.stream.take_outbox_batch(self.shared.limits.worker_credits)
            begin, self.begin = self.begin, self.stream.launched
            if not programs:
                self.tell(self.counters(), e.Waited())
                return
            distinct = set(plans)
            for plan in distinct - self.plans.keys():
                self._learn(plan)
            self._bodies.put(programs, Body(programs, body, len(distinct) == 1))
            self.tell(self.counters(), e.InstancesArrived(programs, plans, begin, self.begin, waits))

    def _learn(self, plan: int) -> None:
        self.plans[plan] = self.stream.plan_bytes(plan)
        self.tell(e.PlanKnown(plan, modelled_encode_us(self.plans[plan])))

    def counters(self) -> e.Counters:
        return e.Counters(*self.stream.counters())

    def tick(self) -> bool:
        """What time alone brings: late batches, leases, events of the device. True: there is something to watch."""
        with self.lock:
            if self.closed:
                return False
            self._take_events()
            self._push_late()
            if self.stream.outbox_count:
                self.pump(False)
            counters = self.counters()
            self.tell(counters, e.Tick())
            if self.shared.policy == "auto":
                self._place_plans(counters.launched - counters.done)
            if len(self.plans) >= self._plans_checked + config.integer("plans_recheck"):
                self._forget_plans()
            if len(self._bodies) > 2 * len(self.state.book.live) + 1024:
                self._forget_bodies()
            return counters.launched > counters.done or bool(self.graphs or self.state.book.waiting)

    def _forget_plans(self) -> None:
        """Plans that the stream has given up are given up here and by the workers, once there are many."""
        in_use = {plan for _, batch in self.state.book.live.runs() for plan in batch.plans}
        for plan in self.plans.keys() - in_use:
            try:
                self.stream.plan_bytes(plan)
            except errors.GraphError:
                del self.plans[plan]
                self.tell(e.PlanForgotten(plan))
        self._plans_checked = len(self.plans)

    def _forget_bodies(self) -> None:
        kept: Runs[Body] = Runs()
        for live, _ in self.state.book.live.runs():
            for run, body in self._bodies.within(live):
                kept.put(run, body)
        self._bodies = kept

    def _take_events(self) -> None:
        for event in self.stream.retire():
            if event["kind"] == "PROGRAM_REFUSED" and event["got"]:
                self.tell(e.ProgramRefused(event["program"]))

    def _push_late(self) -> None:
        """What found no room in the ring."""
        if self.unpushed:
            self._encode_here(self.unpushed)
        for program, data in list(self.arriving.items()):
            if self._deliver(program, data):
                del self.arriving[program]

    def _place_plans(self, depth: int) -> None:
        """Under "auto" the stream encodes in the caller; plans that are worth it go to workers while nobody waits for them."""
        known = self.stream.stats()["plans"]
        for plan in range(self.plans_placed + 1, known + 1):
            self.plans_placed = plan
            try:
                cost = modelled_encode_us(self.stream.plan_bytes(plan))
            except errors.GraphError:
                continue  # forgotten meanwhile
            if cost > 10 * self.shared.costs.ship_us:
                self.state.plan_costs[plan] = cost
                self.places[plan] = "caller"
        for plan, place in self.places.items():
            now = Situation(self.state.plan_costs[plan], False, depth, self.shared.placement.free, self.shared.workers)
            if (choice := who_encodes("auto", now, self.shared.costs)) != place:
                self.places[plan] = choice
                self.stream.set_where(plan, choice)

    # ---- graphs --------------------------------------------------------------------------------------------------
    def want_graph(self, body: bytes) -> Future[bytes]:
        """The plan of this graph, made by a worker."""
        from concurrent.futures import Future

        with self.lock:
            self.last_graph += 1
            future: Future[bytes] = Future()
            future.set_running_or_notify_cancel()  # an answer can always be set; whoever gives up just does not look
            self.graphs[self.last_graph] = (body, future)
            self.tell(e.GraphWanted(self.last_graph))
            return future

    def graph_answered(self, message: wire.Planned | wire.Refused, worker: int | None = None) -> None:
        """`worker`: who says so; None: a local one, the lease tells which."""
        with self.lock:
            if worker is None:
                worker = next((w.number for w in self.state.book.workers.values() if w.graph == message.graph), e.HERE)
            if isinstance(message, wire.Refused):
                self.tell(e.GraphAnswered(worker, message.graph, message.error, message.text))
            elif message.graph in self.graphs:
                self.graphs[message.graph] = (message.body, self.graphs[message.graph][1])
                self.tell(e.GraphAnswered(worker, message.graph))

    def _answer_graph(self, c: e.AnswerGraph) -> None:
        plan, future = self.graphs.pop(c.graph)
        future.set_result(plan)

    def _fail_graph(self, c: e.FailGraph) -> None:
        _, future = self.graphs.pop(c.graph)
        kind = getattr(errors, c.error, None)
        known = isinstance(kind, type) and issubclass(kind, errors.DvmError)
        future.set_exception((kind if known else errors.DvmError)(c.text))

    # ---- programs ------------------------------------------------------------------------------------------------
    def programs_received(self, worker: int, lease: int, programs: list[tuple[int, bytes]]) -> None:
        """From a remote worker. The state says which of them are wanted."""
        with self.lock:
            self._incoming = dict(programs)
            self.tell(self.counters(), e.ProgramsReceived(worker, lease, tuple(p for p, _ in programs)))

    def _deliver_programs(self, c: e.DeliverPrograms) -> None:
        self.remote_encodes += len(c.programs)
        for program in c.programs:
            if not self._deliver(program, self._incoming[program]):
                self.arriving[program] = self._incoming[program]

    def _deliver(self, program: int, data: bytes) -> bool:
        """False: there is no room now."""
        return self.stream.deliver(program, data) or self.stream.program_state(program) != "encoding"

    def _do_encode_here(self, c: e.EncodeHere) -> None:
        self._encode_here([*self.unpushed, *c.programs])

    def _encode_here(self, programs: list[int]) -> None:
        self.stream.encode_here(programs)
        self.unpushed = [p for p in programs if self.stream.program_state(p) in ("encoding", "absent")]

    def _fail_program(self, c: e.FailProgram) -> None:
        self.stream.fail_program(c.program, c.error, c.text)

    def _fail_launch(self, c: e.FailLaunch) -> None:
        self.stream.fail_launch(c.seq, c.error, c.text)

    # ---- workers -------------------------------------------------------------------------------------------------
    def _send(self, worker: int, message: wire.Message) -> None:
        pipe = self.pipes.get(worker)
        if pipe:
            pipe.send(wire.encode(message))
        else:
            self.port.send_remote(worker, wire.encode(message))

    def _send_plan(self, c: e.SendPlan) -> None:
        self._send(c.worker, wire.PlanMessage(c.plan, self.plans[c.plan]))

    def _send_forget(self, c: e.SendForget) -> None:
        self._send(c.worker, wire.ForgetPlan(c.plan))

    def _send_instances(self, c: e.SendInstances) -> None:
        body = b"".join(came_in.of(run) for run, came_in in self._bodies.within(c.programs))
        self._send(c.worker, wire.Instances(c.lease, len(c.programs), body))

    def instance_bytes(self, program: int) -> bytes | None:
        """The bytes of one instance; None if it is over."""
        with self.lock:
            came_in = self._bodies.get(program)
            return came_in.of(range(program, program + 1)) if came_in else None

    def _send_graph(self, c: e.SendGraph) -> None:
        self._send(c.worker, wire.Graph(c.lease, c.graph, self.graphs[c.graph][0]))

    def _drop_worker(self, c: e.DropWorker) -> None:
        self.port.drop_remote(c.worker, c.why)

    # ---- processes -----------------------------------------------------------------------------------------------
    def _start(self, c: e.StartProcess) -> None:
        if c.process == e.ZYGOTE:
            self._start_zygote(c.incarnation)
            return
        child = self._take_first_device(c) or self.zygote.fork(*self._request(c.process, c.incarnation))
        if child is None:  # it was the zygote that died, and the child with it
            zygote = self.state.seats.seats[e.ZYGOTE]
            self._events += (e.ProcessDied(e.ZYGOTE, zygote.incarnation), e.ProcessDied(c.process, c.incarnation))
            return
        seat = self.seats[c.process] = Seat(child, c.incarnation)
        if c.process.role == "encoder":
            self._connect(c.process.index, c.incarnation)
        self.port.watch(c.process, seat)

    def _take_first_device(self, c: e.StartProcess) -> Child | None:
        if c.process != e.DEVICE:
            return None
        device, self._first_device = self._first_device, None
        return device

    def _start_zygote(self, incarnation: int) -> None:
        if incarnation == 0:
            return  # the runtime started it before anything else
        self.port.forget_zygote(self.zygote)
        self.zygote = Zygote(self.shared.session.path)
        self.port.watch_zygote(self.zygote, incarnation)

    def _connect(self, worker: int, incarnation: int) -> None:
        if old := self.pipes.get(worker):
            old.close()
        self.pipes[worker] = PushSocket(self.context, self.shared.session.worker(worker, incarnation))

    def _request(self, process: e.Process, incarnation: int) -> tuple[dict[str, object], dict[str, int]]:
        """What the zygote needs to fork this child."""
        shared, fds = self.shared, self.stream.fds
        if process == e.DEVICE:
            return device_request(self.stream, shared.placement, shared.device_spin_us, shared.target, shared.threads, incarnation)
        index, session = process.index, shared.session
        request: dict[str, object] = {
            "role": process.role, "index": index, "incarnation": incarnation, "cpus": shared.placement.encoders,
            "inbox": session.worker(index, incarnation), "answers": session.answers(),
            "encode_work_ns": shared.encode_work_ns, "plans": shared.policy != "caller",
        }  # fmt: skip
        return request, {"control": fds["control"], "ring": fds["rings"][1 + index], "trace": fds["traces"][1 + index]}

    def _kill(self, c: e.KillProcess) -> None:
        self.signal(c.process, signal.SIGKILL)

    def signal(self, process: e.Process, number: int) -> None:
        """Through the pidfd, so that it can only reach the process that is meant."""
        with self.lock:
            seat = self.seats.get(process)
            pidfd = self.zygote.pidfd if process == e.ZYGOTE else seat.child.pidfd if seat else -1
            try:
                signal.pidfd_send_signal(pidfd, number)
            except (ProcessLookupError, OSError):
                pass  # dead already: its pidfd tells the loop

    def _inspect(self, c: e.InspectProcess) -> None:
        seat = self.seats.get(c.process)
        self._events.append(e.Inspected(c.process, *_kernel_says(seat.child.pid) if seat else ("gone", 0.0)))

    def died(self, process: e.Process, seat: Seat) -> None:
        """Its pidfd is readable, and given back here."""
        with self.lock:
            if self.seats.get(process) is not seat:
                return  # closed meanwhile
            del self.seats[process]
            os.close(seat.child.pidfd)
            self._tell_death(process, seat.incarnation, self.zygote.was_killed(seat.child.pid))

    def zygote_died(self, incarnation: int, code: int) -> None:
        with self.lock:
            if not self.closed:
                self._tell_death(e.ZYGOTE, incarnation, code == -signal.SIGKILL)

    def _tell_death(self, process: e.Process, incarnation: int, killed: bool) -> None:
        """Counters first: they are final now, and say what it was doing."""
        self._take_events()
        self.tell(self.counters(), e.ProcessDied(process, incarnation, killed))

    def _replay(self, _: e.ReplayDevice) -> None:
        self.stream.device_lost(encode_all=False)  # what workers have in hand is leased, and may be poison

    def _ring_bells(self, _: e.RingBells) -> None:
        self.stream.wake_all()

    def _fail_runtime(self, c: e.FailRuntime) -> None:
        self.stream.fail("PoolUnhealthyError", c.text)

    # ---- the end -------------------------------------------------------------------------------------------------
    def close(self, timeout_s: float) -> None:
        """Ends every child. They hold nothing durable: ending them is killing them."""
        with self.lock:
            self.tell(e.Closing())
            self.closed = True
            for _, future in self.graphs.values():
                future.set_exception(errors.ClosedError("runtime: plan: closed meanwhile, got close(), allowed before it"))
            self.graphs.clear()
            for process in self.seats:
                self.signal(process, signal.SIGKILL)
            for seat in self.seats.values():
                _wait_for(seat.child.pidfd, timeout_s)
                os.close(seat.child.pidfd)
            self.seats.clear()
            self.zygote.close(timeout_s)
            if self._first_device is not None:  # we were never open: it has died with the zygote
                os.close(self._first_device.pidfd)
            for pipe in self.pipes.values():
                pipe.close()
            self.context.destroy(linger=0)
            self.port = LoopPort()  # the loop, which ended before us, holds us


def _wait_for(pidfd: int, timeout_s: float) -> bool:
    import select

    return bool(select.select([pidfd], [], [], timeout_s)[0])


def _kernel_says(pid: int) -> tuple[str, float]:
    """What a process does (waiting for a disk counts as running), and the CPU seconds that it has used."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            letter = file.read().rpartition(b") ")[2][:1]
        what = {b"R": "running", b"D": "running", b"T": "stopped", b"t": "stopped", b"Z": "gone"}.get(letter, "sleeping")
        return what, time.clock_gettime((~pid << 3) | 2)  # the process's own CPU-time clock
    except OSError:
        return "gone", 0.0


_DO: dict[type, Callable[[Shell, e.Command], None]] = {
    e.SendPlan: Shell._send_plan,
    e.SendForget: Shell._send_forget,
    e.SendInstances: Shell._send_instances,
    e.EncodeHere: Shell._do_encode_here,
    e.DeliverPrograms: Shell._deliver_programs,
    e.SendGraph: Shell._send_graph,
    e.AnswerGraph: Shell._answer_graph,
    e.FailGraph: Shell._fail_graph,
    e.FailProgram: Shell._fail_program,
    e.FailLaunch: Shell._fail_launch,
    e.StartProcess: Shell._start,
    e.KillProcess: Shell._kill,
    e.DropWorker: Shell._drop_worker,
    e.InspectProcess: Shell._inspect,
    e.ReplayDevice: Shell._replay,
    e.RingBells: Shell._ring_bells,
    e.FailRuntime: Shell._fail_runtime,
}
