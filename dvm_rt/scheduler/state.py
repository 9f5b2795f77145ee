"""The scheduler's decisions, pure: an event and the time come in, commands come out.

Owns which worker gets which batch, who is late and to blame, what is sent again, what is given up. Rules.
- No sockets, clocks, randomness: the same events give the same commands. Two shells drive it, the runtime and the simulator.
- Everything that is sent is leased, whatever the reason for sending it; leases move only when the holder's death is
  certain. Local counters end leases; no acknowledgement travels.
- The lease clock runs only while launches are outstanding and nothing is committed. A process's word about itself counts
  only if another's counter confirms it: "I miss a program" blames a worker only if that worker's own count says that it
  owes that program and the kernel does not say that the device is stopped; and when more workers were replaced in vain than
  one bad instance explains, the device goes.
- A worker that dies over an instance that it had begun makes the instance a suspect: it is sent alone from then on.
  `solo_deaths_max` deaths over it make it poison, and its launches fail. A suspect is never encoded in the caller, who
  would die of it too; everything else can be, since the caller knows all plans: what was lost with a device is.
- After every death all bells ring.
Instances: waiting -> encoding -> ready -> running -> done, or failed (`book.py`). `validate()` checks every invariant,
`story()` tells what happened to one instance. Does not know bytes: commands name what the shell holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from dvm_rt.scheduler import events as e
from dvm_rt.scheduler.book import Batch, Book, Worker, hold
from dvm_rt.scheduler.graphs import Graphs
from dvm_rt.scheduler.limits import Limits
from dvm_rt.scheduler.policy import Costs, Situation, who_encodes
from dvm_rt.scheduler.seats import Seats
from dvm_rt.scheduler.watch import Watch
from dvm_rt.wire import DRAINED

BATCH_GROWTH = 8  # from one message to the next: what one costs on its way encodes some hundred instances


class SchedulerState:
    def __init__(self, workers: int, policy: str = "auto", limits: Limits = Limits(), costs: Costs = Costs(),
                 free_cpus: int = 0) -> None:
        self.policy, self.limits, self.costs, self.free_cpus = policy, limits, costs, free_cpus
        self.book = Book()
        encoders = [e.Process("encoder", i) for i in range(workers)]
        self.seats = Seats([e.ZYGOTE, e.DEVICE, *encoders], limits.deaths_max, limits.restarts_max, limits.restart_window_s)
        self.book.workers = {i: Worker(i, up=False) for i in range(workers)}
        self.batch_limit = 1
        self.plan_costs: dict[int, float] = {}
        self.graphs = Graphs()
        self.counters = e.Counters(0, 0, 0, False, ((0, 0),) * workers)
        self.progress_at = 0.0  # last commit, or the last moment with nothing to commit
        self.device_moved_at = 0.0  # the device could go on since then
        self.ticked_at = self.client_late_at = 0.0  # the last tick; the last one before which we had no CPU for too long
        self.marks = {e.DEVICE: 0, e.ZYGOTE: 0}  # `done` when they last died
        self.blames = 0  # of workers, since the last commit
        self.watches: dict[e.Process, Watch] = {}
        self.unhealthy = ""
        self.opened = self.closing = False
        self.deaths, self.recoveries, self.ignored = 0, 0, 0
        self._log: deque[tuple[float, str, Sequence[int]]] = deque(maxlen=limits.story_length)

    def handle(self, event: e.Event, now: float) -> list[e.Command]:
        """What to do about `event`, in this order. `now`: seconds of a clock that never goes back."""
        if self.closing or self.unhealthy:
            return []
        out = getattr(self, _HANDLERS[type(event)])(event, now)
        if not (self.closing or self.unhealthy):
            out += self._ship(now)
            out += self._ship_graphs(now)
            out += self._drained(now)
        return out

    # ---- instances -----------------------------------------------------------------------------------------------
    def _arrived(self, event: e.InstancesArrived, now: float) -> list[e.Command]:
        new = self.book.arrive(event.programs, event.plans, event.begin, event.seq)
        if new:
            self._note(now, "arrived", new)
        if not event.waited:
            return []
        return self._ship(now, waited=True) + self._waited(e.Waited(), now)

    def _waited(self, _: e.Waited, now: float) -> list[e.Command]:
        self.batch_limit = 1
        return []

    def _ship(self, now: float, waited: bool = False) -> list[e.Command]:
        """Lease what waits, as far as credits go."""
        out: list[e.Command] = []
        while self.book.suspects and (worker := self._quarantine()) and not worker.backlog:
            out += self._lease(worker, self.book.suspects.popleft(), now)
        while self.book.waiting:
            if self._encodes_here(self.book.waiting[0], waited):
                out.append(self._encode_here(self.book.waiting.popleft(), now))
                continue
            worker = self._least_loaded()
            if worker is None:
                break
            room = self.limits.worker_credits - worker.backlog
            out += self._lease(worker, self.book.take(min(self.batch_limit, room)), now)
            self.batch_limit = min(BATCH_GROWTH * self.batch_limit, self.limits.batch_max)
        return out

    def _lease(self, worker: Worker, batch: Batch, now: float) -> list[e.Command]:
        new_plans = set(batch.plans) - worker.plans
        worker.plans |= new_plans
        if not worker.backlog:
            worker.moved_at = now
        lease = self.book.lease(worker.number, batch)
        self._note(now, f"leased to worker {worker.number} as {lease.number}", batch.programs)
        send = e.SendInstances(worker.number, lease.number, batch.programs)
        return [*(e.SendPlan(worker.number, plan) for plan in sorted(new_plans)), send]

    def _encode_here(self, batch: Batch, now: float) -> e.Command:
        self.book.lease(e.HERE, batch)
        self._note(now, "encoded here", batch.programs)
        self._device_can_go_on(batch.programs, now, {self.counters.waiting_program})
        return e.EncodeHere(batch.programs)

    def _encodes_here(self, batch: Batch, waited: bool) -> bool:
        """Whether the caller encodes a waiting batch; its dearest plan counts."""
        depth = batch.begin - self.counters.done
        workers = sum(w.takes or not w.remote for w in self.book.workers.values())
        cost_us = max(self.plan_costs.get(plan, 0.0) for plan in set(batch.plans))
        return who_encodes(self.policy, Situation(cost_us, waited, depth, self.free_cpus, workers), self.costs) == "caller"

    def _least_loaded(self) -> Worker | None:
        """The worker that gets the next batch: up, with credit, not planning, not kept apart for a suspect."""
        apart = self._quarantine() if self.book.suspects else None
        able = [
            w for w in self.book.workers.values()
            if w.takes and w is not apart and w.backlog < self.limits.worker_credits and not (w.leases and w.leases[0].suspect)
        ]  # fmt: skip
        return min(able, key=lambda w: (w.graph is not None, w.backlog, w.number), default=None)

    def _quarantine(self) -> Worker | None:
        up = [w for w in self.book.workers.values() if w.takes]
        return min(up, key=lambda w: (w.backlog, w.graph is not None, w.number), default=None)

    # ---- counters ------------------------------------------------------------------------------------------------
    def _counted(self, event: e.Counters, now: float) -> list[e.Command]:
        before, self.counters = self.counters, event
        if event.done != before.done:
            self._progress(now)
        if before.done >= before.launched or event.done >= event.launched:
            self.progress_at = now  # nothing was outstanding until now
        waited_for = {before.waiting_program, event.waiting_program} - {0}  # it may have taken since what was answered
        for number, (received, encoded) in enumerate(event.workers):
            worker = self.book.workers[number]
            if worker.up:
                worker.begun = received - worker.born_received
                self._answered(worker, encoded, now, waited_for)
        for lease in self.book.finish(event.done):
            self._note(now, f"done, lease {lease.number}", lease.programs)
        return []

    def _progress(self, now: float) -> None:
        self.progress_at, self.blames = now, 0

    def _answered(self, worker: Worker, encoded: int, now: float, waited_for: set[int]) -> None:
        if encoded <= worker.encoded:
            return
        worker.moved_at = now
        for programs in self.book.answer(worker, encoded):
            self._note(now, f"encoded by worker {worker.number}", programs)
            self._device_can_go_on(programs, now, waited_for)

    def _device_can_go_on(self, programs: Sequence[int], now: float, waited_for: set[int]) -> None:
        if any(program in programs for program in waited_for):
            self.device_moved_at = now

    # ---- who is late ---------------------------------------------------------------------------------------------
    def _tick(self, _: e.Tick, now: float) -> list[e.Command]:
        out: list[e.Command] = []
        if now - self.ticked_at > self.limits.lease_s / 3:
            self.client_late_at = now
        self.ticked_at = now
        if self.counters.done >= self.counters.launched:
            self.progress_at = now
        elif suspect := self._suspect():
            out += self._look_at(suspect, now)
        for worker in list(self.book.workers.values()):
            if worker.graph is not None:
                out += self._look_at(e.Process("encoder", worker.number), now)
        return out

    def _suspect(self) -> e.Process | None:
        """Who owes the next commit; None: nobody that is there."""
        if self.blames >= 1 + self.limits.solo_deaths_max:
            return e.DEVICE  # more workers than a poison instance explains
        batch = self.book.live.get(self.counters.waiting_program)
        if batch is None or self.book.is_answered(self.counters.waiting_program):
            return e.DEVICE
        if batch.number:
            return e.Process("encoder", batch.worker)
        busy = [w for w in self.book.workers.values() if w.up and w.backlog]  # nobody has credit for it
        return e.Process("encoder", max(busy, key=lambda w: w.backlog).number) if busy else None

    def _look_at(self, suspect: e.Process, now: float) -> list[e.Command]:
        """Inspect a process that is late, and blame it when patience ends: local ones only on the kernel's evidence."""
        seat = self.seats.seats.get(suspect)
        since = self._since(suspect)
        late = now - since
        if seat is None:
            return self._blame(suspect, f"owes an answer for {late:.3f} s", now) if late > self.limits.remote_lease_s else []
        if not seat.up or seat.condemned or late <= self.limits.lease_s / 3:
            return []
        watch = self.watches.get(suspect)
        worker = self.book.workers[suspect.index] if suspect.role == "encoder" else None
        plans, starts = worker is not None and worker.graph is not None, worker is not None and not worker.ready
        listens = worker is not None and not worker.has_begun and self.client_late_at > since
        if (watch and watch.is_evidence(since, self.limits.lease_s / 3)
                and late > watch.patience_s(self.limits, plans, starts, listens)):
            return self._blame(self._or_stopped_device(suspect), f"owes an answer for {late:.3f} s", now)
        return [e.InspectProcess(p) for p in {suspect: 0, e.DEVICE: 0}]

    def _or_stopped_device(self, suspect: e.Process) -> e.Process:
        """A stopped device cannot take its word back that it misses a program."""
        watch = self.watches.get(e.DEVICE)
        stopped = watch is not None and watch.latest.what == "stopped" and self.seats.seats[e.DEVICE].up
        return e.DEVICE if stopped and watch.latest_at >= self._since(e.DEVICE) else suspect

    def _since(self, suspect: e.Process) -> float:
        if suspect == e.DEVICE:
            return max(self.progress_at, self.device_moved_at)
        worker = self.book.workers[suspect.index]
        return max(self.progress_at, worker.moved_at) if worker.graph is None else worker.graph_since

    def _blame(self, process: e.Process, why: str, now: float) -> list[e.Command]:
        self.blames, self.progress_at = (self.blames + 1 if process.role == "encoder" else 0), now
        self._note(now, f"blamed {process}: {why}", ())
        out = self._graph_too_slow(self.book.workers[process.index]) if process.role == "encoder" else []
        if process not in self.seats.seats:
            return out + self._left(e.RemoteLeft(process.index, why), now)
        seat = self.seats.seats[process]
        seat.condemned = True
        return [*out, e.KillProcess(process, seat.incarnation, why)]

    def _inspected(self, event: e.Inspected, now: float) -> list[e.Command]:
        since, watch = self._since(event.process), self.watches.get(event.process)
        if watch is None or watch.since != since:
            self.watches[event.process] = Watch(since, now, event.cpu_s, event, now)
        else:
            watch.latest, watch.latest_at = event, now
        return []

    # ---- deaths --------------------------------------------------------------------------------------------------
    def _died(self, event: e.ProcessDied, now: float) -> list[e.Command]:
        process = event.process
        if not self.seats.is_current(process, event.incarnation):
            return self._ignore()
        self.deaths += 1
        self.progress_at = now
        self._note(now, f"{process} died in life {event.incarnation}", ())
        from_outside = event.killed and not self.seats.seats[process].condemned
        progress = from_outside or self._had_progress(process)
        out = self._bury(self.book.workers[process.index], now) if process.role == "encoder" else []
        if process == e.DEVICE and not progress:
            out += self._poison_launch(now)
        progress = progress or any(isinstance(c, e.FailProgram | e.FailLaunch) for c in out)  # poison was found: an answer too
        self.unhealthy = self.seats.died(process, now, progress)
        if self.unhealthy:
            return [*out, e.FailRuntime(self.unhealthy)]
        if process in self.marks:
            self.marks[process] = self.counters.done
        if process == e.DEVICE:
            out += [e.ReplayDevice(), *self._refill(now)]
        return [*out, *self._start(process, now), e.RingBells()]

    def _poison_launch(self, now: float) -> list[e.Command]:
        """The launch over which the last devices that there may be have died, one after the other: it is given up,
        not the runtime. A device that never got past its start, or had no program to run, died of something else."""
        deaths, seq = self.seats.seats[e.DEVICE].deaths + 1, self.counters.done + 1
        running = self.counters.device_up and self.counters.launched >= seq and not self.counters.waiting_program
        if deaths < self.limits.deaths_max or not running:
            return []
        text = f"scheduler: launch {seq}: deaths of devices that ran it, got {deaths}, allowed {deaths - 1}"
        self._note(now, text, ())
        return [e.FailLaunch(seq, "PoisonRequestError", text)]

    def _refill(self, now: float) -> list[e.Command]:
        """The device may have had programs alone that were answered but not run: the caller is quickest to replace them."""
        lost = self.book.lose_answers()
        if lost is None:
            return []
        self._note(now, "lost with the device", lost.programs)
        return [self._encode_here(lost, now)]

    def _had_progress(self, process: e.Process) -> bool:
        """Whether this life was good for anything. One that had nothing to do need only have got past its start."""
        if process.role == "encoder":
            worker = self.book.workers[process.index]
            idle = worker.ready and not worker.backlog and worker.graph is None
            return idle or worker.encoded > worker.born_encoded
        started = self.seats.zygote_answers if process == e.ZYGOTE else self.counters.device_up
        idle = started and self.counters.done >= self.counters.launched
        return idle or self.counters.done > self.marks[process]

    def _start(self, process: e.Process, now: float) -> list[e.Command]:
        out = self.seats.start(process, now)
        self._seat_taken(out, now)
        return out

    def _seat_taken(self, starts: list[e.Command], now: float) -> None:
        for start in starts:
            self.recoveries += start.incarnation > 0
            if start.process.role == "encoder":
                self._new_life(start.process.index, now)

    def _new_life(self, number: int, now: float) -> None:
        received, encoded = self.counters.workers[number]
        self.book.workers[number] = Worker(
            number, sent=encoded, encoded=encoded, born_encoded=encoded, born_received=received, moved_at=now
        )

    def _zygote_ready(self, event: e.ZygoteReady, now: float) -> list[e.Command]:
        if not self.seats.is_current(e.ZYGOTE, event.incarnation):
            return self._ignore()
        starts = self.seats.zygote_ready(now)
        self._seat_taken(starts, now)
        self.progress_at = now
        return [*starts, e.RingBells()] if starts else []

    def _bury(self, worker: Worker, now: float) -> list[e.Command]:
        """Its leases go back to the front; what it had begun is suspect, a graph has one death more on its account."""
        head = self.book.head(worker) if worker.has_begun else None
        alone = head is not None and worker.leases[0].suspect
        graph = worker.graph
        lost = self.book.bury(worker)
        worker.up = False
        if lost:
            self._note(now, f"lost with worker {worker.number}", tuple(lost))
        out = self._suspect_it(head, alone, now) if head is not None else []
        return out + (self._graph_lost(graph, now) if graph is not None else [])

    def _suspect_it(self, program: int, alone: bool, now: float) -> list[e.Command]:
        self.book.suspect(program)
        self.book.solo_deaths[program] += alone
        deaths, most = self.book.solo_deaths[program], self.limits.solo_deaths_max
        self._note(now, f"suspected, {deaths} deaths alone", (program,))
        if deaths < most:
            return []
        text = f"scheduler: instance {program:#x}: deaths of encoders that held it alone, got {deaths}, allowed {most - 1}"
        return [self._fail(program, "PoisonRequestError", text, now)]

    def _fail(self, program: int, error: str, text: str, now: float) -> e.Command:
        self.book.fail(program, text)
        self._note(now, f"failed: {error}", (program,))
        self._progress(now)
        return e.FailProgram(program, error, text)

    # ---- workers -------------------------------------------------------------------------------------------------
    def _ready(self, event: e.WorkerReady, now: float) -> list[e.Command]:
        if not self.seats.is_current(e.Process("encoder", event.worker), event.incarnation):
            return self._ignore()
        worker = self.book.workers[event.worker]
        worker.ready, worker.moved_at = True, now
        return []

    def _joined(self, event: e.RemoteJoined, now: float) -> list[e.Command]:
        self.book.workers[event.worker] = Worker(event.worker, remote=True, ready=True, moved_at=now)
        return []

    def _left(self, event: e.RemoteLeft, now: float) -> list[e.Command]:
        worker = self.book.workers.get(event.worker)
        if worker is None or not worker.remote:
            return self._ignore()
        self.deaths += 1
        out = self._bury(worker, now)
        del self.book.workers[event.worker]
        self.progress_at = now
        return [*out, e.DropWorker(event.worker, event.why), e.RingBells()]

    def _drains(self, event: e.RemoteDrains, now: float) -> list[e.Command]:
        worker = self.book.workers.get(event.worker)
        if worker is None or not worker.remote:
            return self._ignore()
        worker.draining = True
        self._note(now, f"worker {worker.number} drains", ())
        return []

    def _drained(self, now: float) -> list[e.Command]:
        """Those that wanted to leave and hold nothing any more: no deaths."""
        over = [w for w in self.book.workers.values() if w.draining and not w.backlog and not w.leases and w.graph is None]
        for worker in over:
            del self.book.workers[worker.number]
            self._note(now, f"worker {worker.number} has drained", ())
        return [e.DropWorker(worker.number, DRAINED) for worker in over]

    def _received(self, event: e.ProgramsReceived, now: float) -> list[e.Command]:
        """Programs of a remote worker: the next ones of its oldest lease, or it does not keep the protocol."""
        worker = self.book.workers.get(event.worker)
        if worker is None:
            return self._ignore()
        lease = worker.leases[0] if worker.leases else None
        if lease is None or lease.number != event.lease or not self._are_next(lease, event.programs):
            return self._left(e.RemoteLeft(event.worker, f"programs of lease {event.lease} that it does not owe"), now)
        wanted = tuple(p for p in event.programs if self.book.live.get(p) is lease)
        worker.begun += len(event.programs)
        self._answered(worker, worker.encoded + len(event.programs), now, {self.counters.waiting_program})
        return [e.DeliverPrograms(wanted)] if wanted else []

    def _are_next(self, lease: Batch, programs: tuple[int, ...]) -> bool:
        return bool(programs) and tuple(lease.programs[lease.answered :][: len(programs)]) == programs

    def _refused(self, event: e.ProgramRefused, now: float) -> list[e.Command]:
        """Its worker is not believed for ever: a local one is replaced, a remote one, which nobody knows, dropped at once."""
        batch = self.book.live.get(event.program)
        worker = self.book.workers.get(batch.worker) if batch else None
        if worker is None:
            return self._ignore()
        self._note(now, f"program of worker {worker.number} refused by the device", (event.program,))
        worker.refusals += 1
        if not worker.remote and worker.refusals < self.limits.refusals_max:
            return []
        return self._blame(e.Process("encoder", worker.number), f"had {worker.refusals} programs refused", now)

    # ---- graphs --------------------------------------------------------------------------------------------------
    def _graph_wanted(self, event: e.GraphWanted, now: float) -> list[e.Command]:
        if len(self.graphs) >= self.limits.graph_credits:
            text = f"scheduler: graphs: waiting, got {len(self.graphs) + 1}, allowed {self.limits.graph_credits}"
            return [e.FailGraph(event.graph, "BackpressureTimeout", text)]
        self.graphs.want(event.graph)
        return []

    def _ship_graphs(self, now: float) -> list[e.Command]:
        """One graph to a worker at a time: planning may take long."""
        out: list[e.Command] = []
        while self.graphs.line:
            idle = [w for w in self.book.workers.values() if w.takes and w.graph is None]
            if not idle:
                break
            worker = min(idle, key=lambda w: (w.backlog, -w.number))
            worker.graph, worker.graph_since = self.graphs.give(worker.number), now
            self.book.last_lease += 1
            out.append(e.SendGraph(worker.number, self.book.last_lease, worker.graph))
        return out

    def _graph_answered(self, event: e.GraphAnswered, now: float) -> list[e.Command]:
        """A late answer is as good as another; the second one is dropped."""
        worker = self.book.workers.get(event.worker)
        if worker and worker.graph == event.graph:
            worker.graph, worker.moved_at = None, now
        if event.graph not in self.graphs:
            return self._ignore()
        self.graphs.forget(event.graph)
        return [e.FailGraph(event.graph, event.error, event.text) if event.error else e.AnswerGraph(event.graph)]

    def _graph_lost(self, graph: int, now: float) -> list[e.Command]:
        deaths, most = self.graphs.lost(graph), self.limits.graph_deaths_max
        if deaths < most:
            return []
        text = f"scheduler: graph {graph}: deaths of its encoders, got {deaths}, allowed {most - 1}"
        return [self._fail_graph(graph, text)]

    def _graph_too_slow(self, worker: Worker) -> list[e.Command]:
        """A worker that plans is blamed: if it was given all the time there is, its graph is given up with it."""
        graph, spent = worker.graph, self.progress_at - worker.graph_since
        if graph not in self.graphs or spent <= self.limits.graph_lease_s:
            return []
        return [self._fail_graph(graph,
                                 f"scheduler: graph {graph}: seconds to plan it, got {spent:.1f}, allowed {self.limits.graph_lease_s}")]

    def _fail_graph(self, graph: int, text: str) -> e.Command:
        self.graphs.forget(graph)
        return e.FailGraph(graph, "WorkerLostError", text)

    # ---- beginning and end -------------------------------------------------------------------------------------------------
    def _open(self, _: e.Opening, now: float) -> list[e.Command]:
        self.opened, self.progress_at = True, now
        return self._start(e.ZYGOTE, now)

    def _close(self, _: e.Closing, now: float) -> list[e.Command]:
        self.closing = True
        return []

    def _ignore(self) -> list[e.Command]:
        self.ignored += 1
        return []

    def _plan_known(self, event: e.PlanKnown, now: float) -> list[e.Command]:
        self.plan_costs[event.plan] = event.encode_us
        return []

    def _plan_forgotten(self, event: e.PlanForgotten, now: float) -> list[e.Command]:
        """Workers give it up too. If an instance of it comes all the same, the plan is sent again."""
        self.plan_costs.pop(event.plan, None)
        holders = [w for w in self.book.workers.values() if event.plan in w.plans]
        free = [w for w in holders if not any(event.plan in lease.plans for lease in w.leases)]
        for worker in free:
            worker.plans.discard(event.plan)
        return [e.SendForget(w.number, event.plan) for w in free]

    # ---- seeing inside -------------------------------------------------------------------------------------------
    def _note(self, now: float, what: str, programs: Sequence[int]) -> None:
        self._log.append((now, what, programs))

    def notes(self) -> list[tuple[float, str]]:
        """(time, what) of everything that was about processes, not about single instances."""
        return [(now, what) for now, what, programs in list(self._log) if not programs]

    def story(self, program: int) -> str:
        """What happened to one instance, as far as it is remembered, with what happened to everybody meanwhile."""
        lines = [f"{now:12.6f}  {what}" for now, what, programs in self._log if not programs or program in programs]
        return "\n".join([*lines, f"now: {self.book.phase(program, self.counters.done)}"])

    def stuck(self) -> bool:
        """Whether something waits that could be sent: never, after an event was handled."""
        apart = self._quarantine()
        alone = bool(self.book.suspects) and apart is not None and not apart.backlog
        return alone or (bool(self.book.waiting) and self._least_loaded() is not None)

    def validate(self) -> None:
        """Every invariant; tests call it after every event. Raises InvariantError."""
        self.book.validate()
        if not self.opened or self.closing or self.unhealthy:
            return
        self.seats.validate()
        hold(1 <= self.batch_limit <= self.limits.batch_max, "batch limit {}", self.batch_limit)
        hold(not self.stuck(), "an instance waits although a worker has credit")
        for worker in self.book.workers.values():
            hold(worker.backlog <= self.limits.worker_credits, "worker {} has {} instances", worker.number, worker.backlog)
            hold(worker.remote or worker.up == self.seats.seats[e.Process("encoder", worker.number)].up, "worker and seat differ")
        self.graphs.validate(self.book.workers.values())


_HANDLERS: dict[type, str] = {
    e.PlanKnown: "_plan_known",
    e.InstancesArrived: "_arrived",
    e.PlanForgotten: "_plan_forgotten",
    e.Counters: "_counted",
    e.Waited: "_waited",
    e.Tick: "_tick",
    e.WorkerReady: "_ready",
    e.RemoteJoined: "_joined",
    e.RemoteLeft: "_left",
    e.RemoteDrains: "_drains",
    e.ProgramsReceived: "_received",
    e.ProgramRefused: "_refused",
    e.ProcessDied: "_died",
    e.ZygoteReady: "_zygote_ready",
    e.Inspected: "_inspected",
    e.GraphWanted: "_graph_wanted",
    e.GraphAnswered: "_graph_answered",
    e.Opening: "_open",
    e.Closing: "_close",
}
