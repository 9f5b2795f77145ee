"""Where the children run, and what the zygote needs to fork the device, which starts before the scheduler is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dvm_rt import _native


class Placement(NamedTuple):
    """Which CPUs the children may use: the device has the last ones to itself, one for each thread that runs kernels, as
    long as one is left for the others."""

    device: tuple[int, ...]
    encoders: tuple[int, ...]
    free: int  # CPUs beside the device's and the caller's

    @classmethod
    def of(cls, cpus: set[int], threads: int = 1) -> Placement:
        line = sorted(cpus)
        rest = tuple(line[:-threads]) or tuple(line)
        return cls(tuple(line[-threads:]), rest, max(0, len(line) - threads - 1))


def device_request(stream: _native.Stream, place: Placement, spin_us: float, target: str, threads: int,
                   incarnation: int = 0) -> tuple[dict[str, object], dict[str, int]]:
    """The request, and its descriptors."""
    fds = stream.fds
    rings = {f"ring{i}": fd for i, fd in enumerate(fds["rings"])}
    request: dict[str, object] = {
        "role": "device", "index": 0, "incarnation": incarnation, "cpus": place.device, "rings": len(rings), "spin_us": spin_us,
        "target": target, "threads": threads, "beside_cpus": sorted(set(place.encoders) - set(place.device)),
    }  # fmt: skip
    shared = {"control": fds["control"], "arena": fds["arena"], "eventfd": fds["eventfd"], "trace": fds["traces"][0]}
    return request, {**shared, **rings}
