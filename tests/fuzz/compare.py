"""Both verifiers on the fuzzer's mutants: python -m tests.fuzz.compare DUMP, where `scripts/fuzz --dump DUMP` wrote it.

Prints how many programs both accept, and every one on which they differ; exit status 1 if there is one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from dvm_rt.isa.verifier import check


def mutants(data: bytes) -> Iterator[tuple[bool, bytes]]:
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at + 1 : at + 5], "little")
        yield bool(data[at]), data[at + 5 : at + 5 + length]
        at += 5 + length


def main(path: Path) -> int:
    compared = accepted = differ = 0
    for native, program in mutants(path.read_bytes()):
        refusal = check(program)
        compared, accepted = compared + 1, accepted + native
        if native != (refusal is None):
            differ += 1
            print(f"native {'accepts' if native else 'refuses'}, Python: {refusal}: {program.hex()}")
    print(f"compared={compared} accepted={accepted} differ={differ}")
    return differ > 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
