"""Who goes first among tasks that wait for launches."""

from __future__ import annotations

import asyncio
import os

from dvm_rt.waiting import Waiters


class Stream:
    """What waiting knows of a stream; nothing ever writes the eventfd."""

    def __init__(self) -> None:
        self.done, self.fds = 0, {"eventfd": os.eventfd(0, os.EFD_NONBLOCK)}

    def arm(self, seq: int) -> bool:
        return self.done >= seq

    def program_state(self, number: int) -> None:
        pass


async def test_who_finds_a_launch_done_lets_those_go_first_that_waited_before() -> None:
    stream, order = Stream(), []
    waiters = Waiters(stream)

    async def wait(name: str, seq: int) -> None:
        assert await waiters.wait(seq, 60.0)
        order.append(name)

    tasks = [asyncio.ensure_future(wait(name, seq)) for name, seq in (("first", 1), ("second", 2), ("later", 3))]
    assert not waiters.others_wait()
    await asyncio.sleep(0)
    assert waiters.others_wait()
    await waiters.let_others_go_first()
    assert order == []
    stream.done = 2
    await waiters.let_others_go_first()
    assert order == ["first", "second"], "and who waits for something else goes on waiting"
    stream.done = 3
    await waiters.let_others_go_first()
    await asyncio.gather(*tasks)
    assert order == ["first", "second", "later"] and not waiters.others_wait()
    waiters.close()
    os.close(stream.fds["eventfd"])
