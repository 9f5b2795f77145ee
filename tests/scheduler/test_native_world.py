"""The real shell, stream, device and encoders in one process, without sockets, under seeded kills.

Each action is drawn from the seed: a call, one step of the device, a few instances of an encoder, the delivery of a message,
a tick, a death at any point between two of these, the news of it. The state validates itself after every event. At the end
every value must be there, the same bytes as without faults."""

import random as randoms
from collections import deque

import numpy as np
import pytest

from dvm_rt import _native, wire
from dvm_rt.scheduler import events as e
from dvm_rt.scheduler.limits import Limits
from dvm_rt.scheduler.placement import Placement
from dvm_rt.scheduler.shell import Shared, Shell
from dvm_rt.scheduler.state import SchedulerState
from tests.native.streams import axpy, random, two_steps

LIMITS = Limits(batch_max=8, lease_s=0.5, deaths_max=1000, restarts_max=10_000)
PLANS = (axpy(0.5), two_steps())


class Validated(SchedulerState):
    def handle(self, event, now):
        out = super().handle(event, now)
        self.validate()
        return out


class Member:
    """One life of a process of the world."""

    def __init__(self, process: e.Process, incarnation: int) -> None:
        self.process, self.incarnation = process, incarnation
        self.alive = True
        self.inbox: deque[bytes] = deque()
        self.batch, self.at = b"", 0
        self.native: object = None


class WorldShell(Shell):
    """The shell with hands that reach into the world instead of the system."""

    def __init__(self, world: "World", shared: Shared) -> None:
        super().__init__(shared, None)
        self.context.destroy(linger=0)
        self.world, self.clock = world, lambda: world.now
        self.state = Validated(shared.workers, shared.policy, shared.limits, free_cpus=1)

    def signal(self, process, number):
        self.world.kill(self.world.members[process])


class World:
    def __init__(self, seed: int, workers: int = 2) -> None:
        self.rng, self.now = randoms.Random(seed), 0.0
        self.stream = _native.Stream(
            inline=False, arena_bytes_max=1 << 26, ring_bytes=1 << 18, workers=workers, spin_us=0.0, encode_mode="workers"
        )
        self.fds = self.stream.fds
        self.members: dict[e.Process, Member] = {}
        self.unreported: list[Member] = []
        shared = Shared(self.stream, None, Placement((0,), (0,), 0), workers, "workers", LIMITS, 0.0)
        self.shell = WorldShell(self, shared)
        self.kills = 0
        self.values: list[tuple[object, np.ndarray]] = []
        self.inputs: list[object] = []  # the host may only write where no launch reads: given up, they would be waited for
        self.plans = [self.stream.register(p) for p in PLANS]

    # ---- the system ----------------------------------------------------------------------------------------------
    def start(self, shell: Shell, c: e.StartProcess) -> None:
        member = self.members[c.process] = Member(c.process, c.incarnation)
        if c.process == e.ZYGOTE:
            shell._events.append(e.ZygoteReady(c.incarnation))
        elif c.process == e.DEVICE:
            fds = self.fds
            member.native = _native.Device(fds["control"], fds["arena"], fds["rings"], fds["eventfd"], 0.0, fds["traces"][0])
        else:
            i = c.process.index
            member.native = _native.Encoder(self.fds["control"], self.fds["rings"][1 + i], i, self.fds["traces"][1 + i])
            self.shell.pipes[i] = Pipe(member)
            shell._events.append(e.WorkerReady(i, c.incarnation))

    def inspect(self, shell: Shell, c: e.InspectProcess) -> None:
        shell._events.append(e.Inspected(c.process, "sleeping" if self.members[c.process].alive else "gone", 0.0))

    def kill(self, member: Member) -> None:
        if member.alive:
            member.alive, member.native = False, None
            self.unreported.append(member)
            if member.process == e.ZYGOTE:
                for child in self.members.values():
                    self.kill(child)

    # ---- actions -------------------------------------------------------------------------------------------------
    def call(self) -> None:
        n, m = self.rng.randint(1, 9), self.rng.randint(1, 40)
        seed = self.rng.randrange(3)
        x, array = self.stream.asarray(random(n, m, seed=seed)), random(n, m, seed=seed)
        self.inputs.append(x)
        if self.rng.random() < 0.5:
            self.values.append((self.stream.call(self.plans[0], [x, x])[0], array * np.float32(0.5) + array))
        else:
            self.values.append((self.stream.call(self.plans[1], [x])[0], array * np.float32(3) + array))
        if self.stream.outbox_count >= self.stream.outbox_limit:
            self.shell.pump(False)

    def chain(self) -> None:
        """A launch that reads what an earlier one, committed or not, wrote."""
        if self.values:
            tensor, array = self.rng.choice(self.values)
            self.values.append((self.stream.call(self.plans[1], [tensor])[0], array * np.float32(3) + array))

    def wait(self) -> None:
        self.shell.pump(True)

    def step(self) -> None:
        device = self.members[e.DEVICE]
        for _ in range(self.rng.randint(1, 20)):
            if device.alive:
                device.native.step()

    def encode(self) -> None:
        worker = self.members[e.Process("encoder", self.rng.randrange(self.shell.shared.workers))]
        if not worker.alive:
            return
        if worker.at == len(worker.batch):
            if not worker.inbox:
                return
            message = wire.decode(worker.inbox.popleft(), wire.FROM_SCHEDULER)
            if isinstance(message, wire.PlanMessage):
                worker.native.add_plan(message.plan, message.body)
                return
            worker.batch, worker.at = message.body, 0
        worker.at = worker.native.encode(worker.batch, worker.at, 0.0)  # one at a time

    def tick(self) -> None:
        self.now += self.rng.uniform(0.0, 0.05)
        self.shell.tick()

    def die(self) -> None:
        if self.kills:
            self.kills -= 1
            victims = [m for m in self.members.values() if m.alive and m.process != e.ZYGOTE] or list(self.members.values())
            self.kill(self.rng.choice([*victims, self.members[e.ZYGOTE]]))

    def report(self) -> None:
        if self.unreported:
            member = self.unreported.pop(self.rng.randrange(len(self.unreported)))
            self.shell._tell_death(member.process, member.incarnation, False)

    def run(self, actions: int, kills: int) -> None:
        self.kills = kills
        self.shell.tell(e.Opening())
        choices = [self.call, self.chain, self.wait, self.step, self.step, self.encode, self.encode, self.tick, self.report]
        for _ in range(actions):
            action = self.rng.choice(choices) if self.rng.random() > kills / actions else self.die
            if action in (self.call, self.chain) and self.stream.launched - self.stream.done > 200:
                action = self.step
            action()
        for _ in range(100_000):
            if self.stream.done == self.stream.launched and not self.unreported:
                break
            for action in (self.wait, self.step, self.encode, self.tick, self.report):
                action()
        assert self.stream.done == self.stream.launched, self.shell.state.story(self.shell.counters().waiting_program)
        for tensor, array in self.values:
            assert np.array_equal(self.stream.read(tensor, timeout_s=0.0), array)


class Pipe:
    def __init__(self, member: Member) -> None:
        self.member = member

    def send(self, frame: bytes) -> None:
        if self.member.alive:
            self.member.inbox.append(frame)


@pytest.fixture(autouse=True)
def hands(monkeypatch):
    """The world's system calls in place of the shell's."""
    from dvm_rt.scheduler import shell

    monkeypatch.setitem(shell._DO, e.StartProcess, lambda s, c: s.world.start(s, c))
    monkeypatch.setitem(shell._DO, e.InspectProcess, lambda s, c: s.world.inspect(s, c))


@pytest.mark.parametrize("seed", range(24))
def test_every_value_survives(seed):
    world = World(seed, workers=1 + seed % 2)
    world.run(actions=600, kills=seed % 12)
    state = world.shell.state
    assert not state.unhealthy
    assert len([b for b in state.book.live.values() if b.is_answered]) == 0 or state.counters.done < state.counters.launched
    assert seed % 12 == 0 or state.deaths > 0


def test_a_refill_is_leased():
    """The device dies, then at once the encoder that holds what the next device needs."""
    world = World(77, workers=1)
    world.run(actions=50, kills=0)
    for _ in range(5):
        for _ in range(20):
            world.call()
        world.wait()
        for _ in range(4):
            world.encode()
        for process in (e.DEVICE, e.Process("encoder", 0)):
            world.kill(world.members[process])
            world.report()
    for _ in range(10_000):
        if world.stream.done == world.stream.launched:
            break
        for action in (world.wait, world.step, world.encode, world.report):
            action()  # no tick: no lease may have to end for this
    assert world.stream.done == world.stream.launched
