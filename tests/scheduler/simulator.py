"""A world for the scheduler's state machine: model stream, workers, device and zygote under one seeded event heap.

The world executes the commands as the runtime does and injects faults: kills, hangs (SIGSTOP and busy loops), lost,
doubled and late messages, processes that die at birth, garbage programs, poison instances. After every event the state
validates itself; at the end the world checks that the device committed every launch once, in order, with the right
program (safety), that this took no more time than the faults explain (liveness), and no more encodes (waste). A failing
seed replays exactly: `python -m tests.scheduler.simulator SEED` prints what happened."""

from __future__ import annotations

import heapq
import random
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from dvm_rt.scheduler import events as e
from dvm_rt.scheduler.limits import Limits
from dvm_rt.scheduler.state import SchedulerState

LEASE_S = 0.25
FOREVER = 1 << 30
LIMITS = Limits(batch_max=8, worker_credits=16, lease_s=LEASE_S, remote_lease_s=1.0, device_lease_s=2.0,
                graph_lease_s=2.0, story_length=1 << 16)


class Broken(AssertionError):
    """The world is not as it should be: a bug in the scheduler (or a planted one)."""


@dataclass(frozen=True)
class Scenario:
    """What happens in one run; drawn from the seed by `scenario_of`."""

    seed: int
    workers: int = 2
    remotes: int = 0
    launches: int = 60
    policy: str = "workers"
    kills: int = 0
    hangs: int = 0
    spins: int = 0
    drops: float = 0.0
    doubles: float = 0.0
    late: float = 0.0
    stillborn: int = 0
    torn: bool = False
    garbage: float = 0.0
    crashes: float = 0.0  # of a worker in the middle of a batch, by chance
    poison: tuple[int, ...] = ()
    graphs: int = 0
    long_kernels: bool = False
    forgets: int = 0  # plans that are given up, although their instances go on to come


def scenario_of(seed: int) -> Scenario:
    rng = random.Random(seed)
    launches = rng.choice([20, 40, 60])
    policy = rng.choice(["workers", "workers", "auto", "caller"])
    poisonous = policy == "workers" and rng.random() < 0.3  # else the caller would be poisoned
    return Scenario(
        seed,
        workers=rng.choice([1, 1, 2, 3]),
        remotes=rng.choice([0, 0, 0, 1]),
        launches=launches,
        policy=policy,
        kills=rng.choice([0, 2, 6]),
        hangs=rng.choice([0, 0, 2]),
        spins=rng.choice([0, 0, 1]),
        drops=rng.choice([0, 0, 0.05]),
        doubles=rng.choice([0, 0, 0.3]),
        late=rng.choice([0, 0.2]),
        stillborn=rng.choice([0, 0, 0, 0, 2, 2, 2, FOREVER]),
        torn=rng.random() < 0.2,
        garbage=rng.choice([0, 0, 0.05]),
        crashes=rng.choice([0, 0, 0.01]),
        poison=tuple(rng.sample(range(1, launches), 2)) if poisonous else (),
        graphs=rng.choice([0, 3]),
        long_kernels=rng.random() < 0.1,
        forgets=rng.choice([0, 0, 8]),
    )


@dataclass
class Life:
    """One life of a process."""

    process: e.Process
    incarnation: int
    alive: bool = True
    up: bool = False
    pipe_until: float = 0.0
    stopped: bool = False
    spinning: bool = False
    cpu_s: float = 0.0
    busy_until: float = 0.0
    inbox: deque = field(default_factory=deque)
    plans: set[int] = field(default_factory=set)
    cache: dict[int, bool] = field(default_factory=dict)  # device: program -> whole
    next_seq: int = 1
    queue: deque[int] = field(default_factory=deque)

    @property
    def able(self) -> bool:
        return self.alive and self.up and not self.stopped and not self.spinning


class World:
    def __init__(self, scenario: Scenario, state: type[SchedulerState] = SchedulerState) -> None:
        self.scenario, self.rng = scenario, random.Random(scenario.seed ^ 0x5EED)
        self.now, self.heap, self.order = 0.0, [], 0
        self.state = state(scenario.workers, scenario.policy, LIMITS, free_cpus=1)
        self.lives: dict[e.Process, Life] = {}
        self.trace: list[tuple[float, object]] = []
        # ---- the stream
        self.launched = self.done = 0
        self.program_of: dict[int, int] = {}  # seq -> program
        self.seen: dict[int, str] = {}  # program -> "encoding" | "ready", as the stream believes
        self.outbox: list[int] = []
        self.begin = 0
        self.failed: set[int] = set()
        # ---- shared memory: survives everybody
        self.waiting_program = 0
        self.received = [0] * scenario.workers
        self.encoded = [0] * scenario.workers
        self.rings: list[deque] = [deque() for _ in range(scenario.workers + 1)]  # the last one is the caller's
        # ---- what must hold at the end
        self.commits: list[tuple[int, int]] = []
        self.encodes = self.starts = 0
        self.answers: dict[int, str] = {}
        self.remote_made: set[int] = set()
        self.poison = {self._program(seq) for seq in scenario.poison} - {self._program(s) for s in range(1, 6)}
        self.fault_s = 0.0
        self.stillborn = scenario.stillborn
        self.unhealthy = ""
        self.asleep = self.finished = False
        self.torn = scenario.torn

    @property
    def device_up(self) -> bool:
        life = self.lives.get(e.DEVICE)
        return life is not None and life.up

    # ---- running -------------------------------------------------------------------------------------------------
    def at(self, delay: float, what: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.heap, (self.now + delay, self.order, what))

    def run(self) -> None:
        self._tell(e.PlanKnown(0, 1.0))
        for plan in (1, 2):
            self._tell(e.PlanKnown(plan, 400.0))
        self._tell(e.Opening())
        for remote in range(self.scenario.remotes):
            self.at(0.01, lambda r=100 + remote: self._join(r))
        self.at(0.005, self._user)
        self.at(0.01, self._tick)
        for fault in self._faults():
            self.at(self.rng.uniform(0.02, 0.4), fault)
        for graph in range(self.scenario.graphs):
            self.at(self.rng.uniform(0.0, 0.3), lambda g=graph + 1: self._want_graph(g))
        for plan in range(self.scenario.forgets):
            self.at(self.rng.uniform(0.0, 0.3), lambda p=plan % 3: self._tell(e.PlanForgotten(p)))
        while self.heap and not self._over():
            self.now, _, what = heapq.heappop(self.heap)
            if self.now > 60.0:
                raise Broken(f"not done after {self.now:.1f} s: committed {self.done} of {self.launched}\n{self._head_story()}")
            what()
        self._check()

    def _over(self) -> bool:
        answered = len(self.answers) == self.scenario.graphs
        return bool(self.unhealthy) or (self.finished and answered)

    def _tell(self, event: e.Event) -> None:
        self.trace.append((self.now, event))
        commands = self.state.handle(event, self.now)
        self.state.validate()
        self._execute(commands)

    def _tell_counters(self) -> None:
        counts = tuple(zip(self.received, self.encoded, strict=True))
        self._tell(e.Counters(self.done, self.launched, self.waiting_program, self.device_up, counts))

    # ---- the user: launches in bursts, waits now and then --------------------------------------------------------
    def _program(self, seq: int) -> int:
        return 1000 + (seq if seq % 3 else seq % 4)  # every third launch uses one of a few cached programs

    def _user(self) -> None:
        for _ in range(self.rng.choice([1, 3, 10])):
            if self.launched < self.scenario.launches:
                self._launch()
        waits = self.rng.random() < 0.5 or self.launched == self.scenario.launches
        self._pump(waits)
        self.at(self.rng.choice([0.0, 0.001, 0.02]), self._wait if waits else self._user)

    def _wait(self) -> None:
        """As the caller waits: asleep until the device's wake-up, or a bell; then it looks again."""
        if self.done < self.launched and not self.unhealthy:
            self.asleep = True
        elif self.launched < self.scenario.launches:
            self._user()
        else:
            self.finished = True

    def _wake(self) -> None:
        if self.asleep:
            self.asleep = False
            self._wait()

    def _launch(self) -> None:
        self.launched += 1
        program = self.program_of[self.launched] = self._program(self.launched)
        if program not in self.seen and program not in self.failed:
            if self.scenario.policy == "caller":
                self.seen[program] = "ready"
                self._push_here(program)
            else:
                self.seen[program] = "encoding"
                self.outbox.append(program)
        self._push(-1, ("launch", self.launched, program))

    def _pump(self, waited: bool) -> None:
        """What the runtime does after a call: take what the stream needs, in batches."""
        self._tell_counters()
        if self.outbox and (waited or len(self.outbox) >= self.state.batch_limit):
            programs, self.outbox = tuple(self.outbox), []
            begin, self.begin = self.begin, self.launched
            self._tell(e.InstancesArrived(programs, tuple(p % 3 for p in programs), begin, self.launched, waited))
        elif waited:
            self._tell(e.Waited())

    def _want_graph(self, graph: int) -> None:
        self._tell(e.GraphWanted(graph))

    # ---- commands ------------------------------------------------------------------------------------------------
    def _execute(self, commands: list[e.Command]) -> None:
        for command in commands:
            self.trace.append((self.now, command))
            getattr(self, "_do_" + type(command).__name__)(command)

    def _do_SendPlan(self, c: e.SendPlan) -> None:
        self._send(c.worker, ("plan", c.plan))

    def _do_SendForget(self, c: e.SendForget) -> None:
        self._send(c.worker, ("forget", c.plan))

    def _do_SendInstances(self, c: e.SendInstances) -> None:
        if len(c.programs) > LIMITS.batch_max:
            raise Broken(f"a batch of {len(c.programs)}")
        self._send(c.worker, ("instances", c.lease, c.programs))

    def _do_SendGraph(self, c: e.SendGraph) -> None:
        self._send(c.worker, ("graph", c.graph))

    def _send(self, worker: int, message: tuple) -> None:
        life = self.lives[e.Process("encoder", worker)]
        delay = 0.0001
        if message[0] == "instances":
            # Poison that is lost on its way kills nobody, so nobody can know it: the caller may encode it.
            if self.rng.random() < self.scenario.drops and self.poison.isdisjoint(message[2]):
                self.fault_s += 4 * LEASE_S
                return
            if self.rng.random() < self.scenario.late:
                delay += self.rng.uniform(0.0, 0.03)
        delay = max(delay, life.pipe_until - self.now)  # a pipe keeps its order
        life.pipe_until = self.now + delay
        self.at(delay, lambda: self._arrive(life, message))

    def _arrive(self, life: Life, message: tuple) -> None:
        life.inbox.append(message)
        if len(life.inbox) == 1:
            self._work(life)

    def _do_EncodeHere(self, c: e.EncodeHere) -> None:
        for program in c.programs:
            if program in self.poison:
                raise Broken(f"poison {program} was encoded in the caller")
            if self.seen.get(program) != "ready":
                self.seen[program] = "ready"
                self._push_here(program)

    def _do_DeliverPrograms(self, c: e.DeliverPrograms) -> None:
        for program in c.programs:
            if program not in self.remote_made:
                raise Broken(f"believed a liar about {program}")
            self._push(-1, ("program", program, True))

    def _do_AnswerGraph(self, c: e.AnswerGraph) -> None:
        self._answer(c.graph, "planned")

    def _do_FailGraph(self, c: e.FailGraph) -> None:
        self._answer(c.graph, c.error)

    def _answer(self, graph: int, answer: str) -> None:
        if graph in self.answers:
            raise Broken(f"graph {graph} was answered twice")
        self.answers[graph] = answer

    def _do_FailProgram(self, c: e.FailProgram) -> None:
        if c.program not in self.poison:
            raise Broken(f"innocent {c.program} failed: {c.text}")
        self.failed.add(c.program)
        self._push(-1, ("program", c.program, True))  # its launches trap at once

    def _do_FailLaunch(self, c: e.FailLaunch) -> None:
        raise Broken(f"innocent launch {c.seq} failed: {c.text}")

    def _do_StartProcess(self, c: e.StartProcess) -> None:
        self.starts += 1
        if self.starts > 400:
            raise Broken("hundreds of restarts")
        old = self.lives.get(c.process)
        if old and old.alive:
            raise Broken(f"{c.process} was started although its last life goes on")
        life = self.lives[c.process] = Life(c.process, c.incarnation)
        if c.process == e.ZYGOTE:
            return self.at(0.06, lambda: self._zygote_up(life))
        zygote = self.lives[e.ZYGOTE]
        if self.stillborn and (self.stillborn > FOREVER // 2 or self.rng.random() < 0.5):
            self.stillborn -= 1
            return self.at(0.01, lambda: self._die(life))
        if not zygote.alive:
            return self.at(0.0, lambda: self._die(life))
        self.at(self.rng.uniform(0.002, 0.02), lambda: self._up(life))

    def _do_KillProcess(self, c: e.KillProcess) -> None:
        life = self.lives[c.process]
        if life.incarnation != c.incarnation:
            raise Broken(f"{c} names a life that is over")
        if life.able and self._nothing_explains(c):
            raise Broken(f"innocent {c.process} was killed: {c.why}\n{self._head_story()}")
        self.at(0.0005, lambda: self._die(life))

    def _nothing_explains(self, c: e.KillProcess) -> bool:
        """An able process may only be killed if something did happen to messages or to another process."""
        s = self.scenario
        return not (s.drops or s.hangs or s.spins or s.kills or s.poison or s.stillborn or s.garbage or s.crashes)

    def _do_DropWorker(self, c: e.DropWorker) -> None:
        self.lives[e.Process("encoder", c.worker)].alive = False
        self.at(0.05, lambda: self._join(c.worker + 100))

    def _do_InspectProcess(self, c: e.InspectProcess) -> None:
        life = self.lives[c.process]
        busy = life.spinning or life.busy_until > self.now
        cpu_s = self.now if busy else life.cpu_s
        what = "gone" if not life.alive else "stopped" if life.stopped else "running" if busy else "sleeping"
        self.at(0.0, lambda: self._tell(e.Inspected(c.process, what, cpu_s)))

    def _do_ReplayDevice(self, _: e.ReplayDevice) -> None:
        if self.lives[e.DEVICE].alive:
            raise Broken("replay beside a living device")
        self.rings[-1].clear()
        self.waiting_program = 0
        for program, where in list(self.seen.items()):
            if where == "ready":
                del self.seen[program]
        for seq in range(self.done + 1, self.launched + 1):
            program = self.program_of[seq]
            if self.seen.get(program) is None and program not in self.failed:
                self.seen[program] = "ready"
                self._push_here(program)
            if program in self.failed:
                self._push(-1, ("program", program, True))
            self._push(-1, ("launch", seq, program))

    def _do_RingBells(self, _: e.RingBells) -> None:
        self.at(0.0, self._wake_device)
        self.at(0.0, self._wake)

    def _do_FailRuntime(self, c: e.FailRuntime) -> None:
        self.unhealthy = c.text

    # ---- processes -----------------------------------------------------------------------------------------------
    def _zygote_up(self, life: Life) -> None:
        if life.alive:
            self._tell(e.ZygoteReady(life.incarnation))

    def _up(self, life: Life) -> None:
        if not life.alive:
            return
        life.up = True
        if life.process == e.DEVICE:
            life.next_seq = self.done + 1
            self._device(life)
        else:
            self._tell(e.WorkerReady(life.process.index, life.incarnation))
            self._work(life)

    def _join(self, number: int) -> None:
        self.lives[e.Process("encoder", number)] = life = Life(e.Process("encoder", number), 0)
        life.up = True
        self._tell(e.RemoteJoined(number))

    def _die(self, life: Life) -> None:
        if not life.alive:
            return
        life.alive = False
        if life.process == e.ZYGOTE:
            for child in list(self.lives.values()):
                if child.process != e.ZYGOTE and child.process.index < 100:
                    self._die(child)
        self.at(self.rng.uniform(0.0001, 0.002), lambda: self._report(life))

    def _report(self, life: Life) -> None:
        if life.process.index >= 100:
            return self._tell(e.RemoteLeft(life.process.index, "unreachable"))
        self._tell_counters()
        self._tell(e.ProcessDied(life.process, life.incarnation))

    def _work(self, life: Life) -> None:
        """A worker takes one message, or one instance of it, at a time."""
        if not (life.able and life.inbox) or life.busy_until > self.now:
            return
        kind, *rest = life.inbox[0]
        if kind in ("plan", "forget"):
            (life.plans.add if kind == "plan" else life.plans.discard)(rest[0])
            life.inbox.popleft()
            return self._work(life)
        life.busy_until = self.now + (self.rng.uniform(0.01, 0.5) if kind == "graph" else self.rng.uniform(1e-5, 5e-4))
        if kind == "graph":
            return self.at(life.busy_until - self.now, lambda: self._planned(life, rest[0]))
        lease, programs = rest
        if life.process.index < 100:
            self.received[life.process.index] += 1
        program = programs[0]
        if program % 3 not in life.plans:
            raise Broken(f"worker {life.process.index} has no plan for {program}")
        crashes = len(programs) > 1 and self.rng.random() < self.scenario.crashes
        if crashes:
            self.fault_s += LEASE_S
        if program in self.poison or crashes:
            return self.at(1e-5, lambda: self._die(life))
        self.at(life.busy_until - self.now, lambda: self._encoded(life, lease, programs))

    def _planned(self, life: Life, graph: int) -> None:
        if not life.alive:
            return
        if not life.able:
            return self.at(0.01, lambda: self._planned(life, graph))
        life.inbox.popleft()
        life.busy_until = 0.0
        for _ in range(2 if self.rng.random() < self.scenario.doubles else 1):
            self.at(0.0001, lambda: self._tell(e.GraphAnswered(life.process.index, graph)))
        self._work(life)

    def _encoded(self, life: Life, lease: int, programs: tuple[int, ...]) -> None:
        if not life.able:
            if life.alive:  # stopped in between: it goes on if it is ever continued
                self.at(0.01, lambda: self._encoded(life, lease, programs))
            return
        self.encodes += 1
        whole = self.rng.random() >= self.scenario.garbage
        worker = life.process.index
        if worker >= 100:
            self.at(0.0002, lambda: self._remote_program(life, lease, programs[0]))
        else:
            for _ in range(2 if self.rng.random() < self.scenario.doubles else 1):
                self._push(worker, ("program", programs[0], whole))
            self.encoded[worker] += 1
        life.busy_until = 0.0
        life.inbox.popleft()
        if programs[1:]:
            life.inbox.appendleft(("instances", lease, programs[1:]))
        self._work(life)

    def _remote_program(self, life: Life, lease: int, program: int) -> None:
        if life.alive:
            lie = self.rng.random() < self.scenario.garbage
            self.remote_made.add(program)
            self._tell(e.ProgramsReceived(life.process.index, lease, (program + 5000 * lie,)))

    # ---- the device ----------------------------------------------------------------------------------------------
    def _push_here(self, program: int) -> None:
        self.encodes += 1
        self._push(-1, ("program", program, True))

    def _push(self, ring: int, message: tuple) -> None:
        self.rings[ring].append(message)
        self.at(1e-6, self._wake_device)

    def _wake_device(self) -> None:
        if e.DEVICE in self.lives:
            self._device(self.lives[e.DEVICE])

    def _device(self, life: Life) -> None:
        """Drain the rings; run the next launch if its program is there."""
        if not life.able or life is not self.lives[e.DEVICE] or life.busy_until > self.now:
            return
        for ring in self.rings:
            while ring:
                self._take(life, ring.popleft())
        if not life.queue:
            self.waiting_program = 0
            return
        program = self.program_of[life.queue[0]]
        if program not in life.cache:
            self.waiting_program = program
            return
        self.waiting_program = 0
        kernel_s = self.rng.uniform(0.3, 0.6) if self.scenario.long_kernels and self.rng.random() < 0.1 else 5e-5
        life.busy_until = self.now + kernel_s
        self.at(kernel_s, lambda: self._commit(life))

    def _take(self, life: Life, message: tuple) -> None:
        if message[0] == "program":
            _, program, whole = message
            if whole:
                life.cache[program] = True
            elif program not in life.cache:
                self.at(0.0001, lambda: self._refused(program))
        elif message[1] == life.next_seq:
            life.queue.append(message[1])
            life.next_seq += 1

    def _refused(self, program: int) -> None:
        """The stream repairs a refused program by itself: it encodes it again here."""
        if program not in self.failed:
            self.seen[program] = "ready"
            self._push_here(program)
            self._tell(e.ProgramRefused(program))

    def _commit(self, life: Life) -> None:
        if not life.alive:
            return
        if not life.able:
            return self.at(0.01, lambda: self._commit(life))
        life.busy_until = 0.0
        seq = life.queue.popleft()
        if seq != self.done + 1:
            raise Broken(f"launch {seq} committed after {self.done}")
        self.done = seq
        self.commits.append((seq, self.program_of[seq]))
        self.seen[self.program_of[seq]] = "ready"  # whoever sent it: the device had it
        if self.torn and self.asleep and seq == self.launched:
            self.torn = False
            self.trace.append((self.now, "FAULT device killed between commit and wake-up"))
            self.fault_s += LEASE_S
            return self._die(life)
        self._wake()
        self._device(life)

    # ---- time and faults -----------------------------------------------------------------------------------------
    def _tick(self) -> None:
        self._pump(False)
        if self.outbox:
            self._pump(True)
        self._tell(e.Tick())
        if not self.unhealthy:
            self.at(0.01, self._tick)

    def _faults(self) -> list[Callable[[], None]]:
        s = self.scenario
        return [self._kill] * s.kills + [self._hang] * s.hangs + [self._spin] * s.spins

    def _victim(self, *roles: str) -> Life:
        lives = [life for life in self.lives.values() if life.alive and life.process.role in roles]
        return self.rng.choice(lives) if lives else Life(e.ZYGOTE, -1, alive=False)

    def _kill(self) -> None:
        life = self._victim("encoder", "device", "zygote")
        self.trace.append((self.now, f"FAULT kill {life.process}"))
        self.fault_s += 3 * LEASE_S
        self._die(life)

    def _hang(self) -> None:
        life = self._victim("encoder", "device")
        self.trace.append((self.now, f"FAULT stop {life.process}"))
        self.fault_s += 6 * LEASE_S
        life.stopped = True

    def _spin(self) -> None:
        life = self._victim("encoder", "device")
        self.trace.append((self.now, f"FAULT spin {life.process}"))
        self.fault_s += 3 * LEASE_S + LIMITS.device_lease_s + LIMITS.graph_lease_s
        life.spinning = True

    # ---- the verdict ---------------------------------------------------------------------------------------------
    def _check(self) -> None:
        if self.starts > LIMITS.deaths_max * (2 + self.scenario.workers) + 8 * (1 + self.state.deaths):
            raise Broken(f"{self.starts} starts")
        if self.unhealthy:
            if not self.scenario.stillborn and not self.scenario.kills and not self.scenario.crashes:
                raise Broken(f"gave up without a reason: {self.unhealthy}")
            return
        if self.commits != [(s, self._program(s)) for s in range(1, self.scenario.launches + 1)]:
            raise Broken(f"commits differ: {self.commits[:10]}")
        launched_poison = {self._program(s) for s in range(1, self.launched + 1)} & self.poison
        if self.scenario.policy == "workers" and self.failed != launched_poison:
            raise Broken(f"failed {self.failed}, poison {launched_poison}")
        budget = 1.5 + self.fault_s + self.scenario.graphs + 0.6 * self.scenario.launches * 0.3 * self.scenario.long_kernels
        budget += 2.0 * len(self.poison)
        if self.now > budget:
            raise Broken(f"took {self.now:.2f} s, faults explain {budget:.2f} s")
        replays = 1 + self.state.deaths
        if self.encodes > (self.scenario.launches + 8) * (1 + replays):
            raise Broken(f"{self.encodes} encodes for {self.scenario.launches} launches and {self.state.deaths} deaths")
        self._tell_counters()
        book = self.state.book  # a lease whose messages were lost in part is over when the rest of it is
        left = [p for p, batch in book.live.items() if not batch.number or batch.is_answered]
        if left:
            raise Broken(f"done, but still live: {left[:5]}")

    def _head_story(self) -> str:
        program = self.program_of.get(self.done + 1, 0)
        return f"launch {self.done + 1} needs {program}\n{self.state.story(program)}"


def simulate(seed: int, state: type[SchedulerState] = SchedulerState) -> World:
    world = World(scenario_of(seed), state)
    world.run()
    return world


if __name__ == "__main__":
    world = World(scenario_of(int(sys.argv[1])))
    try:
        world.run()
    finally:
        for now, what in world.trace:
            print(f"{now:9.6f}", "   ->" if isinstance(what, e.Command) else "", what)
        print(world.scenario)
