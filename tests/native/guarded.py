"""A buffer between pages that cannot be touched: an access beyond it ends the process, a write near it is found."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

PAGE = mmap.PAGESIZE
CANARY = 0xA5
_libc = ctypes.CDLL(None, use_errno=True)


class Guarded:
    """`array` has `nbytes` bytes, filled from `content` (repeated), aligned to `align`, and as close as that allows to
    the guard page behind it (`at_end`) or before it."""

    def __init__(self, nbytes: int, align: int, at_end: bool, content: bytes) -> None:
        room = -(-max(nbytes, 1) // PAGE) * PAGE
        self._map = mmap.mmap(-1, room + 2 * PAGE)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._first = self._bytes.ctypes.data
        self._protect(0)
        self._inside = self._bytes[PAGE : PAGE + room]
        self._inside[:] = CANARY
        begin = (room - nbytes) // align * align if at_end else 0
        self.array = self._inside[begin : begin + nbytes]
        self._outside = np.ones(room, bool)
        self._outside[begin : begin + nbytes] = False
        if content:
            self.array[:] = np.resize(np.frombuffer(content, np.uint8), nbytes)

    def check(self) -> None:
        assert np.all(self._inside[self._outside] == CANARY), "bytes beside an argument were written"

    def close(self) -> None:
        self._protect(3)  # PROT_READ | PROT_WRITE
        del self.array, self._inside, self._bytes
        self._map.close()

    def _protect(self, access: int) -> None:
        room = len(self._map) - 2 * PAGE
        for address in (self._first, self._first + PAGE + room):
            if _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), access):
                raise OSError(ctypes.get_errno(), "guarded: mprotect")
