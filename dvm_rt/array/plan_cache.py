"""Plans and their programs on disk, so that a restarted process starts warm: nothing is planned, nothing is encoded.

One file a plan, named by a digest of the build (the native core and the planner's sources) and of the graph; in it the plan, the
programs it had with the sizes that they are for, and a digest of all that. Rules:

- a file of another build has another name and is never looked at; a file that is not what its digest says, or that the plan
  loader refuses, counts as `cache_refused`, and the graph is planned as if there were none;
- a program is verified before it is used, as any other, and held against the sizes that it is to be for; what is not good counts
  as `programs_refused`, and is encoded again;
- of the programs of one plan the newest are kept, up to PLAN_SHARE of `bytes_max`;
- files appear whole (written aside, then renamed), so processes may share a folder. Beyond `bytes_max` the least recently
  used files go. A folder that cannot be written costs the cache, not the result."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path

from dvm_rt import _native
from dvm_rt.errors import DvmError
from dvm_rt.graph.graph import Graph

MAGIC = b"dvm_rt plan 2\n"
DIGEST = 16
SUFFIX, ASIDE = ".plan", ".part"
_COUNT = struct.Struct("<Q")
PLAN_SHARE = 16  # of the folder: what the file of one plan may take at most
Programs = list[tuple[tuple[int, ...], bytes]]  # (sizes, program), in order of use


class PlanCache:
    """A folder of plans. `counters` gets cache_hits, cache_misses, cache_refused and cache_unwritable."""

    def __init__(self, folder: Path, bytes_max: int, counters: Counter[str]) -> None:
        self.folder, self.bytes_max, self.counters = folder, bytes_max, counters

    def path(self, graph: Graph) -> Path:
        """Where the plan of this graph is, or would be. `repr` tells -0.0 from 0.0, and True from 1."""
        return self.folder / (_digest(build(), repr(graph.to_wire()).encode()).hex() + SUFFIX)

    def load(self, path: Path) -> tuple[bytes, Programs] | None:
        """The plan and its programs."""
        try:
            data = path.read_bytes()
        except OSError:
            self.counters["cache_misses"] += 1
            return None
        head = len(MAGIC) + DIGEST
        try:
            if data[: len(MAGIC)] != MAGIC or _digest(path.name.encode(), data[head:]) != data[len(MAGIC) : head]:
                raise DvmError(f"plan cache: {path.name}: digest, got another one, allowed that of its bytes")
            parts = list(_parts(data[head:]))
            _native.Plan(parts[0])
        except DvmError:
            self.counters["cache_refused"] += 1
            return None
        self.counters["cache_hits"] += 1
        return parts[0], [(tuple(s), code) for s, code in zip(json.loads(parts[1]), parts[2:], strict=True)]

    def save(self, path: Path, plan: bytes, programs: Programs) -> None:
        """Writes one file; gives room for it."""
        kept: Programs = []
        left = self.bytes_max // PLAN_SHARE - len(plan)
        for sizes, code in reversed(programs):
            left -= len(code) + _COUNT.size
            if left < 0:
                break
            kept.insert(0, (sizes, code))
        sizes = json.dumps([s for s, _ in kept]).encode()
        body = b"".join(_COUNT.pack(len(part)) + part for part in (plan, sizes, *(code for _, code in kept)))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(body))
            self._write(path, MAGIC + _digest(path.name.encode(), body) + body)
        except OSError:
            self.counters["cache_unwritable"] += 1

    def _write(self, path: Path, data: bytes) -> None:
        """The whole file or none of it, whoever else writes it at the same time."""
        handle, aside = tempfile.mkstemp(dir=self.folder, suffix=ASIDE)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(aside, path)
        except OSError:
            os.unlink(aside)
            raise

    def _make_room(self, wanted: int) -> None:
        """The oldest files go; what a killed process has left unfinished is among them."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files) + wanted
        for _, size, file in files:
            if total <= self.bytes_max:
                return
            with suppress(FileNotFoundError):
                os.unlink(file)
            total -= size

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """(time, bytes, path) of what is ours; not what others delete meanwhile, nor what is no file."""
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):
                if entry.name.endswith((SUFFIX, ASIDE)) and entry.is_file(follow_symlinks=False):
                    yield entry.stat().st_mtime_ns, entry.stat().st_size, entry.path


def _parts(body: bytes) -> Iterator[bytes]:
    """The parts of a file: each after its length."""
    at = 0
    while at < len(body):
        (size,) = _COUNT.unpack_from(body, at)
        at += _COUNT.size + size
        yield body[at - size : at]


@cache
def build() -> bytes:
    """What plans depend on beside their graph: the native core and the planner's sources."""
    package = Path(__file__).parent.parent
    sources = sorted(f for part in ("fusion", "graph", "isa") for f in (package / part).glob("*.py"))
    return _digest(*(f.read_bytes() for f in [Path(_native.__file__), *sources]))


def _digest(*parts: bytes) -> bytes:
    state = blake2b(digest_size=DIGEST)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()
