"""The checksum of programs and plans: 64 bits that notice accidents, not forgery.

`native/program.cpp` computes the same value. The definition, all arithmetic modulo 2^64:

    bytes are padded with zeros to a multiple of 8 and read as little-endian words w[0], w[1], ...
    lane[i] = SEEDS[i]                                                       for i in 0..3
    x = lane[j % 4] ^ w[j];  lane[j % 4] = (x ^ x >> 29) * MULTIPLIER        for each word w[j]
    h = byte count (before padding) * MULTIPLIER
    h = (h ^ lane[i]) * MULTIPLIER;  h ^= h >> 32                            for i in 0, 1, 2, 3

Each step is a bijection of the word for a fixed lane, and of the lane for a fixed word: a change inside one
word always changes the result. The shift carries high bits down, so that one flipped bit changes half of the
lane and no second flipped bit can undo it. The four lanes do not depend on each other, so that a processor
multiplies them at once."""

from __future__ import annotations

from struct import unpack

SEEDS = (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89)  # digits of pi
MULTIPLIER = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd
_MASK = (1 << 64) - 1


def checksum(data: bytes | bytearray | memoryview) -> int:
    """The checksum of some bytes, in 0..2^64-1. Programs and plans give what follows the field `checksum`."""
    words = unpack(f"<{(len(data) + 7) // 8}Q", bytes(data) + bytes(-len(data) % 8))
    h = len(data) * MULTIPLIER & _MASK
    for i, seed in enumerate(SEEDS):
        h = (h ^ _lane(seed, words[i::4])) * MULTIPLIER & _MASK
        h ^= h >> 32
    return h


def _lane(lane: int, words: tuple[int, ...]) -> int:
    for word in words:
        x = lane ^ word
        lane = (x ^ x >> 29) * MULTIPLIER & _MASK
    return lane
