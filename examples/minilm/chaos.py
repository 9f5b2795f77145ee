"""Kills the runtime's encoder and device processes at random times, to show that results do not change."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import Self

import dvm_rt as dvm

PAUSE_S = (0.05, 0.4)  # between two kills


class Killer:
    """`with Killer(runtime):` a thread that kills one process after the other. Times and victims are random."""

    def __init__(self, runtime: dvm.Runtime) -> None:
        self._runtime = runtime
        self._victims = [("device", 0), *(("encoder", i) for i in range(runtime.encoders))]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer")
        self.kills: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(random.uniform(*PAUSE_S)):
            role, index = random.choice(self._victims)
            self._runtime.kill(role, index=index)
            self.kills[role] += 1
