"""What the scheduler is told and what it orders: frozen records, no behaviour.

They are named tuples because a start imports them, and making forty dataclasses takes 20 ms. So look at an event's type, never
at its truth: one without fields is empty.

Numbers in them. A *program* is the 64-bit identity of an operator instance and of the program it encodes to. A *worker*
is 0..n-1 for the local ones, beyond for remote ones. An *incarnation* counts the lives of one process. `done` and
`launched` count launches in stream order; received and encoded count a worker's instances over all its lives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

HERE = -1  # in place of a worker: the caller's own process


class Process(NamedTuple):
    """One seat in the runtime: `role` is "encoder", "device" or "zygote". Who sits there is an incarnation of it."""

    role: str
    index: int = 0

    def __str__(self) -> str:
        return f"{self.role} {self.index}" if self.role == "encoder" else self.role


DEVICE, ZYGOTE = Process("device"), Process("zygote")


# ---- events: what happened ------------------------------------------------------------------------------------------
class InstancesArrived(NamedTuple):
    """The stream needs these programs. Their first launches lie in (begin, seq]. `waited`: somebody waits for them."""

    programs: Sequence[int]
    plans: tuple[int, ...]
    begin: int
    seq: int
    waited: bool = False


class PlanKnown(NamedTuple):
    """Instances of this plan may come; `encode_us` is the modelled cost of one."""

    plan: int
    encode_us: float


class PlanForgotten(NamedTuple):
    """The stream has given this plan up; instances of it that are live go on."""

    plan: int


class Counters(NamedTuple):
    """The control page: what was committed, which program the device misses (0: none), whether the device of this life got
    as far as its loop, each local worker's counts."""

    done: int
    launched: int
    waiting_program: int
    device_up: bool
    workers: tuple[tuple[int, int], ...]  # (received, encoded)


class Waited(NamedTuple):
    """Somebody waits for the device: batches start again at one."""


class Tick(NamedTuple):
    """Time passed; leases may have run out."""


class WorkerReady(NamedTuple):
    """HELLO of a local worker: it is past its imports."""

    worker: int
    incarnation: int


class RemoteJoined(NamedTuple):
    """A remote worker that speaks our protocol. It has no control page: its counts come in messages."""

    worker: int


class RemoteLeft(NamedTuple):
    """A remote worker said BYE, cannot be reached, or broke the protocol."""

    worker: int
    why: str


class RemoteDrains(NamedTuple):
    """A remote worker wants to leave when it has answered what it holds."""

    worker: int


class ProgramsReceived(NamedTuple):
    """Programs of one lease from a remote worker, in the order in which they were sent to it."""

    worker: int
    lease: int
    programs: tuple[int, ...]


class ProgramRefused(NamedTuple):
    """The device's verifier refused a program that a worker had encoded. The stream has encoded it again by itself."""

    program: int


class ProcessDied(NamedTuple):
    """The pidfd of this incarnation is readable: it is gone for certain. A start that failed counts as a death. `killed`: by
    SIGKILL, ours or somebody else's; it did not end by itself."""

    process: Process
    incarnation: int
    killed: bool = False


class ZygoteReady(NamedTuple):
    """The zygote of this incarnation answers: children can be started."""

    incarnation: int


class Inspected(NamedTuple):
    """What the kernel says of a process: "running" (on a CPU or waiting for one), "sleeping", "stopped" or "gone", and the CPU
    seconds that it has used so far."""

    process: Process
    what: str
    cpu_s: float


class GraphWanted(NamedTuple):
    """Somebody wants a plan for graph number `graph`."""

    graph: int


class GraphAnswered(NamedTuple):
    """A worker planned a graph, or (`error` set) says why it cannot be planned."""

    worker: int
    graph: int
    error: str = ""
    text: str = ""


class Opening(NamedTuple):
    """The first event: start the processes."""


class Closing(NamedTuple):
    """Nothing is started or sent any more."""


Event = (
    PlanKnown | PlanForgotten | InstancesArrived | Counters | Waited | Tick | WorkerReady | RemoteJoined | RemoteLeft
    | RemoteDrains
    | ProgramsReceived
    | ProgramRefused | ProcessDied | ZygoteReady | Inspected | GraphWanted | GraphAnswered | Opening | Closing
)  # fmt: skip


# ---- commands: what to do about it, in this order -------------------------------------------------------------------
class SendPlan(NamedTuple):
    """A worker meets this plan for the first time in this life."""

    worker: int
    plan: int


class SendForget(NamedTuple):
    """A worker may give this plan up."""

    worker: int
    plan: int


class SendInstances(NamedTuple):
    """Lease a batch to a worker."""

    worker: int
    lease: int
    programs: Sequence[int]


class EncodeHere(NamedTuple):
    """Encode these in the caller's process."""

    programs: Sequence[int]


class DeliverPrograms(NamedTuple):
    """Hand these programs of a remote worker to the device. What the message held beside them is dropped."""

    programs: Sequence[int]


class SendGraph(NamedTuple):
    """Lease a graph to a worker."""

    worker: int
    lease: int
    graph: int


class AnswerGraph(NamedTuple):
    """The first answer to this graph is in: pass it on."""

    graph: int


class FailGraph(NamedTuple):
    """Whoever wants this graph gets the error of this name."""

    graph: int
    error: str
    text: str


class FailProgram(NamedTuple):
    """Launches of this program, and what is computed from them, give the error of this name."""

    program: int
    error: str
    text: str


class FailLaunch(NamedTuple):
    """The next device does not run this launch: it, and what is computed from it, give the error of this name. Comes before
    ReplayDevice."""

    seq: int
    error: str
    text: str


class StartProcess(NamedTuple):
    """Start the next life of a process, at a new address."""

    process: Process
    incarnation: int


class KillProcess(NamedTuple):
    """Through its pidfd. Its leases move only when its death is certain."""

    process: Process
    incarnation: int
    why: str


class DropWorker(NamedTuple):
    """Forget a remote worker: what it says from now on is ignored."""

    worker: int
    why: str


class InspectProcess(NamedTuple):
    """Ask the kernel about a process that is suspected."""

    process: Process


class ReplayDevice(NamedTuple):
    """The device is gone: push again what it had not committed."""


class RingBells(NamedTuple):
    """Wake every sleeper: the wake-up it waits for may have died with a process."""


class FailRuntime(NamedTuple):
    """Nothing can be promised any more: every wait ends with PoolUnhealthyError."""

    text: str


Command = (
    SendPlan | SendForget | SendInstances | EncodeHere | DeliverPrograms | SendGraph | AnswerGraph | FailGraph
    | FailProgram | FailLaunch
    | StartProcess | KillProcess | DropWorker | InspectProcess | ReplayDevice | RingBells | FailRuntime
)  # fmt: skip
