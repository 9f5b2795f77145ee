"""The arena: blocks never overlap, memory comes back whole, and nobody writes where a launch may still look."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvm_rt import _native
from dvm_rt.errors import DeviceOutOfMemoryError

MIB = 1 << 20


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2**31)), max_size=120), st.integers(0, 18))
def test_blocks_never_overlap_and_everything_comes_back(choices: list[tuple[bool, int]], bits: int) -> None:
    arena, blocks, block = _native.Arena(2 * MIB), [], None
    for take, number in choices:
        if take or not blocks:
            block = arena.allocate(number % (1 << bits) + 1)
            if block is not None:
                assert block.offset % 64 == 0 and block.offset + block.bytes <= 2 * MIB
                blocks.append(block)
        else:
            del blocks[number % len(blocks)]
        assert arena.check()
        spans = sorted((b.offset, b.bytes) for b in blocks)
        assert all(a + n <= b for (a, n), (b, _) in zip(spans, spans[1:], strict=False))
    block = None
    blocks.clear()
    assert arena.check()
    assert arena.report()[0] == 0
    assert arena.allocate(arena.report()[2]) is not None, "free memory did not become one block again"


def test_a_freed_block_is_used_again_at_once_by_launches() -> None:
    arena = _native.Arena(MIB)
    first = arena.allocate(4096)
    offset = first.offset
    arena.launched = 7  # launches up to 7 may use it
    del first
    assert arena.allocate(4096).offset == offset


def test_the_host_waits_for_the_launches_that_may_use_a_block() -> None:
    arena = _native.Arena(64 * 4096)
    blocks = [arena.allocate(4096) for _ in range(64)]
    offset, arena.launched = blocks[5].offset, 7
    del blocks[5]
    assert arena.allocate(4096, committed=6) is None
    assert arena.allocate(4096, committed=7).offset == offset


def test_merged_blocks_remember_the_later_launch() -> None:
    arena = _native.Arena(64 * 4096)
    blocks = [arena.allocate(4096) for _ in range(64)]
    arena.launched = 3
    del blocks[10]
    arena.check()
    arena.launched = 9
    del blocks[10]
    assert arena.allocate(8192, committed=8) is None
    assert arena.allocate(8192, committed=9) is not None


def test_a_steady_stream_does_not_grow_the_arena() -> None:
    arena, lag, sizes = _native.Arena(1 << 30), 20, (448, 1024, 64, 4000)
    arena.allocate(1)
    start = arena.report()[2]
    held: list[object] = []
    for launch in range(20_000):
        held.append(arena.allocate(sizes[launch % 4], committed=max(0, launch - lag)))  # the host's
        held.append(arena.allocate(sizes[launch % 3]))  # what a launch writes
        arena.launched = launch
        del held[:-4]
    assert arena.check() and arena.report()[2] == start


def test_out_of_memory_leaves_everything_intact() -> None:
    stream = _native.Stream(arena_bytes_max=4 * MIB)
    held = stream.asarray(np.arange(1 << 18, dtype=np.float32))
    with pytest.raises(DeviceOutOfMemoryError) as caught:
        stream.asarray(np.zeros(1 << 20, np.float32))
    assert caught.value.requested == 4 * MIB
    assert caught.value.free == 3 * MIB
    assert stream.read(held)[-1] == (1 << 18) - 1
    assert stream.read(stream.asarray(np.ones(1 << 18, np.float32))).sum() == 1 << 18


def test_every_allocation_may_fail_once() -> None:
    stream = _native.Stream(arena_bytes_max=4 * MIB)
    before = stream.stats()["memory"]
    for after in range(3):
        stream.fail_allocation(after)
        kept = []
        with pytest.raises(DeviceOutOfMemoryError):
            for _ in range(3):
                kept.append(stream.asarray(np.zeros(100)))
        assert len(kept) == after
    kept.clear()
    stream.asarray(np.zeros(1))
    after = stream.stats()["memory"]
    assert {k: after[k] for k in ("tensors", "workspace", "packed")} == {k: before[k] for k in ("tensors", "workspace", "packed")}
