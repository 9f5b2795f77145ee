"""How long a process that owes something may take, judged by what the kernel says of it.

A process's own word is worth nothing when it hangs, and neither is the clock alone on a machine that others use too. So a
local process is blamed only on evidence: two looks at it, some time apart, during the same delay."""

from __future__ import annotations

from dataclasses import dataclass

from dvm_rt.scheduler import events as e
from dvm_rt.scheduler.limits import Limits


SHARE_LEAST = 0.05  # of a CPU: who only waits uses less


@dataclass(slots=True)
class Watch:
    """What the kernel said of a process that has owed something since `since`: first and latest look."""

    since: float
    first_at: float
    first_cpu_s: float
    latest: e.Inspected
    latest_at: float

    def share(self) -> float:
        """Of the time between the looks, what it spent on CPUs, all its threads together."""
        elapsed = self.latest_at - self.first_at
        return (self.latest.cpu_s - self.first_cpu_s) / elapsed if elapsed > 0 else 0.0

    def starves(self) -> bool:
        """It would run, but other processes have the CPUs most of the time."""
        return self.latest.what == "running" and self.share() < 0.5

    def computes(self) -> bool:
        """It is at work, however little of the CPUs others leave to it; its first thread may sleep while others compute."""
        return self.latest.what == "running" or (self.latest.what == "sleeping" and self.share() >= SHARE_LEAST)

    def is_evidence(self, since: float, enough_s: float) -> bool:
        """About this delay, and looked at for long enough."""
        return self.since == since and self.latest_at - self.first_at >= enough_s

    def patience_s(self, limits: Limits, plans_graph: bool, starts: bool, listens: bool) -> float:
        """How late the process may be. `plans_graph`: a worker with a graph in its hands; `starts`: one that is not ready yet;
        `listens`: one that has taken nothing in hand of what it was sent, while we were late ourselves. These two wait for us."""
        if (plans_graph or starts) and self.latest.what == "running":
            return limits.graph_lease_s
        if self.latest.process == e.DEVICE and self.computes():
            return max(limits.device_lease_s, limits.lease_s)
        waits_for_us = (starts and self.latest.what != "stopped") or (listens and self.latest.what == "sleeping")
        hindered = self.starves() or waits_for_us
        return limits.lease_s * (limits.starved_leases if hindered else 1)
