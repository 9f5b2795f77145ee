"""ONNX's backend suite: what passed before passes, and nothing gives a wrong result. `passing.txt` is written by
`dvm-rt conformance onnx --passing tests/onnx/passing.txt`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the extra `onnx` is not installed")

import dvm_rt as dvm
from dvm_rt.onnx import conformance
from dvm_rt.onnx.conformance import FAILED, PASSED, WRONG, Outcome

LISTED = Path(__file__).with_name("passing.txt").read_text().split()


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    with dvm.Runtime(inline=True):
        return {o.name: o for o in conformance.run()}


def test_what_passed_before_passes(outcomes: dict[str, Outcome]) -> None:
    gone = [name for name in LISTED if name not in outcomes]
    assert not gone or conformance.onnx.__version__ != "1.23.2", f"cases that are not in the suite: {gone[:5]}"
    broken = {name: outcomes[name].said for name in LISTED if name in outcomes and outcomes[name].result != PASSED}
    assert not broken, f"{len(broken)} cases no longer pass: {dict(list(broken.items())[:5])}"


def test_no_result_is_wrong(outcomes: dict[str, Outcome]) -> None:
    bad = {o.name: o.said for o in outcomes.values() if o.result in (WRONG, FAILED)}
    assert not bad


def test_most_cases_pass_without_the_host_path(outcomes: dict[str, Outcome]) -> None:
    node = [o for o in outcomes.values() if o.group == "node" and o.result == PASSED]
    assert len(node) >= 1800
    assert sum(o.without_host for o in node) >= 0.85 * len(node)


def test_control_flow_passes_whole(outcomes: dict[str, Outcome]) -> None:
    rows = [o for o in outcomes.values() if {"If", "Loop", "Scan", "SequenceMap"} & set(o.operators)]
    assert len(rows) > 30
    assert all(o.result == PASSED for o in rows), [o.name for o in rows if o.result != PASSED]


def test_the_suite_leaves_no_folders_behind(tmp_path: Path) -> None:
    code = "from dvm_rt.onnx.conformance import cases; assert len(cases('simple')) == len(cases('simple')) > 0"
    environment = {k: v for k, v in os.environ.items() if k != "ONNX_HOME"}
    environment |= {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, timeout=60)
    assert not list(tmp_path.iterdir())
