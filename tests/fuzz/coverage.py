"""Branches of the verifier that no mutant took: python -m tests.fuzz.coverage FOLDER, after `scripts/fuzz --coverage` has run.

FOLDER holds verify.o, its notes and what the run counted. Exit status 1 if there is a branch of verify.cpp or footprint.h, or a
line, that never ran. Branches that only an exception would take are not counted: nothing here throws."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

FILES = ("verify.cpp", "footprint.h")
ROOT = Path(__file__).resolve().parents[2]


def main(folder: Path) -> int:
    with tempfile.TemporaryDirectory() as out:
        notes = [str(path) for path in folder.resolve().glob("verify*.gcno")]
        subprocess.run(["gcov", "--json-format", "--branch-probabilities", *notes], cwd=out, check=True,
                       stdout=subprocess.DEVNULL)
        found = [json.loads(gzip.decompress(path.read_bytes())) for path in Path(out).glob("*.gcov.json.gz")]
    taken: dict[tuple[str, int], list[int]] = {}
    lines: dict[tuple[str, int], int] = {}
    for file in (file for one in found for file in one["files"] if Path(file["file"]).name in FILES):
        for line in file["lines"]:
            place = (Path(file["file"]).name, line["line_number"])
            lines[place] = max(lines.get(place, 0), line["count"])
            counts = [branch["count"] for branch in line["branches"] if not branch["throw"]]
            taken[place] = [max(a, b) for a, b in zip(counts, taken[place], strict=False)] if taken.get(place) else counts
    branches = [(place, count) for place, counts in taken.items() for count in counts]
    missed = sorted({place for place, count in branches if not count} | {place for place, count in lines.items() if not count})
    for name, number in missed:
        text = (ROOT / "dvm_rt/native" / name).read_text().splitlines()[number - 1].strip()
        print(f"{name}:{number}: {taken.get((name, number), [])}  {text}")
    run, ran = sum(count > 0 for _, count in branches), sum(count > 0 for count in lines.values())
    print(f"branches {run} of {len(branches)} ({100 * run / len(branches):.1f} %), lines {ran} of {len(lines)}")
    return len(missed) > 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
