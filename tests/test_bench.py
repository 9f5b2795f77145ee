"""`dvm-rt bench`: rows of the promised form, a run that goes on where it stopped, and every case right in plain NumPy."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dvm_rt.__main__ as command
from benchmarks import cases, fused, limits, measure, targets
from benchmarks.bench import ALL
from benchmarks.engines import ENGINES, Dvm, NumPy

ROOT = Path(__file__).parent.parent
YARDSTICK = fused.Fused()


def bench(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "dvm_rt", "bench", *arguments], cwd=ROOT, capture_output=True,
                          text=True, check=False)


def test_rows_have_the_promised_form_and_a_second_run_goes_on(tmp_path):
    path, page, drawn = tmp_path / "rows.json", tmp_path / "page.md", tmp_path / "page.html"
    done = bench("operators", "--only", "sum of rows", "--peers", "numpy", "--json", str(path), "--markdown",
                 str(page), "--html", str(drawn))
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert {"cpu", "threads", "versions", "absent", "limits"} <= found["machine"].keys()
    timed = [row for row in found["rows"] if row["metric"] == "time"]
    assert [row["shape"] for row in timed] == list(cases.ROWS)
    for row in found["rows"]:
        assert {"suite", "case", "shape", "metric", "unit", "dvm", "peers", "limit"} <= row.keys()
        assert row["dvm"] > 0 and (not row["peers"] or row["peers"].keys() == {"numpy"})
    assert "| sum of rows | 32x64 |" in page.read_text() and "<td class=\"text\">sum of rows" in drawn.read_text()
    assert bench("operators", "--only", "sum of rows", "--peers", "numpy", "--json", str(path)).returncode == 0
    assert json.loads(path.read_text()) == found  # and it still tells of the machine that measured them


def test_an_engine_that_is_not_there_is_said_so_and_an_unknown_suite_is_an_error(tmp_path):
    done = bench("encode", "--only", "nothing", "--peers", "mindspore")
    assert done.returncode == 0 and "mindspore: absent (MINDSPORE_PYTHON names no Python)" in done.stderr
    assert "allowed operators" in bench("speed").stderr


def test_help_names_all_suites_and_engines_that_are_there():
    assert command.SUITES == f"{', '.join(ALL)}; none: all"
    assert set(command.PEERS.split(",")) == ENGINES.keys() - {"dvm"}


@pytest.mark.parametrize("case", cases.CASES, ids=lambda c: f"{c.suite} {c.name}")
def test_a_case_is_right_before_it_is_timed(case):
    rng = np.random.default_rng(1)
    weights, inputs = case.weights(rng), case.inputs(rng, *next(iter(case.shapes.values())))
    wanted = measure.wanted_of(case, [*inputs, *weights])
    for engine in (Dvm(), NumPy()):
        engine.load(case, weights)
        measure.check(engine.result(engine.bind(inputs)()), wanted, case.tolerance)
    wrong = [*inputs[:-1], rng.permutation(inputs[-1].ravel()).reshape(inputs[-1].shape)]
    with pytest.raises(measure.Wrong):
        measure.check(engine.result(engine.bind(wrong)()), wanted, case.tolerance)


@pytest.mark.skipif(bool(YARDSTICK.absent), reason=f"fused C: {YARDSTICK.absent}")
@pytest.mark.parametrize("name", fused.NAMES)
@pytest.mark.parametrize("shape", [(3, 64), (5, 37), (2, 300)])
def test_every_variant_of_the_yardstick_is_right_and_so_is_our_program_beside_it(name, shape):
    case = next(c for c in cases.CASES if c.name == name)
    rng = np.random.default_rng(2)
    weights, inputs = case.weights(rng), case.inputs(rng, *shape)
    arrays = [*inputs, *weights]
    wanted, engine = measure.wanted_of(case, arrays), Dvm()
    *held, result = limits.placed([*arrays, np.zeros(wanted.shape, np.float32)])
    for timer in YARDSTICK.variants(case, held, result):
        result[...] = np.nan
        timer(1)
        measure.check(result, wanted, case.tolerance)
    engine.load(case, weights)
    result[...] = np.nan
    fused.ours(engine.function, held, result)(1)
    measure.check(result, wanted, case.tolerance)


def row(suite: str, case: str, shape: str, metric: str, dvm: float, limit: float | None = None, **peers: float) -> measure.Row:
    return measure.Row(suite, case, shape, metric, "us", dvm,
                       {name.replace("_", "-"): value for name, value in peers.items()}, limit)


def test_targets_are_computed_and_the_worst_part_of_a_missed_one_is_named():
    rows = [
        row("subgraphs", "chain of 8", "32x64", "time", 2.0, numpy=8.0),
        row("subgraphs", "chain of 8", "512x768", "time", 70.0, numpy=100.0),
        row("subgraphs", "chain of 8", "1x64", "time", 1.9, numpy=9.0),
        row("operators", "add", "50 new", "compile max", 10.0, inductor=2e6),
        row("limits", "768x3072 weights", "M = 1, in L3", "time", 100.0, 94.0),
    ]  # fmt: skip
    by_what = {t.what: t for t in targets.targets(rows)}
    chain = by_what["chain of 8, gelu, swiglu, lstm cell, of the best peer's time"]
    assert chain.met is False and [(p.value, p.met) for p in chain.parts] == [(0.25, True), (0.7, False)]
    assert by_what["per-call floor (64 elements, one fused function)"].met is True
    assert by_what["compile time of a new shape, max, operators, against Inductor"].figure == "add 200,000x"
    assert by_what["M = 1, 2 with weights beyond L2, of a read of the same bytes"].met is False
    assert by_what["two threads against one"].met is None and by_what["two threads against one"].figure == "not measured"
    many = targets.Target("w", "", "x", tuple(targets.Part(str(i), i, 2) for i in range(9)))
    assert many.figure == "7 of 9; worst 0.00x (0)"


def test_what_is_no_peer_wins_no_row():
    ours = row("limits", "w, bfloat16", "M = 1", "time", 10.0, numpy=30.0)
    ours.peers |= {"our float32": 5.0, "fused C": 1.0}
    assert ours.best == ("numpy", 30.0) and ours.over("our float32") == 0.5
