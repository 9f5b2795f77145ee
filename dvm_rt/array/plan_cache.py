"""Plans on disk, so that a restarted process starts warm: what planning costs milliseconds is read back in microseconds.

One file a plan, named by a digest of the build (the native core and the planner's sources) and of the graph; in it the plan, the
sizes of the programs it had, and a digest of all that. Rules:

- a file of another build has another name and is never looked at; a file that is not what its digest says, or that the plan
  loader refuses, counts as `cache_refused`, and the graph is planned as if there were none;
- programs are not stored: encoding one takes less than reading it would. Their sizes are, and `warm` encodes them again;
- files appear whole (written aside, then renamed), so processes may share a folder. Beyond `bytes_max` the least recently
  used files go. A folder that cannot be written costs the cache, not the result."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections import Counter
from functools import cache
from hashlib import blake2b
from pathlib import Path

from dvm_rt import _native
from dvm_rt.errors import DvmError
from dvm_rt.graph.graph import Graph

MAGIC = b"dvm_rt plan 1\n"
DIGEST = 16
SUFFIX = ".plan"
_COUNT = struct.Struct("<Q")
SIZES_MAX = 4096  # sets of sizes that are kept of one plan


class PlanCache:
    """A folder of plans. `counters` gets cache_hits, cache_misses, cache_refused and cache_unwritable."""

    def __init__(self, folder: Path, bytes_max: int, counters: Counter[str]) -> None:
        self.folder, self.bytes_max, self.counters = folder, bytes_max, counters

    def path(self, graph: Graph) -> Path:
        """Where the plan of this graph is, or would be. `repr` tells -0.0 from 0.0, and True from 1."""
        return self.folder / (_digest(build(), repr(graph.to_wire()).encode()).hex() + SUFFIX)

    def load(self, path: Path) -> tuple[bytes, list[tuple[int, ...]]] | None:
        """The plan and the sizes that it was used for, in order of use."""
        try:
            data = path.read_bytes()
        except OSError:
            self.counters["cache_misses"] += 1
            return None
        head = len(MAGIC) + DIGEST
        try:
            if data[: len(MAGIC)] != MAGIC or _digest(path.name.encode(), data[head:]) != data[len(MAGIC) : head]:
                raise DvmError(f"plan cache: {path.name}: digest, got another one, allowed that of its bytes")
            (plan_bytes,) = _COUNT.unpack_from(data, head)
            plan = data[head + _COUNT.size : head + _COUNT.size + plan_bytes]
            _native.Plan(plan)
        except DvmError:
            self.counters["cache_refused"] += 1
            return None
        self.counters["cache_hits"] += 1
        return plan, [tuple(s) for s in json.loads(data[head + _COUNT.size + plan_bytes :])]

    def save(self, path: Path, plan: bytes, sizes: list[tuple[int, ...]]) -> None:
        """Writes one file; gives room for it."""
        body = _COUNT.pack(len(plan)) + plan + json.dumps(sizes[-SIZES_MAX:]).encode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(body))
            handle, aside = tempfile.mkstemp(dir=self.folder, suffix=".part")
            with os.fdopen(handle, "wb") as file:
                file.write(MAGIC + _digest(path.name.encode(), body) + body)
            os.replace(aside, path)
        except OSError:
            self.counters["cache_unwritable"] += 1

    def _make_room(self, wanted: int) -> None:
        files = sorted(((s.st_mtime_ns, s.st_size, f) for f in self.folder.glob("*" + SUFFIX) for s in [f.stat()]), key=lambda f: f[:2])
        total = sum(size for _, size, _ in files) + wanted
        for _, size, file in files:
            if total <= self.bytes_max:
                return
            file.unlink(missing_ok=True)
            total -= size


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
