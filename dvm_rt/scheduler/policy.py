"""Who encodes an instance of a known plan: one pure function of what is known at that moment.

Measured on two CPUs. Native encoding costs 0.1-0.4 us; waking a worker and the device for one instance 150-170 us; an
instance in a stream of batches of 64 costs 0.3-0.8 us of CPU on its way. So a worker pays where the encode costs more than
the hop, or where nobody waits, a CPU is idle, and the encode costs clearly more than the shipping. All choices
give the same bytes."""

from __future__ import annotations

from dataclasses import dataclass

from dvm_rt import config


@dataclass(frozen=True, slots=True)
class Situation:
    """What the choice depends on. `depth`: launches that the device has before it needs this program."""

    encode_us: float
    waited: bool
    depth: int
    free_cpus: int
    workers: int


@dataclass(frozen=True, slots=True)
class Costs:
    hop_us: float = config.default("hop_us")
    ship_us: float = config.default("ship_us")
    run_ahead_min: int = config.default("run_ahead_min")

    @classmethod
    def from_config(cls) -> Costs:
        return cls(config.number("hop_us"), config.number("ship_us"), config.integer("run_ahead_min"))


def who_encodes(policy: str, now: Situation, costs: Costs = Costs()) -> str:
    """ "caller" or "workers". `policy` is "auto", "workers" or "caller"; without a worker it is always the caller."""
    if policy == "caller" or not now.workers:
        return "caller"
    if policy == "workers":
        return "workers"
    if now.waited or now.depth < costs.run_ahead_min:
        return "workers" if now.encode_us > costs.hop_us else "caller"
    return "workers" if now.free_cpus and now.encode_us > 10 * costs.ship_us else "caller"


def modelled_encode_us(plan: bytes) -> float:
    """Modelled native encode cost of one instance, from the counts in the head of its plan."""
    from dvm_rt.isa import layout  # and NumPy: not before there is a plan

    head = layout.RECORD["PlanHead"].numpy
    fields = {name: int.from_bytes(plan[at : at + kind.itemsize], "little") for name, (kind, at) in head.fields.items()}
    return 0.1 + 0.05 * fields["kernels"] + 0.01 * fields["nodes"] + 0.005 * fields["args"] + 0.002 * fields["exprs"]
