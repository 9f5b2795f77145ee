"""The state machine, event by event: every rule of `scheduler/state.py` once, with its invariants after each event."""

from dataclasses import replace

import pytest

from dvm_rt.scheduler import events as e
from dvm_rt.scheduler.book import InvariantError
from dvm_rt.scheduler.graphs import GraphRequest
from dvm_rt.scheduler.limits import Limits
from dvm_rt.scheduler.policy import Costs, Situation, modelled_encode_us, who_encodes
from dvm_rt.scheduler.state import SchedulerState

LIMITS = Limits(batch_max=8, worker_credits=16, lease_s=1.0, device_lease_s=20.0, graph_lease_s=10.0)
E0, E1 = e.Process("encoder", 0), e.Process("encoder", 1)


class Driver:
    """Tells the state one thing after another and validates it each time."""

    def __init__(self, workers: int = 1, policy: str = "workers", **limits: object) -> None:
        self.state = SchedulerState(workers, policy, replace(LIMITS, **limits))
        self.now = 0.0
        self.counters = e.Counters(0, 0, 0, False, ((0, 0),) * workers)
        self.tell(e.Opening(), e.ZygoteReady(0))

    def tell(self, *events: e.Event, after: float = 0.0) -> list[e.Command]:
        self.now += after
        out = []
        for event in events:
            out += self.state.handle(event, self.now)
            self.state.validate()
        return out

    def count(self, *workers: tuple[int, int], after: float = 0.0, **words: int) -> list[e.Command]:
        self.counters = self.counters._replace(**words, **({"workers": workers} if workers else {}))
        return self.tell(self.counters, after=after)

    def arrive(self, *programs: int, plan: int = 7, waited: bool = False) -> list[e.Command]:
        begin = self.counters.launched
        self.counters = self.counters._replace(launched=begin + len(programs))
        plans = (plan,) * len(programs)
        return self.tell(self.counters, e.InstancesArrived(programs, plans, begin, self.counters.launched, waited))

    def phase(self, program: int) -> str:
        return self.state.book.phase(program, self.counters.done)

    def wait_for_blame(self, what: dict[e.Process, tuple[str, float]], limit_s: float = 60.0,
                       tick_s: float = 0.05) -> tuple[e.Process, float]:
        """Ticks until somebody is killed; `what` is the kernel's word: (doing, share of a CPU). Returns who, and when."""
        start = self.now
        while self.now < start + limit_s:
            for command in self.tell(e.Tick(), after=tick_s):
                if isinstance(command, e.KillProcess):
                    return command.process, self.now - start
                if isinstance(command, e.InspectProcess):
                    doing, share = what.get(command.process, ("sleeping", 0.0))
                    self.tell(e.Inspected(command.process, doing, share * self.now))
        return e.ZYGOTE, limit_s


def kinds(commands: list[e.Command]) -> list[type]:
    return [type(c) for c in commands]


def sent(commands: list[e.Command]) -> list[tuple[int, tuple[int, ...]]]:
    return [(c.worker, c.programs) for c in commands if isinstance(c, e.SendInstances)]


def test_a_device_that_took_what_it_waited_for_has_its_own_time_from_then_on():
    """The worker was late, the device was not: between two looks at the counters it got the program and runs it."""
    d = Driver()
    d.arrive(1, 2)
    d.count(device_up=True, waiting_program=1)
    d.wait_for_blame({E0: ("running", 1.0)}, limit_s=0.9)
    d.count((2, 2), waiting_program=0, after=0.2)
    who, when = d.wait_for_blame({e.DEVICE: ("stopped", 0.0)})
    assert who == e.DEVICE and when >= LIMITS.lease_s


# ---- one instance -----------------------------------------------------------------------------------------------------
def test_an_instance_goes_through_its_phases():
    d = Driver()
    assert kinds(d.arrive(1)) == [e.SendPlan, e.SendInstances]
    assert d.phase(1) == "encoding"
    d.count((1, 1))
    assert d.phase(1) == "running"
    d.arrive(2, 3)
    d.count((3, 3))
    assert d.phase(3) == "ready"  # the device is not among its launches yet
    d.count(done=1)
    assert d.phase(1) == "done or unknown" and d.phase(3) == "running"
    d.count(done=3)
    assert not d.state.book.live and d.state.book.finished == 3
    assert [line.split("  ")[-1] for line in d.state.story(3).splitlines()[:-1]] == [
        "arrived", "leased to worker 0 as 2", "encoded by worker 0", "done, lease 2",
    ]  # fmt: skip


def test_a_plan_is_sent_once_in_a_life():
    d = Driver()
    assert kinds(d.arrive(1)) == [e.SendPlan, e.SendInstances]
    assert kinds(d.arrive(2)) == [e.SendInstances]
    assert kinds(d.arrive(3, plan=8)) == [e.SendPlan, e.SendInstances]
    again = d.tell(e.ProcessDied(E0, 0))
    assert [c.plan for c in again if isinstance(c, e.SendPlan)] == [7, 8]


def test_a_plan_that_is_given_up_is_sent_again_if_it_is_needed_after_all():
    d = Driver()
    d.arrive(1, plan=7)
    assert d.tell(e.PlanForgotten(7)) == []  # an instance of it is at the worker
    d.count((1, 1), done=1)
    assert d.tell(e.PlanForgotten(7)) == [e.SendForget(0, 7)]
    assert kinds(d.arrive(2, plan=7)) == [e.SendPlan, e.SendInstances]


def test_batches_grow_until_somebody_waits():
    d = Driver(worker_credits=1000, batch_max=20)
    sizes = [len(p) for _, p in sent(d.arrive(*range(100)))]
    assert sizes == [1, 8, 20, 20, 20, 20, 11]
    d.tell(e.Waited())
    assert [len(p) for _, p in sent(d.arrive(*range(100, 104)))] == [1, 3]
    assert d.state.batch_limit == 20
    d.arrive(200, waited=True)
    assert d.state.batch_limit == 1


def test_the_least_loaded_worker_gets_the_next_batch():
    d = Driver(workers=2)
    assert [w for w, _ in sent(d.arrive(1))] == [0]
    assert [w for w, _ in sent(d.arrive(2))] == [1]
    d.count((1, 1), (0, 0))
    assert [w for w, _ in sent(d.arrive(3))] == [0]


def test_credits_bound_what_a_worker_holds():
    d = Driver(worker_credits=10)
    assert sum(len(p) for _, p in sent(d.arrive(*range(30)))) == 10
    assert [len(b.programs) for b in d.state.book.waiting] == [20]
    assert sum(len(p) for _, p in sent(d.count((4, 4)))) == 4


def test_an_instance_that_is_asked_for_twice_is_sent_once_unless_it_was_answered():
    d = Driver()
    d.arrive(1)
    assert sent(d.arrive(1)) == []
    d.count((1, 1))
    assert sent(d.arrive(1)) == [(0, (1,))]


def test_a_worker_cannot_have_encoded_more_than_it_was_sent():
    d = Driver()
    d.arrive(1, 2)
    d.count((9, 9))
    assert d.state.book.workers[0].backlog == 0


# ---- deaths -----------------------------------------------------------------------------------------------------------
def test_what_a_dead_worker_had_not_encoded_is_leased_again_in_front():
    d = Driver(workers=2, worker_credits=8)
    d.arrive(*range(20))
    d.count((4, 2), (0, 0))
    before, held = set(d.state.book.live), [p for lease in d.state.book.workers[0].leases for p in lease.programs]
    out = d.tell(e.ProcessDied(E0, 0))
    assert set(d.state.book.live) == before
    resent = [p for _, programs in sent(out) for p in programs]
    assert resent[0] in held and e.RingBells in kinds(out) and e.StartProcess in kinds(out)


def test_a_stale_death_is_ignored():
    d = Driver()
    assert d.tell(e.ProcessDied(E0, 5)) == [] and d.tell(e.ProcessDied(E0, 0)) != [] and d.tell(e.ProcessDied(E0, 0)) == []
    assert d.state.ignored == 2


def test_bells_ring_after_every_death():  # lost wake-up
    d = Driver(workers=1)
    for process in (E0, e.DEVICE, e.ZYGOTE):
        assert e.RingBells in kinds(d.tell(e.ProcessDied(process, 0)))


def test_everything_that_is_sent_again_is_leased_again():  # unleased refill
    d = Driver(workers=1)
    d.arrive(1, 2, 3)
    d.count((3, 3), waiting_program=0)
    out = d.tell(e.ProcessDied(e.DEVICE, 0))
    assert [c.programs for c in out if isinstance(c, e.EncodeHere)] == [(1, 2, 3)]
    assert kinds(out).index(e.ReplayDevice) < kinds(out).index(e.StartProcess)
    d.tell(e.ProcessDied(E0, 0))
    assert {d.phase(p) for p in (1, 2, 3)} == {"running"}  # ours now: no encoder's death matters to them
    d.arrive(1)  # the stream asks for a cached program that went with the device
    out = d.tell(e.ProcessDied(E0, 1))
    assert sent(out) == [(0, (1,))]


def test_children_wait_for_their_zygote():
    d = Driver(workers=1)
    out = d.tell(e.ProcessDied(E0, 0))
    assert e.StartProcess(E0, 1) in out
    assert e.StartProcess(e.ZYGOTE, 1) in d.tell(e.ProcessDied(e.ZYGOTE, 0))
    assert e.StartProcess not in kinds(d.tell(e.ProcessDied(E0, 1)))
    assert d.tell(e.ZygoteReady(0)) == []  # of the dead one
    assert e.StartProcess(E0, 2) in d.tell(e.ZygoteReady(1))
    assert e.StartProcess(e.DEVICE, 1) in d.tell(e.ProcessDied(e.DEVICE, 0))


def test_a_crash_loop_ends_the_runtime():
    d = Driver()
    d.arrive(1)
    for life in range(4):
        assert e.FailRuntime not in kinds(d.tell(e.ProcessDied(e.DEVICE, life), after=0.01))
    out = d.tell(e.ProcessDied(e.DEVICE, 4))
    assert kinds(out) == [e.FailRuntime] and "got 5, allowed 4" in out[0].text
    assert d.tell(e.Tick()) == []


def test_deaths_with_progress_between_them_do_not_count():
    d = Driver()
    for life in range(30):
        d.arrive(100 + life)
        d.count((life + 1, life + 1), done=life + 1)
        assert e.FailRuntime not in kinds(d.tell(e.ProcessDied(e.DEVICE, life), after=0.1))


def test_idle_workers_may_die_often_if_they_got_past_their_start():
    d = Driver(restarts_max=50)
    for life in range(20):
        d.tell(e.WorkerReady(0, life))
        assert e.FailRuntime not in kinds(d.tell(e.ProcessDied(E0, life), after=0.01))
    for life in range(20, 24):
        assert e.FailRuntime not in kinds(d.tell(e.ProcessDied(E0, life), after=0.01))
    assert e.FailRuntime in kinds(d.tell(e.ProcessDied(E0, 24)))


def test_restarts_are_bounded_even_with_progress():
    d = Driver(restarts_max=10, restart_window_s=5.0)
    for life in range(10):
        d.tell(e.WorkerReady(0, life))
        assert e.FailRuntime not in kinds(d.tell(e.ProcessDied(E0, life)))
    d.tell(e.WorkerReady(0, 10))
    assert e.FailRuntime in kinds(d.tell(e.ProcessDied(E0, 10)))


def test_a_launch_that_kills_every_device_is_given_up_alone():
    d = Driver()
    d.arrive(1)
    d.count(done=3, launched=9, device_up=True)
    for life in range(5):  # the first of them has made progress
        assert e.FailLaunch not in kinds(d.tell(e.ProcessDied(e.DEVICE, life), after=0.01))
        d.count(done=3, launched=9, device_up=True)
    out = d.tell(e.ProcessDied(e.DEVICE, 5), after=0.01)
    assert kinds(out)[:2] == [e.FailLaunch, e.ReplayDevice] and (out[0].seq, out[0].error) == (4, "PoisonRequestError")
    for life in range(6, 11):  # the next one has as many lives
        d.count(done=4, launched=9, device_up=True)
        assert {e.FailLaunch, e.FailRuntime}.isdisjoint(kinds(d.tell(e.ProcessDied(e.DEVICE, life), after=0.01)))
    for changed in ({"waiting_program": 7}, {"launched": 4}, {"device_up": False}):  # it died of something else
        other = Driver()
        other.arrive(1)
        for life in range(6):
            if other.state.unhealthy:
                break
            other.count(**({"done": 4, "launched": 9, "device_up": True} | changed))
            out = other.tell(e.ProcessDied(e.DEVICE, life), after=0.01)
            assert e.FailLaunch not in kinds(out)


# ---- poison -----------------------------------------------------------------------------------------------------------
def test_a_poison_instance_fails_after_two_solo_deaths_and_the_others_do_not():
    d = Driver(solo_deaths_max=2)
    d.arrive(1, 2, 3, 4)
    d.count((2, 1))  # it died over 2, with 3 and 4 in its inbox
    d.tell(e.ProcessDied(E0, 0))
    assert d.phase(2) == "encoding" and {d.phase(3), d.phase(4)} == {"waiting"}  # 2 alone
    d.count((3, 1))
    d.tell(e.ProcessDied(E0, 1))
    d.count((4, 1))
    out = d.tell(e.ProcessDied(E0, 2))
    assert [(c.program, c.error) for c in out if isinstance(c, e.FailProgram)] == [(2, "PoisonRequestError")]
    assert d.phase(2) == "failed" and {d.phase(3), d.phase(4)} == {"encoding"}
    d.count((6, 3), done=4)
    assert not d.state.book.live


def test_what_a_worker_had_encoded_and_not_counted_is_innocent():
    d = Driver()
    d.arrive(1, 2, 3, 4)
    d.count((3, 1))  # 2 is in its ring, unseen: it died over 3
    d.tell(e.ProcessDied(E0, 0))
    assert [p for p in (2, 3, 4) if d.state.book.live[p].suspect] == [3]
    assert d.phase(3) == "encoding" and {d.phase(2), d.phase(4)} == {"waiting"}


def test_an_instance_in_the_inbox_of_a_dead_worker_is_not_suspected():
    d = Driver()
    d.arrive(1, 2)
    for life in range(3):
        d.tell(e.ProcessDied(E0, life))
        assert not d.state.book.suspects and not any(b.suspect for b in d.state.book.live.values())


def test_a_suspect_that_is_encoded_alone_is_cleared():
    d = Driver()
    d.arrive(1, 2)
    d.count((1, 0))
    d.tell(e.ProcessDied(E0, 0))
    assert d.state.book.live[1].suspect
    assert sent(d.count((2, 1))) == [(0, (2,))]
    assert not d.state.book.live[1].suspect


def test_a_suspect_is_never_encoded_in_the_caller():
    d = Driver()
    d.arrive(1, 2)
    d.count((1, 0))
    d.tell(e.ProcessDied(E0, 0))
    for life in range(3):
        out = d.tell(e.ProcessDied(e.DEVICE, life))
        assert all(1 not in c.programs for c in out if isinstance(c, e.EncodeHere))
        d.tell(e.Tick(), after=0.1)


# ---- who is late ------------------------------------------------------------------------------------------------------
def waiting_for_worker() -> Driver:
    d = Driver()
    d.tell(e.WorkerReady(0, 0))
    d.arrive(1, waited=True)
    d.count(waiting_program=1, device_up=True)
    return d


def test_a_hung_worker_is_replaced_after_its_lease():
    d = waiting_for_worker()
    who, when = d.wait_for_blame({E0: ("stopped", 0.0)})
    assert who == E0 and 1.0 < when < 1.2
    assert d.phase(1) == "encoding"  # the lease moves with the death, not before
    assert sent(d.tell(e.ProcessDied(E0, 0))) == [(0, (1,))]


def test_a_busy_loop_is_a_hang():
    assert waiting_for_worker().wait_for_blame({E0: ("running", 1.0)})[0] == E0


def test_a_process_that_gets_no_cpu_is_given_time():
    who, when = waiting_for_worker().wait_for_blame({E0: ("running", 0.0)})
    assert who == E0 and 8.0 < when < 8.3


def test_a_worker_at_its_start_has_the_time_for_it():
    """Starting takes what it takes, more on a busy machine; one after the other would die of it until none is started
    any more."""
    d = Driver()
    d.arrive(1)
    d.count(waiting_program=1, device_up=True)
    who, when = d.wait_for_blame({E0: ("running", 0.1)})
    assert who == E0 and 10.0 < when < 10.2
    for doing, least in (("sleeping", 8.0), ("stopped", 1.0)):
        d = Driver()
        d.arrive(1)
        d.count(waiting_program=1, device_up=True)
        who, when = d.wait_for_blame({E0: (doing, 0.0)})
        assert who == E0 and least < when < least + 0.3


def test_a_worker_that_a_starved_client_has_not_reached_is_given_time():
    """Its count says that it has taken nothing in hand, and our own ticks were late: so was what we sent. One that sleeps over
    what it has begun has no such excuse, nor has anybody while we are on time."""
    for tick_s, begun, least in ((0.4, 0, 8.0), (0.4, 1, 1.0), (0.05, 0, 1.0)):
        d = waiting_for_worker()
        d.count((begun, 0))
        who, when = d.wait_for_blame({E0: ("sleeping", 0.0)}, tick_s=tick_s)
        assert who == E0 and least < when < least + 2 * tick_s + 0.2


def test_a_stale_self_report_blames_nobody_else():
    """The device last wrote that it misses program 1; the worker's own count says that it is encoded."""
    d = waiting_for_worker()
    d.count((1, 1))
    assert d.wait_for_blame({})[0] == e.DEVICE


def test_a_stopped_device_is_blamed_before_the_worker_it_points_at():
    d = waiting_for_worker()
    assert d.wait_for_blame({E0: ("sleeping", 0.0), e.DEVICE: ("stopped", 0.0)})[0] == e.DEVICE


def test_when_replacing_workers_is_in_vain_the_device_goes():
    d = waiting_for_worker()
    killed = []
    for life in range(6):
        killed.append(d.wait_for_blame({})[0])
        if killed[-1] == e.DEVICE:
            break
        d.tell(e.ProcessDied(E0, life), e.WorkerReady(0, life + 1))
    assert killed == [E0, E0, E0, e.DEVICE]


@pytest.mark.parametrize("doing", [("running", 1.0), ("running", 0.1), ("running", 0.0), ("sleeping", 0.5)])
def test_a_device_that_computes_is_believed_longer(doing):
    """Also on a machine where others have most of the CPUs, and while its first thread waits for others of its threads."""
    d = Driver(policy="caller")
    d.arrive(1)
    who, when = d.wait_for_blame({e.DEVICE: doing})
    assert who == e.DEVICE and 20.0 < when < 20.5


@pytest.mark.parametrize("doing", [("sleeping", 0.0), ("sleeping", 0.01), ("stopped", 0.0)])
def test_a_device_that_only_waits_is_not(doing):
    d = Driver(policy="caller")
    d.arrive(1)
    who, when = d.wait_for_blame({e.DEVICE: doing})
    assert who == e.DEVICE and when < 2.0


def test_the_lease_clock_stands_still_while_nothing_is_outstanding():
    d = Driver()
    d.arrive(1)
    d.count((1, 1), done=1)
    assert d.wait_for_blame({}, 5.0)[0] == e.ZYGOTE  # nobody
    d.arrive(2)
    who, when = d.wait_for_blame({})
    assert who == e.DEVICE and when > 1.0


def test_commits_reset_the_clock():
    d = Driver(policy="caller")
    d.arrive(*range(100))
    for done in range(1, 50):
        d.count(done=done)
        assert d.wait_for_blame({}, 0.9)[0] == e.ZYGOTE


# ---- remote workers ---------------------------------------------------------------------------------------------------
def test_remote_workers_take_part_and_leave():
    d = Driver(workers=0)
    d.tell(e.RemoteJoined(1000))
    ((worker, programs),) = sent(d.arrive(1))
    assert (worker, programs) == (1000, (1,))
    lease = d.state.book.last_lease
    assert d.tell(e.ProgramsReceived(1000, lease, (1,))) == [e.DeliverPrograms((1,))]
    d.arrive(2)
    out = d.tell(e.RemoteLeft(1000, "gone"))
    assert e.DropWorker(1000, "gone") in out and e.EncodeHere((2,)) in out  # there is nobody else
    assert d.tell(e.RemoteLeft(1000, "gone")) == [] and d.tell(e.ProgramsReceived(1000, lease, (2,))) == []


def test_a_remote_worker_that_drains_answers_what_it_holds():
    d = Driver(workers=0)
    d.tell(e.RemoteJoined(1000))
    d.arrive(1)
    lease = d.state.book.last_lease
    assert d.tell(e.RemoteDrains(1000)) == []
    assert e.EncodeHere((2,)) in d.arrive(2)  # nothing new, and there is nobody else
    assert d.tell(e.ProgramsReceived(1000, lease, (1,))) == [e.DeliverPrograms((1,)), e.DropWorker(1000, "drained")]
    assert d.state.deaths == 0 and d.state.book.workers == {}
    assert d.tell(e.RemoteDrains(1000)) == []
    d.tell(e.RemoteJoined(1001))
    assert d.tell(e.RemoteDrains(1001)) == [e.DropWorker(1001, "drained")]  # it holds nothing


@pytest.mark.parametrize("programs", [(2,), (1, 3), (), (1, 2, 3)])
def test_a_remote_worker_that_sends_what_it_does_not_owe_is_dropped(programs):
    d = Driver(workers=0)
    d.tell(e.RemoteJoined(1000))
    d.state.batch_limit = 2
    d.arrive(1, 2)
    out = d.tell(e.ProgramsReceived(1000, d.state.book.last_lease, programs))
    assert e.DropWorker in kinds(out) and e.DeliverPrograms not in kinds(out)


def test_a_silent_remote_worker_is_dropped_after_its_lease():
    d = Driver(workers=0, remote_lease_s=2.0)
    d.tell(e.RemoteJoined(1000))
    d.arrive(1)
    d.count(waiting_program=1, device_up=True)
    for _ in range(39):
        assert e.DropWorker not in kinds(d.tell(e.Tick(), after=0.05))
    assert e.DropWorker in kinds(d.tell(e.Tick(), e.Tick(), after=0.1))


def test_workers_whose_programs_are_refused_are_replaced():
    d = Driver(refusals_max=3)
    d.arrive(1, 2, 3, waited=True)
    d.count((3, 3))
    assert [kinds(d.tell(e.ProgramRefused(p))) for p in (1, 2, 3)] == [[], [], [e.KillProcess]]
    remote = Driver(workers=0)
    remote.tell(e.RemoteJoined(1000))
    remote.arrive(1)
    remote.tell(e.ProgramsReceived(1000, remote.state.book.last_lease, (1,)))
    assert e.DropWorker in kinds(remote.tell(e.ProgramRefused(1)))


# ---- graphs -----------------------------------------------------------------------------------------------------------
def test_graphs_go_to_idle_workers_one_at_a_time():
    d = Driver(workers=2)
    out = d.tell(e.GraphWanted(1), e.GraphWanted(2), e.GraphWanted(3))
    assert sorted(c.worker for c in out if isinstance(c, e.SendGraph)) == [0, 1]
    out = d.tell(e.GraphAnswered(1, 1))
    assert out == [e.AnswerGraph(1), e.SendGraph(1, d.state.book.last_lease, 3)]
    assert d.tell(e.GraphAnswered(0, 1)) == []
    assert d.tell(e.GraphAnswered(0, 2, "GraphError", "cycle")) == [e.FailGraph(2, "GraphError", "cycle")]


def test_a_graph_outlives_its_workers_within_a_limit():
    d = Driver(graph_deaths_max=3, deaths_max=10)
    d.tell(e.GraphWanted(1))
    for life in range(2):
        assert e.SendGraph in kinds(d.tell(e.ProcessDied(E0, life)))
    out = d.tell(e.ProcessDied(E0, 2))
    assert [c.error for c in out if isinstance(c, e.FailGraph)] == ["WorkerLostError"] and not len(d.state.graphs)


def test_a_worker_that_plans_has_the_time_for_it_and_not_more():
    d = Driver()
    d.tell(e.GraphWanted(1))
    who, when = d.wait_for_blame({E0: ("running", 1.0)})
    assert who == E0 and 10.0 < when < 10.2 and not len(d.state.graphs)
    stopped = Driver()
    stopped.tell(e.GraphWanted(1))
    assert stopped.wait_for_blame({E0: ("stopped", 0.0)})[1] < 1.2
    assert 1 in stopped.state.graphs  # it is planned again


def test_too_many_graphs_are_refused():
    d = Driver(graph_credits=2)
    d.tell(e.GraphWanted(1), e.GraphWanted(2))
    assert [(c.graph, c.error) for c in d.tell(e.GraphWanted(3))] == [(3, "BackpressureTimeout")]


def test_nothing_happens_after_closing():
    d = Driver()
    d.arrive(1)
    assert d.tell(e.Closing(), e.ProcessDied(E0, 0), e.ProcessDied(e.DEVICE, 0), e.Tick()) == []


# ---- policy -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("situation", "who"),
    [
        (Situation(0.4, True, 0, 1, 1), "caller"),  # a hop costs 300 times the encode
        (Situation(0.4, False, 1000, 1, 1), "caller"),  # shipping costs twice the encode
        (Situation(50.0, True, 0, 1, 1), "caller"),  # less than the hop, and somebody waits
        (Situation(50.0, False, 1000, 1, 1), "workers"),  # nobody waits, a CPU is idle
        (Situation(50.0, False, 1000, 0, 1), "caller"),  # no CPU for it
        (Situation(50.0, False, 4, 1, 1), "caller"),  # the device would wait
        (Situation(500.0, True, 0, 0, 1), "workers"),
        (Situation(500.0, True, 0, 1, 0), "caller"),  # there is no worker
    ],
)
def test_who_encodes(situation, who):
    assert who_encodes("auto", situation, Costs()) == who
    assert who_encodes("caller", situation) == "caller"
    assert who_encodes("workers", situation) == ("workers" if situation.workers else "caller")


def test_plans_have_a_modelled_cost():
    from tests.native.streams import axpy, two_steps

    assert 0.1 < modelled_encode_us(axpy()) < modelled_encode_us(two_steps()) < 5.0


def test_under_auto_dear_plans_go_to_workers_and_cheap_ones_do_not():
    d = Driver(policy="auto")
    d.tell(e.PlanKnown(7, 0.4), e.PlanKnown(8, 1000.0))
    assert kinds(d.arrive(1, plan=7, waited=True)) == [e.EncodeHere]
    assert sent(d.arrive(2, plan=8, waited=True)) == [(0, (2,))]


# ---- validate ---------------------------------------------------------------------------------------------------------
def test_validate_finds_what_is_broken():
    def broken(change) -> None:
        d = Driver(workers=2)
        d.arrive(*range(40))
        change(d.state)
        with pytest.raises(InvariantError):
            d.state.validate()

    broken(lambda s: s.book.waiting.clear())
    broken(lambda s: s.book.waiting.append(s.book.waiting[0]))
    broken(lambda s: s.book.live.pop(0))
    broken(lambda s: s.book.leases.clear())
    broken(lambda s: setattr(s.book.workers[0], "sent", 3))
    broken(lambda s: s.book.workers[0].plans.clear())
    broken(lambda s: setattr(s.book.workers[0], "up", False))
    broken(lambda s: s.book.workers[0].leases.popleft())
    broken(lambda s: setattr(s, "batch_limit", 0))
    broken(lambda s: setattr(s.seats.seats[E1], "up", False))
    broken(lambda s: s.graphs.requests.update({1: GraphRequest()}))
