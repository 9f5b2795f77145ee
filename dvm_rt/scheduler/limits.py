"""The limits of the state machine, gathered once, so that it reads no environment."""

from __future__ import annotations

from dataclasses import dataclass

from dvm_rt import config


@dataclass(frozen=True, slots=True)
class Limits:
    """The rows of `config.py` that the state machine uses, with the same names."""

    batch_max: int = config.default("batch_max")
    worker_credits: int = config.default("worker_credits")
    graph_credits: int = config.default("graph_credits")
    lease_s: float = config.default("lease_s")
    remote_lease_s: float = config.default("remote_lease_s")
    device_lease_s: float = config.default("device_lease_s")
    graph_lease_s: float = config.default("graph_lease_s")
    starved_leases: int = config.default("starved_leases")
    solo_deaths_max: int = config.default("solo_deaths_max")
    graph_deaths_max: int = config.default("graph_deaths_max")
    refusals_max: int = config.default("refusals_max")
    deaths_max: int = config.default("deaths_max")
    restarts_max: int = config.default("restarts_max")
    restart_window_s: float = config.default("restart_window_s")
    story_length: int = config.default("story_length")

    @classmethod
    def from_config(cls) -> Limits:
        return cls(**{n: config.number(n) if n.endswith("_s") else config.integer(n) for n in cls.__slots__})
