"""Who holds what: operator instances in batches, and the workers that hold the batches.

Owns the place of every live instance. `live` maps each to its batch; a batch is in exactly one place: `waiting` (nobody has
it), `suspects` (one instance, waiting to be held alone because a worker died over it), or leased to a worker (or to
HERE, the caller). The worker's count of encoded instances says how far a lease is answered. Answered instances are *ready*
(their program is on its way to the device), then *running* (the device is among the launches that need them), then
done: forgotten. What a dead worker had not answered goes back to the front. An instance may leave its batch early (it
failed, or was asked for anew): a batch *holds* only the instances that `live` maps to it. Streams of new shapes
pass through here: a batch whose numbers are one run (`runs.py`) arrives, is leased, answered and done at the same cost however
large it is. Knows no policy, no time, no process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from dvm_rt.scheduler.events import HERE
from dvm_rt.scheduler.runs import Runs, joined

FAILED_MAX = 1024  # remembered for story() and phase()


@dataclass(slots=True, eq=False)
class Batch:
    """Instances that go together. Their first launches lie in (begin, seq]. Leased: `number` counts leases, `first` is the
    worker's count before it, `answered` how many are encoded."""

    programs: Sequence[int]
    plans: tuple[int, ...]
    begin: int
    seq: int
    suspect: bool = False
    number: int = 0
    worker: int = HERE
    first: int = 0
    answered: int = 0

    @property
    def is_answered(self) -> bool:
        return self.answered == len(self.programs)

    def part(self, start: int, end: int) -> Batch:
        """These instances as a batch that nobody has."""
        return Batch(self.programs[start:end], self.plans[start:end], self.begin, self.seq, self.suspect)


@dataclass(slots=True, eq=False)
class Worker:
    """One life of a worker. `encoded` is its own count, `sent` is ours."""

    number: int
    remote: bool = False
    up: bool = True
    ready: bool = False
    draining: bool = False  # it answers what it holds, and leaves
    sent: int = 0
    encoded: int = 0
    begun: int = 0  # instances that it took in hand in this life
    born_received: int = 0
    born_encoded: int = 0
    moved_at: float = 0.0
    refusals: int = 0  # of its programs, by the device
    plans: set[int] = field(default_factory=set)
    leases: deque[Batch] = field(default_factory=deque)
    graph: int | None = None
    graph_since: float = 0.0

    @property
    def takes(self) -> bool:
        """Whether it may be sent something."""
        return self.up and not self.draining

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
        self.live: Runs[Batch] = Runs()
        self.waiting: deque[Batch] = deque()
        self.suspects: deque[Batch] = deque()
        self.leases: dict[int, Batch] = {}
        self.workers: dict[int, Worker] = {}
        self.solo_deaths: dict[int, int] = {}
        self.failed: dict[int, str] = {}
        self.finished = 0
        self.last_lease = 0

    # ---- instances come and go -----------------------------------------------------------------------------------
    def arrive(self, programs: Sequence[int], plans: tuple[int, ...], begin: int, seq: int) -> Sequence[int]:
        """New instances, in order. One that nobody has encoded yet only learns that a later launch needs it too. One that
        was answered is asked for again because the program is gone from where it was: it starts anew."""
        if any(self.live.within(programs)):
            fresh = [(p, n) for p, n in zip(programs, plans, strict=True) if not self._is_known(p, seq)]
            programs, plans = tuple(p for p, _ in fresh), tuple(n for _, n in fresh)
        if programs:
            self._wait(Batch(programs, plans, begin, seq), self.waiting.append)
        if self.failed:
            for program in programs:
                self.failed.pop(program, None)
        return programs

    def _is_known(self, program: int, seq: int) -> bool:
        """Nobody has encoded it yet: it is needed for longer. Else it leaves the batch that it was in."""
        batch = self.live.get(program)
        if batch is None:
            return False
        if self.is_answered(program):
            self._leave(program)
            return False
        batch.seq = max(batch.seq, seq)
        return True

    def finish(self, done: int) -> list[Batch]:
        """What was answered and whose launches are committed is done. What nobody answered yet stays: it may have been
        asked for ahead of its launch."""
        over = [lease for lease in self.leases.values() if lease.seq <= done and lease.is_answered]
        for lease in over:
            for run in self.held(lease):
                self.live.remove(run)
                self.finished += len(run)
            del self.leases[lease.number]
        return over

    def fail(self, program: int, text: str) -> None:
        self._leave(program)
        self.solo_deaths.pop(program, None)
        self.failed[program] = text
        while len(self.failed) > FAILED_MAX:
            del self.failed[next(iter(self.failed))]

    def _leave(self, program: int) -> Batch:
        """Out of its batch, and out of the book; the batch it was in."""
        batch = self.live.pop(program)
        if batch.number:
            self._drop_if_empty(batch)
        else:
            keep = [i for i, p in enumerate(batch.programs) if p != program]
            batch.programs, batch.plans = tuple(batch.programs[i] for i in keep), tuple(batch.plans[i] for i in keep)
            if not keep:
                (self.suspects if batch.suspect else self.waiting).remove(batch)
        return batch

    def _drop_if_empty(self, lease: Batch) -> None:
        if not self.held(lease):
            self.leases.pop(lease.number, None)

    # ---- waiting -------------------------------------------------------------------------------------------------
    def _wait(self, batch: Batch, put: Callable[[Batch], None]) -> None:
        self.live.put(batch.programs, batch)
        put(batch)

    def wait_again(self, batches: Iterable[Batch]) -> None:
        """In front of what never left, in stream order: the device needs the oldest first."""
        for batch in reversed(sorted(batches, key=lambda b: (b.begin, b.seq))):
            self._wait(batch, (self.suspects if batch.suspect else self.waiting).appendleft)

    def take(self, most: int) -> Batch:
        """Up to so many waiting instances as one batch, to be leased at once."""
        batch = self.waiting.popleft()
        if len(batch.programs) > most:
            rest = batch.part(most, len(batch.programs))
            self._wait(rest, self.waiting.appendleft)
            return batch.part(0, most)
        while self.waiting and len(batch.programs) + len(self.waiting[0].programs) <= most:
            more = self.waiting.popleft()
            batch = Batch(
                joined(batch.programs, more.programs), batch.plans + more.plans, min(batch.begin, more.begin),
                max(batch.seq, more.seq)
            )
        return batch

    def suspect(self, program: int) -> None:
        """A worker died over this waiting instance: from now on it is held alone."""
        batch = self.live[program]
        if batch.suspect:
            return
        at = batch.programs.index(program)
        alone = batch.part(at, at + 1)
        alone.suspect = True
        self._leave(program)
        self._wait(alone, self.suspects.append)
        self.solo_deaths.setdefault(program, 0)

    # ---- leases --------------------------------------------------------------------------------------------------
    def lease(self, worker: int, batch: Batch) -> Batch:
        self.last_lease += 1
        batch.number, batch.worker = self.last_lease, worker
        self.live.put(batch.programs, batch)
        self.leases[batch.number] = batch
        holder = self.workers.get(worker)
        if holder is None:
            batch.answered = len(batch.programs)
        else:
            batch.first = holder.sent
            holder.sent += len(batch.programs)
            holder.leases.append(batch)
        return batch

    def answer(self, worker: Worker, encoded: int) -> list[Sequence[int]]:
        """The worker's own count moved. Returns what it newly answered, lease by lease. It cannot have encoded what
        it was not sent."""
        worker.encoded = min(encoded, worker.sent)
        newly: list[Sequence[int]] = []
        while worker.leases:
            lease = worker.leases[0]
            answered = max(lease.answered, min(worker.encoded - lease.first, len(lease.programs)))
            if answered > lease.answered:
                newly.append(lease.programs[lease.answered : answered])
            lease.answered = answered
            if not lease.is_answered:
                break
            if lease.suspect:  # it was innocent
                lease.suspect = False
                self.solo_deaths.pop(lease.programs[0], None)
            worker.leases.popleft()
        return newly

    def head(self, worker: Worker) -> int | None:
        """What the worker is encoding, if it is somebody's business still: what it took in hand last. What it had
        encoded before and not counted yet is innocent."""
        if not worker.leases:
            return None
        lease = worker.leases[0]
        at = lease.answered + worker.begun - (worker.encoded - worker.born_encoded) - 1
        program = lease.programs[min(at, len(lease.programs) - 1)]
        return program if self.live.get(program) is lease else None

    def bury(self, worker: Worker) -> list[int]:
        """The worker is dead: what it had not answered waits again, in front. Answered programs are out of its hands."""
        lost = []
        for lease in worker.leases:
            rest = self._cut(lease, lease.answered, len(lease.programs))
            lease.programs, lease.plans = lease.programs[: lease.answered], lease.plans[: lease.answered]
            lost += rest
        worker.leases.clear()
        worker.sent, worker.graph = worker.encoded, None
        self.wait_again(lost)
        return [p for batch in lost for p in batch.programs]

    def lose_answers(self) -> Batch | None:
        """The device is dead: programs that it may have had alone must be encoded again, whoever encoded them. They are out
        of the book until the batch is leased."""
        lost = [batch for lease in list(self.leases.values()) for batch in self._cut(lease, 0, lease.answered)]
        lost.sort(key=lambda b: (b.begin, b.seq))
        if not lost:
            return None
        programs, plans = tuple(p for b in lost for p in b.programs), tuple(n for b in lost for n in b.plans)
        return Batch(programs, plans, lost[0].begin, max(b.seq for b in lost))

    def _cut(self, lease: Batch, start: int, end: int) -> list[Batch]:
        """What the lease holds of this part, as a batch of its own; the lease does not hold it any more."""
        kept = [i for i in range(start, end) if self.live.get(lease.programs[i]) is lease]
        if not kept:
            return []
        for i in kept:
            del self.live[lease.programs[i]]
        self._drop_if_empty(lease)
        programs, plans = tuple(lease.programs[i] for i in kept), tuple(lease.plans[i] for i in kept)
        return [Batch(programs, plans, lease.begin, lease.seq, lease.suspect)]

    # ---- looking -------------------------------------------------------------------------------------------------
    def held(self, batch: Batch) -> list[range]:
        return [run for run, holder in self.live.within(batch.programs) if holder is batch]

    def is_answered(self, program: int) -> bool:
        batch = self.live[program]
        return batch.number > 0 and batch.programs.index(program) < batch.answered

    def phase(self, program: int, done: int) -> str:
        batch = self.live.get(program)
        if batch is None:
            return "failed" if program in self.failed else "done or unknown"
        if not batch.number:
            return "waiting"
        if not self.is_answered(program):
            return "encoding"
        return "running" if done >= batch.begin else "ready"

    def validate(self) -> None:
        """Exact partition: every live instance in one place, every place known to its holder, every count a sum."""
        lines = [*self.waiting, *self.suspects]
        held = [(p, batch) for batch in lines for p in batch.programs]
        held += [(p, lease) for lease in self.leases.values() for run in self.held(lease) for p in run]
        hold(len(held) == len(self.live), "places hold {} instances, {} are live", len(held), len(self.live))
        hold(all(self.live.get(p) is batch for p, batch in held), "an instance is in two places, or in none")
        hold(not self.live.keys() & self.failed.keys(), "an instance is live and failed")
        hold(all(b.programs and not b.number and b.suspect == (b in self.suspects) for b in lines), "a line holds what is leased")
        hold(all(len(b.programs) == 1 and b.programs[0] in self.solo_deaths for b in self.suspects), "a suspect has company")
        hold(all(len(b.programs) == len(b.plans) for _, b in held), "an instance without a plan")
        for number, lease in self.leases.items():
            hold(lease.number == number and bool(self.held(lease)), "lease {} holds nothing", number)
            hold(0 <= lease.answered <= len(lease.programs), "lease {} answered {}", number, lease.answered)
            if not lease.is_answered:
                holder = self.workers.get(lease.worker)
                hold(holder is not None and lease in holder.leases, "lease {} has no holder", number)
        for worker in self.workers.values():
            self._validate_worker(worker)

    def _validate_worker(self, worker: Worker) -> None:
        at, number = worker.encoded, worker.number
        for lease in worker.leases:
            hold(lease.worker == number, "worker {} holds another's lease {}", number, lease.number)
            hold(lease.first + lease.answered == at, "worker {}: lease {} starts at {}", number, lease.number, lease.first)
            at = lease.first + len(lease.programs)
            hold(worker.plans.issuperset(lease.plans), "worker {} lacks a plan it needs", number)
            alone = len(worker.leases) == 1 and len(lease.programs) == 1
            hold(alone or not (lease.suspect and self.held(lease)), "worker {}: a suspect has company", number)
        hold(at == worker.sent, "worker {}: sent {}, leases end at {}", number, worker.sent, at)
        hold(worker.up or (not worker.leases and worker.graph is None), "worker {} is down and holds something", number)


class InvariantError(AssertionError):
    """The scheduler contradicts itself: a bug in it, never the user's."""


def hold(true: bool, otherwise: str, *values: object) -> None:
    if not true:
        raise InvariantError("scheduler: validate: " + otherwise.format(*values))
