"""The start of a runtime's processes, beside what its caller does first.

The device comes first and needs little: the zygote forks it as soon as it answers. The scheduler comes later. To import it holds
the GIL for several times as long as all else takes together, and in these moments its caller traces and plans. So it is
made when somebody asks for it (workers are to encode, a process is to be signalled, counters are read), and after
`scheduler_after_s` in any case. Until then launches run all the same: neither the caller, who encodes for itself, nor the
device needs it. Who waits for a device that has died waits until it is there.

What fails here fails the stream, so that whoever uses the runtime hears of it. Importing this is cheap."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from dvm_rt.errors import PoolUnhealthyError

if TYPE_CHECKING:
    from dvm_rt import _native
    from dvm_rt.scheduler.loop import SchedulerLoop
    from dvm_rt.scheduler.shell import Shell
    from dvm_rt.zygote import Child, Zygote


class Scheduler(NamedTuple):
    """What is made last."""

    shell: Shell
    loop: SchedulerLoop


Make = Callable[["Child | None"], Scheduler]  # of the device that runs already, which is its own from then on


class Starting:
    """Begins at once, on a thread of its own. `device`: what the zygote needs to fork it."""

    def __init__(self, stream: _native.Stream, zygote: Zygote, device: tuple[dict, dict], make: Make, after_s: float) -> None:
        self._stream, self._zygote, self._device, self._make, self._after_s = stream, zygote, device, make, after_s
        self._wanted, self._over = threading.Event(), threading.Event()
        self._child: Child | None = None
        self._forked = self._closing = False
        self._error: Exception | None = None
        self.scheduler: Scheduler | None = None  # none: not yet
        self._thread = threading.Thread(target=self._run, name="dvm-rt start", daemon=True)
        self._thread.start()

    def shell(self) -> Shell:
        """Waits for the scheduler. Raises what its start has failed with."""
        if self.scheduler is None:
            self._wanted.set()
            self._over.wait()
            if self._error is not None:
                raise self._error
        return self.scheduler.shell

    def _run(self) -> None:
        try:
            self._zygote.wait_ready()
            self._child = self._zygote.fork(*self._device)
            self._forked = True
            self._wanted.wait(self._after_s)
            if not self._closing:
                device, self._child = self._child, None
                self.scheduler = self._make(device)
        except Exception as error:
            self._error = error
            if not self._closing:
                self._stream.fail(PoolUnhealthyError.__name__, str(error))
        finally:
            self._over.set()

    def stop(self) -> Scheduler | None:
        """Goes no further. What there is of the scheduler is the caller's to end; without one, all that there was has ended."""
        self._closing = True
        if not self._forked and not self._over.is_set():
            signal.pidfd_send_signal(self._zygote.pidfd, signal.SIGKILL)  # nobody waits for it any more
        self._wanted.set()
        self._thread.join()
        return self.scheduler

    def end(self, timeout_s: float) -> None:
        """Ends zygote and device of a runtime that has no scheduler."""
        if self._child is not None:
            try:
                signal.pidfd_send_signal(self._child.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            select.select([self._child.pidfd], [], [], timeout_s)
            os.close(self._child.pidfd)
        self._zygote.close(timeout_s)
