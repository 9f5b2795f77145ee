"""The runtime's own processes: who sits where, in which life, and how often a seat may be filled again.

A seat whose occupant died is filled at once, unless the zygote is down (then when it answers again). A death counts
against the seat only if the occupant made no progress in its life and nobody else killed it; `deaths_max` such deaths in
a row, or `restarts_max` restarts of all seats within `restart_window_s`, and the pool is unhealthy: nothing is
started any more, because a process that dies at once would otherwise be started hundreds of times a second. Children
die with their zygote: that is the zygote's account, not theirs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from dvm_rt.scheduler.book import hold
from dvm_rt.scheduler.events import ZYGOTE, Command, Process, StartProcess


@dataclass(slots=True)
class Seat:
    process: Process
    incarnation: int = -1
    up: bool = False
    condemned: bool = False  # we killed it and wait for its death
    started_at: float = 0.0
    deaths: int = 0  # in a row, without progress


class Seats:
    def __init__(self, processes: list[Process], deaths_max: int, restarts_max: int, window_s: float) -> None:
        self.seats = {p: Seat(p) for p in processes}
        self.deaths_max, self.restarts_max, self.window_s = deaths_max, restarts_max, window_s
        self.restarts: deque[float] = deque()
        self.zygote_answers = False

    def start(self, process: Process, now: float) -> list[Command]:
        """Fill an empty seat, or leave it to `zygote_ready`."""
        seat = self.seats[process]
        if process != ZYGOTE and not self.zygote_answers:
            return []
        seat.incarnation += 1
        seat.up, seat.condemned, seat.started_at = True, False, now
        return [StartProcess(process, seat.incarnation)]

    def zygote_ready(self, now: float) -> list[Command]:
        self.zygote_answers = True
        return [c for seat in self.seats.values() if not seat.up for c in self.start(seat.process, now)]

    def died(self, process: Process, now: float, progress: bool) -> str:
        """An occupant died. Returns why the pool is unhealthy now, or nothing."""
        seat = self.seats[process]
        seat.up = seat.condemned = False
        if process == ZYGOTE or self.zygote_answers:
            seat.deaths = 0 if progress else seat.deaths + 1
        if process == ZYGOTE:
            self.zygote_answers = False
            for child in self.seats.values():
                child.deaths = child.deaths if child is seat else 0  # whatever they die of now is its doing
        self.restarts.append(now)
        while self.restarts[0] < now - self.window_s:
            self.restarts.popleft()
        if seat.deaths >= self.deaths_max:
            return f"scheduler: {process}: deaths in a row without progress, got {seat.deaths}, allowed {self.deaths_max - 1}"
        if len(self.restarts) > self.restarts_max:
            return f"scheduler: processes: restarts in {self.window_s} s, got {len(self.restarts)}, allowed {self.restarts_max}"
        return ""

    def is_current(self, process: Process, incarnation: int) -> bool:
        seat = self.seats[process]
        return seat.up and seat.incarnation == incarnation

    def validate(self) -> None:
        for seat in self.seats.values():
            hold(seat.up or not seat.condemned, "{} is condemned and down", seat.process)
            hold(seat.deaths < self.deaths_max, "{} died {} times and nobody gave up", seat.process, seat.deaths)
            waits = seat.process != ZYGOTE and not self.zygote_answers
            hold(seat.up or waits, "{} is down and nobody starts it", seat.process)
