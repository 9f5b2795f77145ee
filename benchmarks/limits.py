"""The physical limits of this machine, measured in the same run as what is held against them.

`Limits.measure()` gives bandwidths for working sets in L2, L3 and memory, and the peak of the vector unit, of one thread. Needs
a C compiler; without one there are no limits, and tables say so."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from benchmarks import compiled

WORKING_SETS = (768 << 10, 24 << 20, 384 << 20)  # bytes: L2, L3, memory
LINE = 64  # bytes of a cache line


@dataclass(frozen=True, slots=True)
class Limits:
    """bytes/s of a triad, the better kind of store, and of a read, by working set; flop/s of float32."""

    triad: tuple[float, ...]
    triad_streams: tuple[float, ...]
    read: tuple[float, ...]
    flops: float

    @staticmethod
    def measure() -> Limits | None:
        """The limits now, or None where there is no C compiler."""
        library = _library()
        if library is None:
            return None
        triads, streams, reads = [], [], []
        for size in WORKING_SETS:
            n = size // 12 // 64 * 64
            a, b, c = (_aligned(n) for _ in range(3))
            reps = max(3, (256 << 20) // size)
            bytes_moved = 12 * n
            triads.append(bytes_moved / library.time_triad(a.ctypes, b.ctypes, c.ctypes, n, 0, reps))
            streams.append(bytes_moved / library.time_triad(a.ctypes, b.ctypes, c.ctypes, n, 1, reps))
            whole = _aligned(size // 4 // 64 * 64)
            reads.append(whole.nbytes / library.time_read(whole.ctypes, len(whole), reps))
        return Limits(tuple(triads), tuple(streams), tuple(reads), library.fma_peak(100))

    def seconds(self, moved: float, flops: float = 0.0) -> float:
        """The least time for so many bytes and operations; the working set is taken to be the bytes moved."""
        at = sum(moved > size for size in WORKING_SETS[:-1])
        return max(moved / max(self.triad[at], self.triad_streams[at], self.read[at]), flops / self.flops)

    def as_dict(self) -> dict[str, object]:
        return {
            "working_sets_bytes": WORKING_SETS, "triad_bytes_s": self.triad, "triad_nt_bytes_s": self.triad_streams,
            "read_bytes_s": self.read, "fma_flop_s": self.flops,
        }  # fmt: skip


def triad_timer(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> Callable[[int], float] | None:
    """Seconds of so many triads a = b + 3 * c of float32 from a cache line on, with non-temporal stores; None where there is
    no C compiler."""
    library, at = _library(), [x.ctypes for x in (a, b, c)]
    return library and (lambda runs: sum(library.time_triad(*at, a.size, 1, 1) for _ in range(runs)))


def read_timer(whole: np.ndarray) -> Callable[[int], float] | None:
    """Seconds of so many reads of an array; None where there is no C compiler."""
    library, at, count = _library(), whole.ctypes, whole.nbytes // 4
    return library and (lambda runs: sum(library.time_read(at, count, 1) for _ in range(runs)))


def copy_timers(size: int) -> list[Callable[[int], float]]:
    """Nanoseconds of a copy of `size` bytes, the mean of so many runs, with usual and with non-temporal stores; none where
    there is no C compiler."""
    library, source, target = _library(), large_pages(size), large_pages(size)
    if library is None:
        return []
    return [lambda runs, s=streams: library.time_copy(target.ctypes, source.ctypes, size, s, runs) for streams in (0, 1)]


def large_pages(size: int) -> np.ndarray:
    """Bytes that begin at a page, in large pages where the system has them, as the arena of an inline runtime."""
    large = 2 << 20
    memory = mmap.mmap(-1, size + 2 * large, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    whole[:] = 1
    return whole[-whole.ctypes.data % large :][:size]


def placed(arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Copies that lie side by side in large pages, each from a cache line on: as tensors do in the arena of an inline runtime."""
    arrays, begin, out = list(arrays), 0, []
    room = large_pages(sum(-(-a.nbytes // LINE) * LINE for a in arrays))
    for a in arrays:
        out.append(room[begin : begin + a.nbytes].view(a.dtype).reshape(a.shape))
        out[-1][...] = a
        begin += -(-a.nbytes // LINE) * LINE
    return out


def _aligned(count: int) -> np.ndarray:
    memory = np.ones(count + 16, np.float32)
    return memory[(-memory.ctypes.data // 4) % 16 :][:count]


def _library() -> ctypes.CDLL | None:
    library = compiled.library("limits.c")
    if isinstance(library, str):
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.time_triad.argtypes, library.time_triad.restype = [pointer] * 3 + [size, ctypes.c_int, ctypes.c_int], ctypes.c_double
    library.time_copy.argtypes, library.time_copy.restype = [pointer] * 2 + [size, ctypes.c_int, ctypes.c_int], ctypes.c_double
    library.time_read.argtypes, library.time_read.restype = [pointer, size, ctypes.c_int], ctypes.c_double
    library.fma_peak.argtypes, library.fma_peak.restype = [ctypes.c_int], ctypes.c_double
    return library
