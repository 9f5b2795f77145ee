"""The command line as a user calls it."""

import subprocess
import sys

from dvm_rt.runtime import Runtime
from tests.native.streams import axpy, random
from tests.test_runtime import work
from tests.test_pool import ENVIRONMENT


def dvm_rt(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "dvm_rt", *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, cwd="/", capture_output=True, text=True, timeout=300)


def test_isa_prints_a_line_for_every_instruction():
    from dvm_rt.isa import table

    out = dvm_rt("isa")
    assert out.returncode == 0 and all(i.name in out.stdout for i in table.INSTRUCTIONS)


def test_das_lists_what_call_runs(tmp_path):
    with Runtime(inline=True) as rt:
        plan, x = rt.stream.register(axpy()), rt.stream.asarray(random(3, 4))
        (tmp_path / "program").write_bytes(rt.stream.program_bytes(plan, [x, x]))
    out = dvm_rt("das", tmp_path / "program")
    assert out.returncode == 0 and "section" in out.stdout and "mul" in out.stdout and "add" in out.stdout


def test_trace_summarises_each_track(tmp_path):
    with Runtime(encoders=1, encode="workers") as rt:
        work(rt, 40)
        rt.trace(tmp_path / "run.json")
    out = dvm_rt("trace", tmp_path / "run.json")
    assert out.returncode == 0 and all(t in out.stdout for t in ("client", "device", "encoder 0", "launch", "idle"))


def test_bad_input_is_one_line_and_exit_code_1(tmp_path):
    (tmp_path / "bad").write_bytes(b"not a program, not a trace")
    for command in (("das", tmp_path / "bad"), ("trace", tmp_path / "bad"), ("das", tmp_path / "none"),
                    ("pool", "--connect", "tcp://1.2.3.4:5")):
        out = dvm_rt(*command)
        assert out.returncode == 1 and len(out.stderr.strip().splitlines()) == 1, (command, out.stderr)
        assert ", got " in out.stderr and ", allowed " in out.stderr and "Traceback" not in out.stderr
