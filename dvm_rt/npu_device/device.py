"""The device process. Its loop is native and owns the rings: nothing here is on a path that anybody waits for.

The client gives it descriptors: control page, arena, rings, eventfd, trace. It holds no state that cannot be replaced: a
device that dies is followed by another, which goes on at the word `done`."""

from __future__ import annotations

from dvm_rt import _native, config

SLICE_US = 50_000.0  # of the native loop: bounds the time that a wake-up that died with its sender can cost


def main(request: dict, fds: dict[str, int]) -> None:
    """Serves until it is killed. `fds`: control, arena, eventfd, trace, and ring0 (the client's), ring1.. (the workers')."""
    rings = [fds[f"ring{i}"] for i in range(request["rings"])]
    device = _native.Device(
        fds["control"], fds["arena"], rings, fds["eventfd"], request["spin_us"], fds["trace"], request["target"],
        request["threads"], config.number("loop_s"), request["beside_cpus"],
        tune=bool(config.integer("tune")),
    )  # fmt: skip
    while True:
        device.serve(SLICE_US)
