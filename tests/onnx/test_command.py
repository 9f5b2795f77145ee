"""`dvm-rt run` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the extra `onnx` is not installed")

from tests.onnx.models import INT64, model, node, value
from tests.test_command_line import dvm_rt

NODES = [node("MatMul", "x w", "p"), node("Softmax", "p", "y"), node("Shape", "tokens", "s")]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = model(
        NODES, [value("x", ["batch", 4]), value("tokens", ["batch", "length"], INT64)],
        [value("y", ["batch", 3]), value("s", [2], INT64)],
        {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)},
    )  # fmt: skip
    path = tmp_path_factory.mktemp("run") / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def test_random_inputs_of_declared_sizes(file: Path) -> None:
    out = dvm_rt("run", file)
    assert out.returncode == 0, out.stderr
    assert "batch=8, length=8" in out.stdout and "y: float32[8, 3]" in out.stdout and "s: int64[2] [8, 8]" in out.stdout


def test_sizes_are_swept(file: Path) -> None:
    out = dvm_rt("run", file, "--dim", "batch=4,5", "--dim", "length=7:9")
    assert out.returncode == 0, out.stderr
    for sizes in ("batch=4, length=7", "batch=4, length=9", "batch=5, length=7", "batch=5, length=9"):
        assert out.stdout.count(sizes) == 1, out.stdout
    assert "y: float32[5, 3]" in out.stdout


def test_an_input_from_a_file_sets_the_sizes_of_the_others(file: Path, tmp_path: Path) -> None:
    x = np.full((6, 4), 0.5, np.float32)
    np.save(tmp_path / "x.npy", x)
    out = dvm_rt("run", file, "--input", f"x={tmp_path / 'x.npy'}", "--dim", "length=3")
    assert out.returncode == 0, out.stderr
    scores = x @ np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    wanted = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    assert "batch=6, length=3" in out.stdout and "s: int64[2] [6, 3]" in out.stdout
    assert f"{wanted[0, 0]:.4f}"[:5] in out.stdout


def test_profile_trace_and_comparison(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    trace = tmp_path / "run.json"
    out = dvm_rt("run", file, "--dim", "batch=2,3", "--profile", "--trace", trace, "--compare", "onnxruntime")
    assert out.returncode == 0, out.stderr
    for text in ("onnxruntime", "largest difference", "instructions", "MatMul, Softmax", "shapes and constants",
                 "launched", "share", f"{trace}"):
        assert text in out.stdout, text
    assert any(event.get("name") == "launch" for event in json.loads(trace.read_text())["traceEvents"])


def test_through_processes(file: Path) -> None:
    out = dvm_rt("run", file, "--encoders", "1", "--dim", "batch=2,3")
    assert out.returncode == 0 and "y: float32[3, 3]" in out.stdout, out.stderr


def test_results_that_differ_are_exit_code_2(file: Path, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from typer.testing import CliRunner

    from dvm_rt.__main__ import app
    from dvm_rt.onnx import command

    monkeypatch.setattr(command, "_run_other", lambda name, other, feeds: [y + 1 for y in other.run(None, feeds)])
    out = CliRunner().invoke(app, ["run", str(file), "--compare", "onnxruntime"])
    assert out.exit_code == 2 and "24 of 24 values" in out.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dim", "rows=4"], "got 'rows', allowed batch, length"),
        (["--dim", "batch"], "got 'batch', allowed name=4"),
        (["--dim", "batch=-1"], "got batch=-1, allowed whole numbers"),
        (["--dim", "batch=99999999999"], "allowed whole numbers up to 2^31"),
        (["--input", "q=x.npy"], "got 'q', allowed x, tokens"),
        (["--input", "x"], "got 'x', allowed name=file.npy"),
        (["--input", "x=/nowhere.npy"], "nowhere.npy"),
        (["--input", "x={text}"], "allowed files of numpy.save"),
        (["--input", "x={six}", "--dim", "batch=5"], "batch, got 5, allowed 6"),
        (["--input", "x={flat}"], "input 'x': shape, got (6,)"),
        (["--compare", "tensorflow"], "got 'tensorflow', allowed onnxruntime"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(file: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "text").write_text("no array")
    np.save(tmp_path / "six.npy", np.zeros((6, 4), np.float32))
    np.save(tmp_path / "flat.npy", np.zeros(6, np.float32))
    paths = {"text": tmp_path / "text", "six": tmp_path / "six.npy", "flat": tmp_path / "flat.npy"}
    out = dvm_rt("run", file, *(a.format(**paths) for a in arguments))
    assert out.returncode == 1 and len(out.stderr.strip().splitlines()) == 1, out.stderr
    assert said in out.stderr


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    for path in (tmp_path / "bad.onnx", tmp_path / "none.onnx", tmp_path):
        out = dvm_rt("run", path)
        assert out.returncode == 1 and len(out.stderr.strip().splitlines()) == 1 and str(path) in out.stderr


def test_conformance_prints_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from dvm_rt.__main__ import app
    from dvm_rt.onnx import conformance

    cases = conformance.cases
    monkeypatch.setattr(conformance, "cases", lambda group: cases(group) if group == "simple" else [])
    out = CliRunner().invoke(app, ["conformance", "onnx", "--pattern", "sequence"])
    assert out.exit_code == 0, out.output
    assert [line.split()[:3] for line in out.output.splitlines()[1:3]] == [["simple", "8", "8"], ["all", "8", "8"]]
    assert CliRunner().invoke(app, ["conformance", "tosa"]).exit_code != 0
