"""Hostile programs against a real device process: scripts/fuzz --hostile [COUNT [SEED]]

The fuzzer's mutants go through a ring into a device that is a process of its own.
Every refusal must be the event that the verifier here predicts, every accepted program of moderate work is launched on
arguments of just its size and must be committed; now and then, and in the end, a good program must still give its bytes."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dvm_rt import _native
from dvm_rt.errors import InvalidBytecodeError
from dvm_rt.isa import layout
from dvm_rt.isa.layout import RECORD, enum_value
from dvm_rt.isa.program import WRITE, Program, ProgramBuilder, parse

ROOT = Path(__file__).resolve().parents[2]
READ_WORD, WRITTEN_WORD = 0, 8
RING_HEAD, SKIP, EVENTS, FOREIGN, NO_DEADLINE = 128, 2**64 - 1, 8192, 1, 0
PROGRAM, LAUNCH, DROP = (enum_value("RingKind", name) for name in ("PROGRAM", "LAUNCH", "DROP"))
BATCH, FUEL_MAX, BYTES_MAX = 128, 1 << 14, 1 << 20
FUZZER = ROOT / "build/fuzz/plain/fuzz"
DEVICE = """
import ctypes, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
from dvm_rt.npu_device.device import main
control, arena, eventfd, trace, ring = map(int, sys.argv[1:])
request = {"rings": 1, "spin_us": 200.0, "target": "", "threads": 2, "beside_cpus": [0]}
main(request, {"control": control, "arena": arena, "eventfd": eventfd, "trace": trace, "ring0": ring})
"""


class Hostile:
    """A device process, and the client's side of its ring, control page and arena, all written by hand."""

    def __init__(self) -> None:
        self.stream = _native.Stream(inline=False, arena_bytes_max=1 << 26, ring_bytes=1 << 20, spin_us=0.0)
        fds = self.stream.fds
        numbers = [fds["control"], fds["arena"], fds["eventfd"], fds["traces"][0], fds["rings"][0]]
        self.control = np.frombuffer(mmap.mmap(fds["control"], layout.CONTROL_BYTES
                                               + EVENTS * RECORD["Event"].numpy.itemsize), np.uint64)
        self.events = self.control[layout.CONTROL_BYTES // 8 :].view(RECORD["Event"].numpy)
        os.posix_fallocate(fds["arena"], 0, 2 * BYTES_MAX)
        self.arena = np.frombuffer(mmap.mmap(fds["arena"], 2 * BYTES_MAX), np.uint8)
        self.ring = mmap.mmap(fds["rings"][0], os.fstat(fds["rings"][0]).st_size)
        self.words = np.frombuffer(self.ring, np.uint64)  # `read` and `written` change at once: struct goes byte by byte
        self.size, self.written, self.seq, self.number = (len(self.ring) - RING_HEAD) & ~7, 0, 0, 0
        self.refused: Counter[str] = Counter()
        self.trapped = self.launched = 0
        self.process = subprocess.Popen([sys.executable, "-c", DEVICE, *map(str, numbers)],
                                        pass_fds=[n for n in numbers if n >= 0], cwd=ROOT)

    def __enter__(self) -> Hostile:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def push(self, kind: int, count: int, number: int, body: bytes) -> None:
        message = struct.pack("<IIQ", kind, count, number) + body
        need, at = 8 + (len(message) + 7) // 8 * 8, self.written % self.size
        skipped = self.size - at if self.size - at < need else 0
        self.until(lambda: self.written + skipped + need - int(self.words[READ_WORD]) <= self.size)
        if skipped:
            struct.pack_into("<Q", self.ring, RING_HEAD + at, SKIP)
            at = 0
        struct.pack_into(f"<Q{len(message)}s", self.ring, RING_HEAD + at, len(message), message)
        self.written += skipped + need
        self.words[WRITTEN_WORD] = self.written

    def until(self, condition: object) -> None:
        give_up = time.monotonic() + 60
        while not condition():
            self.hear()
            if self.process.poll() is not None:
                raise RuntimeError(f"hostile: device: it ended, got status {self.process.returncode}, allowed none")
            if time.monotonic() > give_up:
                raise RuntimeError("hostile: device: it does not answer, got 60 s of silence, allowed less")

    def hear(self) -> None:
        """Takes the events that are there."""
        read, written = (int(self.control[layout.CONTROL_WORD[name]]) for name in ("event_read", "event_written"))
        for at in range(read, written):
            event = self.events[at % EVENTS]
            if event["kind"] == enum_value("EventKind", "PROGRAM_REFUSED"):
                self.refused[layout.ENUMS["VerifyCode"][event["code"]]] += 1
            else:
                self.trapped += 1
        self.control[layout.CONTROL_WORD["event_read"]] = written
        if written == read:
            time.sleep(0)

    def launch(self, number: int, program: Program) -> bool:
        """On arguments side by side in the arena, each just as long as the program asks."""
        end, args = 0, b""
        for arg in program.args:
            args += struct.pack("<QQQ", end, arg.bytes, bool(arg.mode & WRITE))
            end += (arg.bytes + 63) // 64 * 64
        if end + program.workspace_bytes > BYTES_MAX:
            return False
        self.seq += 1
        self.push(LAUNCH, len(program.args), number, struct.pack("<QQQQ", self.seq, end, program.workspace_bytes,
            NO_DEADLINE) + args)
        self.launched += 1
        return True

    def feed(self, programs: Iterable[tuple[str | None, bytes]]) -> int:
        """Sends programs with the code with which they must be refused (None: they must pass). How many."""
        before, want, sent, kept = self.refused.copy(), Counter(), 0, []
        for code, data in programs:
            sent, self.number = sent + 1, self.number + 1
            self.push(PROGRAM, FOREIGN, self.number, data)
            if code is not None:
                want[code] += 1
                continue
            kept.append(self.number)
            parsed = parse(data)
            if parsed.fuel <= FUEL_MAX:
                self.launch(self.number, parsed)
            if len(kept) >= BATCH:
                self.drop(kept)
        self.drop(kept)
        self.until(lambda: int(self.words[READ_WORD]) == self.written)
        self.until(lambda: sum(self.refused.values()) >= sum((before + want).values()))
        if self.refused != before + want:
            raise RuntimeError(f"hostile: device: refusals, got {self.refused - before}, allowed {want}")
        return sent

    def drop(self, numbers: list[int]) -> None:
        self.until(lambda: int(self.control[layout.CONTROL_WORD["done"]]) == self.seq)
        for number in numbers:
            self.push(DROP, 0, number, b"")
        numbers.clear()

    def works(self) -> None:
        """A good program gives its bytes."""
        builder = ProgramBuilder()
        section = builder.vector(100)
        section.operand(builder.add_arg(400), (4,))
        section.operand(builder.add_arg(400, WRITE), (4,), mode=WRITE)
        section.begin_pass()
        section.word("mov.i", 0)
        section.word("mul.k", 3.0)
        section.word("store", 1)
        section.end_pass()
        section.word("end_row")
        x = np.arange(100, dtype=np.float32)
        self.arena[:400] = x.view(np.uint8)
        trapped = self.trapped
        self.feed([(None, builder.build())])
        got = self.arena[448:848].view(np.float32)
        if self.trapped != trapped or not np.array_equal(got, 3 * x):
            raise RuntimeError(f"hostile: device: a good program, got {got}, allowed {3 * x}")


def code_of(program: bytes) -> str | None:
    """How the verifier of this process refuses a program, or None."""
    try:
        _native.Program(program)
    except InvalidBytecodeError as error:
        return error.code
    return None


def mutants(source: BinaryIO) -> Iterator[tuple[str | None, bytes]]:
    """What `fuzz --dump` writes: u8 accepted, u32 length, bytes."""
    while head := source.read(5):
        accepted, length = struct.unpack("<BI", head)
        yield (None if accepted else ""), source.read(length)


def main(count: int, seed: int, fuzzer: Path = FUZZER) -> None:
    if not fuzzer.exists():
        raise SystemExit(f"hostile: fuzzer: not built, got {fuzzer}, allowed what scripts/fuzz --hostile builds")
    began, sent = time.monotonic(), 0
    options = ["--executions", str(count), "--seed", str(seed), "--run", "0", "--dump", "/dev/stdout", "--progress", "0"]
    with subprocess.Popen([fuzzer, ROOT / "build/fuzz/corpus", *options], stdout=subprocess.PIPE) as fuzz, Hostile() as device:
        assert fuzz.stdout is not None
        try:
            source = mutants(fuzz.stdout)
            while batch := [(code_of(data), data) for _, (_, data) in zip(range(20_000), source, strict=False)]:
                sent += device.feed(batch)
                device.works()
        finally:
            fuzz.kill()
    print(f"hostile programs={sent} refused={sum(device.refused.values())} launched={device.launched} trapped={device.trapped} "
          f"seconds={time.monotonic() - began:.0f} seed={seed}")  # fmt: skip
    if sent < count:
        raise SystemExit(f"hostile: fuzzer: ended early, got {sent} programs, allowed {count}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
