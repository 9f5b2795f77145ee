"""`dvm-rt bench`: rows of the promised form, a run that goes on where it stopped, and every case right in plain NumPy."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cases, measure
from benchmarks.engines import Dvm, NumPy

ROOT = Path(__file__).parent.parent


def bench(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "dvm_rt", "bench", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_rows_have_the_promised_form_and_a_second_run_goes_on(tmp_path):
    path, page = tmp_path / "rows.json", tmp_path / "page.md"
    done = bench("operators", "--only", "sum of rows", "--peers", "numpy", "--json", str(path), "--markdown", str(page))
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert {"cpu", "threads", "versions", "absent", "limits"} <= found["machine"].keys()
    timed = [row for row in found["rows"] if row["metric"] == "time"]
    assert [row["shape"] for row in timed] == list(cases.ROWS)
    for row in found["rows"]:
        assert {"suite", "case", "shape", "metric", "unit", "dvm", "peers", "limit"} <= row.keys()
        assert row["dvm"] > 0 and (not row["peers"] or row["peers"].keys() == {"numpy"})
    assert "| sum of rows | 32x64 | time |" in page.read_text()
    assert bench("operators", "--only", "sum of rows", "--peers", "numpy", "--json", str(path)).returncode == 0
    assert json.loads(path.read_text())["rows"] == found["rows"]


def test_an_engine_that_is_not_there_is_said_so_and_an_unknown_suite_is_an_error(tmp_path):
    done = bench("encode", "--only", "nothing", "--peers", "mindspore")
    assert done.returncode == 0 and "mindspore: absent (MINDSPORE_PYTHON names no Python)" in done.stderr
    assert "allowed operators" in bench("speed").stderr


@pytest.mark.parametrize("case", cases.CASES, ids=lambda c: f"{c.suite} {c.name}")
def test_a_case_is_right_before_it_is_timed(case):
    rng = np.random.default_rng(1)
    weights, inputs = case.weights(rng), case.inputs(rng, *next(iter(case.shapes.values())))
    for engine in (Dvm(), NumPy()):
        engine.load(case, weights)
        measure.check(case, engine, engine.bind(inputs), [*inputs, *weights])
    wrong = [*inputs[:-1], rng.permutation(inputs[-1].ravel()).reshape(inputs[-1].shape)]
    with pytest.raises(measure.Wrong):
        measure.check(case, engine, engine.bind(wrong), [*inputs, *weights])
