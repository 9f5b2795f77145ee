"""The README is true: its examples run as they are written, one after the other, and what it names is there."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.__main__ import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
HIDDEN = 8
Tree = int | tuple["Tree", "Tree"]


def test_all_examples_are_known() -> None:
    assert len(EXAMPLES) == len(TESTED) + 1, "an example without a test"


class Reader:
    """Who types the examples in, in a folder of their own, in one session."""

    def __init__(self) -> None:
        self.names: dict[str, object] = {}

    def run(self, start: str, **given: object) -> dict[str, object]:
        """Runs the one example in which a line begins so, after those before it; `given`: names that it takes for granted."""
        self.names.update(given)
        (text,) = [t for t in EXAMPLES if re.search("^" + re.escape(start), t, re.MULTILINE)]
        code = compile(text, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        self.execute(code)
        return self.names

    def execute(self, code: CodeType) -> None:
        made = eval(code, self.names)
        if inspect.iscoroutine(made):
            asyncio.run(made)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.chdir(tmp_path)
    made = Reader()
    made.names.update(np=np, dvm=dvm)
    yield made


def from_python(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    w = reader.run("@dvm.function                                  # traced once")["w"]
    wanted = []
    for rows in (3, 170, 51):
        x, steps = np.full((rows, 64), 0.01 * rows), 0
        while np.abs(x).max() > 0.1:
            x, steps = np.tanh(x @ w), steps + 1
        wanted.append((rows, steps, x.sum()))
    said = [tuple(map(float, line.split())) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose(said, wanted, rtol=1e-4, atol=1e-4)
    assert Path("run.json").stat().st_size


def by_hand(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    kernel = reader.run("@dvm.kernel")["normalised_product"]
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(5, 7)).astype(np.float32), rng.normal(size=(7, 3)).astype(np.float32)
    rows = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)
    wanted = np.asarray(dvm.gelu(dvm.asarray((rows @ w).astype(np.float32))))
    np.testing.assert_allclose(np.asarray(kernel(dvm.asarray(x), dvm.asarray(w))), wanted, rtol=1e-4, atol=1e-5)
    assert dvm.explain(kernel, x, w).count("cost of kernel") == 2


def control_flow(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    solve = reader.run("def solve")["solve"]
    rng = np.random.default_rng(2)
    b, w = rng.normal(size=(6, 4)).astype(np.float32), (0.1 * rng.normal(size=(4, 4))).astype(np.float32)
    last, rows = solve(dvm.asarray(b), dvm.asarray(w))
    state = b
    for _ in range(200):
        state, before = np.tanh(state @ w) * 0.5 + b, state
        if np.abs(state - before).max() <= 1e-3:
            break
    state = state if state.sum() > 0 else -state
    h, sums = state[0], []
    for row in state:
        h, sums = h * 0.9 + row, [*sums, h.sum()]
    np.testing.assert_allclose(np.asarray(last), h, rtol=1e-4, atol=1e-4)
    assert rows.shape == (6,)


def requests(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    async def decode(prompt: dvm.Array) -> float:
        return float(dvm.sum(prompt * 2))

    assert reader.run("async with", decode=decode, prompt=np.ones(3, np.float32))["text"] == 6.0


def waiting(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(3)
    shapes = {"words": (9, 1, HIDDEN), "w0": (HIDDEN, 3 * HIDDEN), "b0": (3 * HIDDEN,),
              "w": (2 * HIDDEN, 5 * HIDDEN), "b": (5 * HIDDEN,)}

    def leaf(x: dvm.Array, w: dvm.Array, b: dvm.Array) -> tuple[dvm.Array, dvm.Array]:
        i, o, u = dvm.split(x @ w + b, 3, axis=-1)
        c = dvm.sigmoid(i) * dvm.tanh(u)
        return dvm.sigmoid(o) * dvm.tanh(c), c

    with dvm.Runtime(inline=True):
        given = {name: dvm.asarray((0.3 * rng.normal(size=shape)).astype(np.float32)) for name, shape in shapes.items()}
        names = reader.run("@dvm.stacked", **given, leaf=dvm.stacked(leaf), trees=[((1, 2), 3), (4, (5, 6)), 7])
        cell = names["node"].python

        def alone(tree: Tree) -> tuple[dvm.Array, dvm.Array]:
            if isinstance(tree, int):
                return leaf(given["words"][tree], given["w0"], given["b0"])
            return cell(*alone(tree[0]), *alone(tree[1]), given["w"], given["b"])

        assert dvm.stats()["stacked_launches"] == 0
        for root, tree in zip(names["roots"], names["trees"], strict=True):
            assert np.asarray(root).tobytes() == np.asarray(alone(tree)[0]).tobytes()
        assert dvm.stats()["stacked_launches"] > 0


TESTED = [from_python, by_hand, control_flow, requests, waiting]


@pytest.mark.parametrize("example", TESTED, ids=lambda e: e.__name__)
def test_examples_run_as_they_are_written(example, reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    example(reader, capsys)


def test_the_onnx_example_runs_as_it_is_written(reader: Reader) -> None:
    pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    from tests.onnx.models import model, node, value

    made = model([node("Relu", "x", "y")], [value("x", ["batch", 4])], [value("y", ["batch", 4])])
    Path("model.onnx").write_bytes(made.SerializeToString())
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    names = reader.run("import dvm_rt.onnx", x=x)
    (y,) = names["outputs"]
    assert np.array_equal(np.asarray(y), np.maximum(x, 0))


# ---- what it names ------------------------------------------------------------------------------------------------

QUOTED = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL))
FOLDERS = ("docs", "examples", "scripts", "benchmarks")


def test_every_name_is_there() -> None:
    names = set(re.findall(r"\bdvm\.(\w+)\b(?!\*)", README))
    assert len(names) > 20
    missing = [n for n in names if not hasattr(dvm, n)]
    assert not missing


def test_every_path_is_there() -> None:
    paths = {q for q in QUOTED if re.fullmatch(r"\w+/[\w./]*|\w+\.py", q)}
    missing = {p for p in paths if not (ROOT / p).exists() and not (ROOT / "dvm_rt" / p).exists()}
    assert len(paths) > 20 and not missing
    assert all(any(p.startswith(f) for p in paths) for f in FOLDERS)


def test_every_folder_of_the_package_is_on_the_map() -> None:
    folders = {f"{p.name}/" for p in (ROOT / "dvm_rt").iterdir() if p.is_dir() and any(p.glob("*.py")) or p.name == "native"}
    files = {p.name for p in (ROOT / "dvm_rt").glob("*.py") if p.name != "__init__.py"}
    assert not (folders | files) - set(QUOTED)


def test_every_command_is_there() -> None:
    from typer.main import get_command

    named = set(re.findall(r"`?dvm-rt ([a-z]+)", README))
    assert named and named <= set(get_command(app).commands)


def test_every_counter_is_there() -> None:
    (listed,) = re.findall(r"`dvm.stats\(\)` tells all of it \(([^)]*)\)", README)
    counters = {"walked_calls", *re.findall(r"`(\w+)`", listed)}
    assert len(counters) > 4 and counters <= set(dvm.stats())
