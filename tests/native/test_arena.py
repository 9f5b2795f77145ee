"""The arena: blocks never overlap, memory comes back whole, and nobody writes where a launch may still look."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvm_rt import _native
from dvm_rt.errors import DeviceOutOfMemoryError

MIB = 1 << 20


Choice = tuple[str, int]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["launch", "launch", "host", "free", "free", "commit"]),
                          st.integers(0, 2**31)), max_size=120), st.integers(0, 18))
def test_blocks_never_overlap_and_everything_comes_back(choices: list[Choice], bits: int) -> None:
    """Beside the allocator's own invariants: the host never gets bytes that an uncommitted launch may use."""
    arena, blocks, committed = _native.Arena(2 * MIB), [], 0
    touched = np.zeros(2 * MIB, np.int64)  # the last launch that may use a byte
    for what, number in choices:
        arena.launched += 1
        if what == "commit":
            committed = max(committed, arena.launched - number % 8)
        elif what == "free" and blocks:
            block = blocks.pop(number % len(blocks))
            touched[block.offset : block.offset + block.bytes] = arena.launched
            block = None
        elif what != "free" and (block := arena.allocate(number % (1 << bits) + 1, committed, what == "host")) is not None:
            assert block.offset % 64 == 0
            assert block.offset + block.bytes <= 2 * MIB
            if what == "host":
                assert touched[block.offset : block.offset + block.bytes].max() <= committed
            blocks.append(block)
            block = None
        assert arena.check()
        spans = sorted((b.offset, b.bytes) for b in blocks)
        assert all(a + n <= b for (a, n), (b, _) in zip(spans, spans[1:], strict=False))
    blocks.clear()
    assert arena.allocate(1, arena.launched) is not None
    assert arena.check()
    assert arena.report()[0] == 0
    assert arena.allocate(arena.report()[2], arena.launched, True) is not None, "free memory did not become one block again"


def test_a_freed_block_is_used_again_at_once_by_launches() -> None:
    arena = _native.Arena(MIB)
    first = arena.allocate(4096)
    offset = first.offset
    arena.launched = 7  # launches up to 7 may use it
    del first
    assert arena.allocate(4096).offset == offset


def test_a_block_that_is_asked_for_again_at_once_goes_from_hand_to_hand() -> None:
    arena = _native.Arena(MIB)
    blocks = [arena.allocate(4096) for _ in range(4)]
    offsets, arena.launched = [b.offset for b in blocks], 7
    del blocks[2], blocks[0]
    assert arena.allocate(4033, 6, host=True).offset not in offsets, "a launch that is not committed may use these"
    del blocks[0]
    assert arena.allocate(65536).offset not in offsets  # of another size
    assert arena.allocate(4033).offset in offsets and arena.check()
    blocks.clear()
    assert arena.report()[0] == 0 and arena.check()


def test_the_host_waits_for_the_launches_that_may_use_a_block() -> None:
    arena = _native.Arena(64 * 4096)
    blocks = [arena.allocate(4096) for _ in range(64)]
    offset, arena.launched = blocks[5].offset, 7
    del blocks[5]
    assert arena.allocate(4096, 6, host=True) is None
    assert arena.allocate(4096, 7, host=True).offset == offset


def test_a_small_freed_block_does_not_taint_the_memory_beside_it() -> None:
    arena = _native.Arena(4 * MIB)
    first, second = arena.allocate(64), arena.allocate(64)
    arena.launched = 7
    del second  # all that lies behind it is free and clean
    assert arena.allocate(3 * MIB, 0, host=True) is not None
    del first


def test_a_launch_may_join_clean_and_tainted_memory() -> None:
    arena = _native.Arena(4 * MIB)
    blocks = [arena.allocate(MIB) for _ in range(4)]
    for i, launch in ((1, 0), (2, 9)):
        arena.launched = launch
        blocks[i] = None
    assert arena.allocate(2 * MIB, 5, host=True) is None
    assert arena.allocate(2 * MIB, 5) is not None
    assert arena.check()


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
