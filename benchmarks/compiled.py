"""C and C++ beside the benchmarks, compiled when a run starts: -O3 -march=native, once a source, kept in the temporary folder."""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-w")
COMPILERS = {".c": (("cc", "gcc", "clang"), ()), ".cpp": (("g++", "c++", "clang++"), ("-std=c++20",))}


def library(name: str) -> ctypes.CDLL | str:
    """The library of benchmarks/`name`; or, in words, why there is none."""
    source = Path(__file__).with_name(name)
    names, more = COMPILERS[source.suffix]
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        return f"no compiler, looked for {', '.join(names)}"
    key = hashlib.blake2b(source.read_bytes() + platform.node().encode() + compiler.encode(), digest_size=8).hexdigest()
    target = Path(tempfile.gettempdir()) / f"dvm_rt-{source.stem}-{key}.so"
    if not target.exists():
        made = target.with_suffix(".part")
        done = subprocess.run([compiler, *more, *FLAGS, "-o", made, source], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{source.name}: " + next((line for line in done.stderr.splitlines() if "error" in line), "not compiled")
        made.rename(target)
    return ctypes.CDLL(str(target))
