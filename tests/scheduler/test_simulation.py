"""Many seeds of the simulated world run well, a seed replays exactly, and planted bugs are found."""

import pytest

from dvm_rt.scheduler import book
from dvm_rt.scheduler import events as e
from dvm_rt.scheduler.state import SchedulerState
from tests.scheduler.simulator import Broken, simulate

SEEDS = 250


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_every_seed_ends_well(first):
    for seed in range(first, first + 50):
        try:
            simulate(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed} (python -m tests.scheduler.simulator {seed}): {error}") from error


@pytest.mark.parametrize("seed, growth", [(1273, 2), (1287, 2), (1878, 8)])
def test_seeds_that_once_failed_end_well(seed, growth, monkeypatch):
    monkeypatch.setattr("dvm_rt.scheduler.state.BATCH_GROWTH", growth)
    simulate(seed)


@pytest.mark.parametrize("seed", [3, 11, 29])
def test_a_seed_replays_exactly(seed):
    assert simulate(seed).trace == simulate(seed).trace


# ---- planted bugs: each must break some seed --------------------------------------------------------------------------
class ForgetsLostBatches(SchedulerState):
    def _bury(self, worker, now):
        out = super()._bury(worker, now)
        self.book.waiting.clear()
        return out


class LosesBatchesCleanly(SchedulerState):
    """Consistent books, but what a dead worker held is taken for done."""

    def _bury(self, worker, now):
        mine = [p for lease in worker.leases for run in self.book.held(lease) for p in run]
        out = super()._bury(worker, now)
        for program in mine:
            if program in self.book.live and not self.book.live[program].number:
                self.book._leave(program)
        return out


class UnleasedRefill(SchedulerState):
    """After a device death the refill goes to worker 0, and nobody leases it."""

    def _refill(self, now):
        lost = self.book.lose_answers()
        able = lost and self.book.workers[min(self.book.workers)].up
        return [e.SendInstances(min(self.book.workers), 0, (p,)) for p in lost.programs] if able else []


class NoRefill(SchedulerState):
    def _refill(self, now):
        return []


class NoBells(SchedulerState):
    def handle(self, event, now):
        return [c for c in super().handle(event, now) if not isinstance(c, e.RingBells)]


class BelievesTheDevice(SchedulerState):
    """A stopped device that last wrote "I miss a program" has innocent workers killed for ever."""

    def _suspect(self):
        if self.counters.waiting_program:
            return e.Process("encoder", 0)
        return super()._suspect()


class NoRestartLimit(SchedulerState):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        died = self.seats.died

        def forgiving(process, now, progress):
            died(process, now, True)
            return ""

        self.seats.died = forgiving


class KeepsPlansOverDeath(SchedulerState):
    def _new_life(self, number, now):
        plans = self.book.workers[number].plans
        super()._new_life(number, now)
        self.book.workers[number].plans = plans


class ForgetsTheCounters(SchedulerState):
    """A successor's counts are taken to begin at zero."""

    def _new_life(self, number, now):
        self.book.workers[number] = book.Worker(number, moved_at=now)


class BlamesWithoutEvidence(SchedulerState):
    def _look_at(self, suspect, now):
        late = now - self._since(suspect) > self.limits.lease_s
        able = suspect in self.seats.seats and self.seats.seats[suspect].up
        return self._blame(suspect, "late", now) if late and able else []


class SuspectsInCompany(SchedulerState):
    def _bury(self, worker, now):
        out = super()._bury(worker, now)
        while self.book.suspects:
            batch = self.book.suspects.popleft()
            batch.suspect = False
            self.book.waiting.appendleft(batch)
        return out


class CondemnsAtTheFirstDeath(SchedulerState):
    """Whoever is in a dead worker's hands is guilty, alone or not."""

    def _suspect_it(self, program, alone, now):
        super()._suspect_it(program, True, now)
        return super()._suspect_it(program, True, now)


class NeverPoison(SchedulerState):
    def _suspect_it(self, program, alone, now):
        return super()._suspect_it(program, False, now)


class MovesLeasesBeforeTheDeath(SchedulerState):
    def _blame(self, process, why, now):
        out = super()._blame(process, why, now)
        if process.role == "encoder" and process in self.seats.seats:
            self._bury(self.book.workers[process.index], now)
        return out


class LeaksCredit(SchedulerState):
    def _lease(self, worker, batch, now):
        out = super()._lease(worker, batch, now)
        worker.sent -= 1
        return out


class IgnoresCredit(SchedulerState):
    def _least_loaded(self):
        return min((w for w in self.book.workers.values() if w.up), key=lambda w: w.backlog, default=None)


class LosesGraphs(SchedulerState):
    def _graph_lost(self, graph, now):
        self.graphs.requests[graph].worker = None
        return []


class LosesGraphsCleanly(SchedulerState):
    def _graph_lost(self, graph, now):
        self.graphs.requests.pop(graph, None)
        return []


class AnswersGraphsTwice(SchedulerState):
    def _graph_answered(self, event, now):
        super()._graph_answered(event, now)
        return [e.AnswerGraph(event.graph)]


class DoneTooEarly(SchedulerState):
    def _counted(self, event, now):
        out = super()._counted(event, now)
        self.book.finish(event.launched)
        return out


class StartsBesideTheLiving(SchedulerState):
    def _blame(self, process, why, now):
        out = super()._blame(process, why, now)
        return [*out, *self._start(process, now)] if process in self.seats.seats else out


class NoZygoteRestart(SchedulerState):
    def _start(self, process, now):
        return [] if process == e.ZYGOTE and self.deaths else super()._start(process, now)


class ForgetsThoseWhoWaitedForTheZygote(SchedulerState):
    def _zygote_ready(self, event, now):
        if self.deaths:
            self.seats.zygote_answers = True
            return []
        return super()._zygote_ready(event, now)


class ShipsNothingOnCounters(SchedulerState):
    def handle(self, event, now):
        if isinstance(event, e.Counters):
            return self._counted(event, now)
        return super().handle(event, now)


class GivesUpPlansInUse(SchedulerState):
    def _plan_forgotten(self, event, now):
        holders = [w for w in self.book.workers.values() if event.plan in w.plans]
        for worker in holders:
            worker.plans.discard(event.plan)
        return [e.SendForget(w.number, event.plan) for w in holders]


class BelievesInPlansGivenUp(SchedulerState):
    def _plan_forgotten(self, event, now):
        return [e.SendForget(w.number, event.plan) for w in self.book.workers.values() if event.plan in w.plans]


class TrustsRemoteOrder(SchedulerState):
    def _received(self, event, now):
        worker = self.book.workers.get(event.worker)
        return [] if worker is None else [e.DeliverPrograms(event.programs)]


PLANTED = [
    ForgetsLostBatches, LosesBatchesCleanly, UnleasedRefill, NoRefill, NoBells, BelievesTheDevice, NoRestartLimit,
    KeepsPlansOverDeath, ForgetsTheCounters, BlamesWithoutEvidence, SuspectsInCompany, CondemnsAtTheFirstDeath, NeverPoison,
    MovesLeasesBeforeTheDeath, LeaksCredit, IgnoresCredit, LosesGraphs, LosesGraphsCleanly, AnswersGraphsTwice, DoneTooEarly,
    StartsBesideTheLiving, NoZygoteRestart, ForgetsThoseWhoWaitedForTheZygote, ShipsNothingOnCounters, TrustsRemoteOrder,
    GivesUpPlansInUse, BelievesInPlansGivenUp,
]  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED, ids=lambda c: c.__name__)
def test_a_planted_bug_is_found(planted):
    for seed in range(SEEDS):
        try:
            simulate(seed, planted)
        except (Broken, book.InvariantError, KeyError, ValueError, AttributeError, RecursionError):
            return
    raise AssertionError(f"{planted.__name__} survived {SEEDS} seeds")
