"""Plans and shells for the tests of streams: small plans with a NumPy meaning, and a device that takes single steps."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable

import numpy as np

from dvm_rt import _native
from dvm_rt.dtypes import float32
from dvm_rt.fusion.plan import NONE, PACKED, READ, WRITE, PlanBuilder
from tests.native.plans import Case

Array = np.ndarray


def axpy(factor: float = 2.0) -> bytes:
    """(x, y) -> x * factor + y, for any two dimensions that agree."""
    case = Case(2)
    case.output(case.first * factor + case.input())
    return case.build().to_bytes()


def pick_rows() -> bytes:
    """(x [n, k], rows [m, k], index [n]) -> x + rows[index]; traps where an index is outside."""
    case = Case(2)
    case.output(case.first + case.gathered())
    return case.build().to_bytes()


def linear() -> bytes:
    """(x [m, k], w [k, n]) -> x @ w, with w packed once."""
    b = PlanBuilder()
    m, k, n = b.symbol(0, 0), b.symbol(0, 1), b.symbol(1, 1)
    x, w = b.parameter(float32, (m, k)), b.parameter(float32, (k, n))
    packed, out = b.pack(w, k, n, n, b.const(1)), b.output(float32, (m, n))
    kernel = b.kernel("MATMUL", (n, m), depth=k)
    kernel.arg(b.input(x), READ, float32, (b.const(0), k), depth=b.const(1))
    kernel.arg(packed, READ | PACKED, float32, (NONE, NONE))
    kernel.arg(out, READ | WRITE, float32, (b.const(1), n))
    return b.build().to_bytes()


def two_steps() -> bytes:
    """x -> (x * 3) + x in two kernels, with a temporary between them."""
    b = PlanBuilder()
    m, n = b.symbol(0, 0), b.symbol(0, 1)
    x, out = b.parameter(float32, (m, n)), b.output(float32, (m, n))
    between, strides = b.temporary(float32, (m, n), 0), b.contiguous((n, m))
    for source, addend, target in ((b.input(x), None, between), (between, b.input(x), out)):
        kernel = b.kernel("VECTOR", (n, m))
        value = kernel.input(kernel.arg(source, READ, float32, strides))
        if addend is None:
            value = kernel.binary("mul", value, kernel.const(3.0))
        else:
            value = kernel.binary("add", value, kernel.input(kernel.arg(addend, READ, float32, strides)))
        kernel.output(value, kernel.arg(target, WRITE, float32, strides))
    return b.build().to_bytes()


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


class Gate:
    """Holds the device's second thread in the middle of each program: after it has copied it, before it verifies it."""

    def __init__(self) -> None:
        self._theirs, self._ours = socket.socketpair()
        self._ours.settimeout(20)
        self.descriptor = self._theirs.fileno()

    def holds(self) -> None:
        """Returns when it is there."""
        assert self._ours.recv(1)

    def open(self) -> None:
        self._ours.send(b"1")

    def open_soon(self) -> None:
        """Also while this process waits for the thread, with the interpreter's lock in its hand."""
        number = self._ours.fileno()
        soon = f"import os, time; time.sleep(0.05); os.write({number}, b'1')"
        self._opener = subprocess.Popen([sys.executable, "-S", "-c", soon], pass_fds=[number])


class Stepped:
    """A stream with processes, whose device runs here, one step at a time, and can be killed between any two."""

    def __init__(self, beside: bool = False, gate: bool = False, tune: bool = False, **options: object) -> None:
        self.tune = tune  # the device's programs that run often
        self.beside = sorted(os.sched_getaffinity(0)) if beside else []  # a second thread of the device, beside every launch
        self.gate = Gate() if gate else None  # that holds this thread in each program
        self.stream = _native.Stream(**{"inline": False, "arena_bytes_max": 1 << 26, "ring_bytes": 1 << 18,
                                        "spin_us": 0.0} | options)
        self.fds = self.stream.fds
        self.device: _native.Device = self._new_device()
        self.kills = 0

    def _new_device(self) -> _native.Device:
        return _native.Device(self.fds["control"], self.fds["arena"], self.fds["rings"], self.fds["eventfd"], 0.0,
                              self.fds["traces"][0],
                              beside_cpus=self.beside, beside_ns=0,
                              beside_gate=self.gate.descriptor if self.gate else -1, tune=self.tune)  # fmt: skip

    def kill(self) -> None:
        """The device is gone, with everything that only it knew; the stream hears of it; another starts."""
        del self.device
        self.stream.device_lost()
        self.device = self._new_device()
        self.kills += 1

    def run(self, before_step: Callable[[], None] = lambda: None) -> None:
        """Steps until there is nothing left to do; events are taken into account as a waiting client would."""
        while True:
            before_step()
            if self.device.step() == "idle":
                launched, events = self.stream.launched, self.stream.retire()
                if self.device.step() == "idle" and not events and launched == self.stream.launched:
                    return

    def read(self, tensor: _native.Tensor) -> Array:
        self.run()
        return self.stream.read(tensor, timeout_s=0.0)

    def encoder(self, worker: int = 0) -> _native.Encoder:
        return _native.Encoder(self.fds["control"], self.fds["rings"][1 + worker], worker, self.fds["traces"][1 + worker])
