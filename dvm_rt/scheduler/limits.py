"""The limits of the state machine, gathered once, so that it reads no environment."""

from __future__ import annotations

from dataclasses import dataclass

from dvm_rt import config


@dataclass(frozen=True, slots=True)
class Limits:
    """The rows of `config.py` that the state machine uses, with the same names."""

    batch_max: int = 1024
    worker_credits: int = 16384
    graph_credits: int = 64
    lease_s: float = 0.25
    remote_lease_s: float = 5.0
    device_lease_s: float = 60.0
    graph_lease_s: float = 30.0
    starved_leases: int = 8
    solo_deaths_max: int = 2
    graph_deaths_max: int = 5
    refusals_max: int = 3
    deaths_max: int = 5
    restarts_max: int = 1000
    restart_window_s: float = 10.0
    story_length: int = 4096

    @classmethod
    def from_config(cls) -> Limits:
        return cls(**{n: config.number(n) if n.endswith("_s") else config.integer(n) for n in cls.__slots__})
