"""Who holds what: operator instances, the leases over them, and the workers that hold the leases.

Owns the places of every live instance. Each is in exactly one: `waiting` (nobody has it), `suspects` (waiting, to be held
alone because a worker died over it), or one lease. A lease is a batch in one worker's hands (or HERE, the caller's); the
worker's count of encoded instances says how far it is answered. Answered instances are *ready* (their program is on its
way to the device), then *running* (the device is among the launches that need them), then done: forgotten. What a dead
worker had not answered goes back to the front. Knows no policy, no time, no process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from dvm_rt.scheduler.events import HERE


FAILED_MAX = 1024  # remembered for story() and phase()


@dataclass(slots=True, eq=False)
class Instance:
    """A live operator instance. Its first launch lies in (begin, seq]."""

    program: int
    plan: int
    begin: int
    seq: int
    lease: Lease | None = None
    solo_deaths: int = 0
    suspect: bool = False


@dataclass(slots=True, eq=False)
class Lease:
    """A batch in one worker's hands. `first` is the worker's count before it, `answered` how many are encoded."""

    number: int
    worker: int
    instances: tuple[Instance, ...]
    first: int
    given_at: float
    answered: int = 0
    seq: int = 0

    @property
    def solo(self) -> bool:
        return len(self.instances) == 1 and self.instances[0].suspect and self.instances[0].lease is self

    def held(self) -> Iterator[Instance]:
        """The instances that are still this lease's business (others were finished or leased elsewhere)."""
        return (i for i in self.instances if i.lease is self)


@dataclass(slots=True, eq=False)
class Worker:
    """One life of a worker. `received` and `encoded` are its own counts, `sent` is ours."""

    number: int
    remote: bool = False
    up: bool = True
    ready: bool = False
    sent: int = 0
    encoded: int = 0
    begun: int = 0  # instances that it took in hand in this life
    born_received: int = 0
    born_encoded: int = 0
    moved_at: float = 0.0
    refusals: int = 0  # of its programs, by the device
    plans: set[int] = field(default_factory=set)
    leases: deque[Lease] = field(default_factory=deque)
    graph: int | None = None
    graph_since: float = 0.0

    @property
    def backlog(self) -> int:
        return self.sent - self.encoded

    @property
    def has_begun(self) -> bool:
        """Its next instance is in its hands, not in its inbox."""
        return self.begun > self.encoded - self.born_encoded


class Book:
    """The places of all live instances. Every method keeps `validate()` true."""

    def __init__(self) -> None:
        self.live: dict[int, Instance] = {}
        self.waiting: deque[Instance] = deque()
        self.suspects: deque[Instance] = deque()
        self.leases: dict[int, Lease] = {}
        self.workers: dict[int, Worker] = {}
        self.failed: dict[int, str] = {}
        self.finished = 0
        self.last_lease = 0

    # ---- instances come and go -----------------------------------------------------------------------------------
    def arrive(self, programs: Iterable[int], plans: Iterable[int], begin: int, seq: int) -> tuple[int, ...]:
        """New instances, in order. One that nobody has encoded yet only learns that a later launch needs it too. One that
        was answered is asked for again because the program is gone from where it was: it starts anew."""
        new = []
        for program, plan in zip(programs, plans, strict=True):
            instance = self.live.get(program)
            if instance is not None and not self.is_answered(instance):
                self._need_until(instance, seq)
                continue
            if instance is not None:
                self._leave(instance)
            self.failed.pop(program, None)
            self.live[program] = Instance(program, plan, begin, seq)
            self.waiting.append(self.live[program])
            new.append(program)
        return tuple(new)

    def finish(self, done: int) -> list[Lease]:
        """What was answered and whose launches are committed is done. What nobody answered yet stays: it may have been
        asked for ahead of its launch."""
        over = [lease for lease in self.leases.values() if lease.seq <= done and lease.answered == len(lease.instances)]
        for lease in over:
            for instance in tuple(lease.held()):
                self._leave(instance)
                self.finished += 1
        return over

    def fail(self, program: int, text: str) -> None:
        self._leave(self.live[program])
        self.failed[program] = text
        while len(self.failed) > FAILED_MAX:
            del self.failed[next(iter(self.failed))]

    def is_answered(self, instance: Instance) -> bool:
        lease = instance.lease
        return lease is not None and lease.instances.index(instance) < lease.answered

    def _need_until(self, instance: Instance, seq: int) -> None:
        instance.seq = max(instance.seq, seq)
        if instance.lease:
            instance.lease.seq = max(instance.lease.seq, seq)

    def _leave(self, instance: Instance) -> None:
        """Out of its place, and out of the book."""
        del self.live[instance.program]
        if instance.lease is None:
            (self.suspects if instance.suspect else self.waiting).remove(instance)
        self._release(instance)

    def _release(self, instance: Instance) -> None:
        lease, instance.lease = instance.lease, None
        if lease and not any(lease.held()):
            self.leases.pop(lease.number, None)

    # ---- leases --------------------------------------------------------------------------------------------------
    def take(self, count: int, suspect: bool = False) -> tuple[Instance, ...]:
        """The next instances out of `waiting` (or `suspects`), to be leased at once."""
        line = self.suspects if suspect else self.waiting
        return tuple(line.popleft() for _ in range(min(count, len(line))))

    def lease(self, worker: int, instances: tuple[Instance, ...], now: float) -> Lease:
        self.last_lease += 1
        holder = self.workers.get(worker)
        first = holder.sent if holder else 0
        lease = Lease(self.last_lease, worker, instances, first, now, seq=max(i.seq for i in instances))
        for instance in instances:
            instance.lease = lease
        self.leases[lease.number] = lease
        if holder:
            holder.sent += len(instances)
            holder.leases.append(lease)
        else:
            lease.answered = len(instances)
        return lease

    def answer(self, worker: Worker, encoded: int) -> list[Instance]:
        """The worker's own count moved. Returns what it newly answered. It cannot have encoded what it was not sent."""
        worker.encoded = min(encoded, worker.sent)
        newly: list[Instance] = []
        while worker.leases:
            lease = worker.leases[0]
            answered = max(0, min(worker.encoded - lease.first, len(lease.instances)))
            newly += (i for i in lease.instances[lease.answered : answered] if i.lease is lease)
            lease.answered = max(lease.answered, answered)
            if answered < len(lease.instances):
                break
            worker.leases.popleft()
        for instance in newly:
            instance.suspect = False
        return newly

    def head(self, worker: Worker) -> Instance | None:
        """What the worker is encoding, if it is somebody's business still."""
        if not worker.leases:
            return None
        lease = worker.leases[0]
        instance = lease.instances[lease.answered]
        return instance if instance.lease is lease else None

    def bury(self, worker: Worker) -> list[Instance]:
        """The worker is dead: what it had not answered waits again, in front. Answered programs are out of its hands."""
        lost: list[Instance] = []
        for lease in worker.leases:
            lost += (i for i in lease.instances[lease.answered :] if i.lease is lease)
            lease.instances = lease.instances[: lease.answered]
        worker.leases.clear()
        worker.sent = worker.encoded
        worker.graph = None
        self.wait_again(lost)
        return lost

    def lose_answers(self) -> list[Instance]:
        """The device is dead: programs that it may have had alone must be encoded again, whoever encoded them."""
        lost: list[Instance] = []
        for lease in list(self.leases.values()):
            lost += (i for i in lease.instances[: lease.answered] if i.lease is lease)
        self.wait_again(lost)
        return lost

    def wait_again(self, instances: list[Instance]) -> None:
        """In front of what never left, in stream order: the device needs the oldest first."""
        for instance in reversed(sorted(instances, key=lambda i: (i.begin, i.seq))):
            self._release(instance)
            (self.suspects if instance.suspect else self.waiting).appendleft(instance)

    def suspect(self, instance: Instance) -> None:
        """A worker died over this waiting instance: from now on it is held alone."""
        if not instance.suspect:
            self.waiting.remove(instance)
            instance.suspect = True
            self.suspects.append(instance)

    # ---- looking -------------------------------------------------------------------------------------------------
    def phase(self, program: int, done: int) -> str:
        instance = self.live.get(program)
        if instance is None:
            return "failed" if program in self.failed else "done or unknown"
        lease = instance.lease
        if lease is None:
            return "waiting"
        if lease.instances.index(instance) >= lease.answered:
            return "encoding"
        return "running" if done >= instance.begin else "ready"

    def validate(self) -> None:
        """Exact partition: every live instance in one place, every place known to its holder, every count a sum."""
        placed = [*self.waiting, *self.suspects, *(i for lease in self.leases.values() for i in lease.held())]
        hold(len(placed) == len(set(map(id, placed))), "an instance is in two places")
        hold({i.program: i for i in placed} == self.live, "places and live instances differ")
        hold(not self.live.keys() & self.failed.keys(), "an instance is live and failed")
        hold(all(i.lease is None and not i.suspect for i in self.waiting), "waiting, but leased or suspect")
        hold(all(i.lease is None and i.suspect for i in self.suspects), "suspect, but leased or trusted")
        for number, lease in self.leases.items():
            hold(lease.number == number and any(lease.held()), "lease {} holds nothing", number)
            hold(0 <= lease.answered <= len(lease.instances), "lease {} answered {}", number, lease.answered)
            hold(lease.seq >= max(i.seq for i in lease.held()), "lease {} ends before its launches", number)
            if lease.answered < len(lease.instances):
                holder = self.workers.get(lease.worker)
                hold(lease.worker != HERE and holder is not None and lease in holder.leases, "lease {} has no holder", number)
        for worker in self.workers.values():
            self._validate_worker(worker)

    def _validate_worker(self, worker: Worker) -> None:
        at = worker.encoded
        for lease in worker.leases:
            hold(lease.worker == worker.number, "worker {} holds another's lease {}", worker.number, lease.number)
            hold(lease.first + lease.answered == at, "worker {}: lease {} starts at {}", worker.number, lease.number, lease.first)
            at = lease.first + len(lease.instances)
            hold({i.plan for i in lease.held()} <= worker.plans, "worker {} lacks a plan it needs", worker.number)
            hold(not lease.solo or len(worker.leases) == 1, "worker {}: a suspect has company", worker.number)
        hold(at == worker.sent, "worker {}: sent {}, leases end at {}", worker.number, worker.sent, at)
        hold(worker.up or (not worker.leases and worker.graph is None), "worker {} is down and holds something", worker.number)


class InvariantError(AssertionError):
    """The scheduler contradicts itself: a bug in it, never the user's."""


def hold(true: bool, otherwise: str, *values: object) -> None:
    if not true:
        raise InvariantError("scheduler: validate: " + otherwise.format(*values))
