"""Imports point down only, and what starts often stays light."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

PACKAGE = Path(__file__).parent.parent / "dvm_rt"

LAYERS = [  # from the bottom; packages on one line do not import each other
    {"errors"},
    {"config", "dtypes"},
    {"_native"},
    {"isa"},
    {"graph"},
    {"fusion"},
    {"wire", "session"},
    {"transport"},
    {"encoder_workers", "npu_device"},
    {"zygote"},
    {"scheduler", "trace"},
    {"waiting", "turns", "starting"},
    {"runtime"},
    {"array"},
    {"xp", "onnx", "torch"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Names that a module takes from above on purpose, inside a function: the pool is part of the workers' package but starts
# processes with the zygote's environment; an array knows its namespace, as the Array API standard wants it.
EXCEPTIONS = {("encoder_workers/pool.py", "zygote"), ("array/array.py", "xp")}


def imported(path: Path) -> Iterator[str]:
    """First name below dvm_rt of everything that a module imports, wherever in it, except for type checkers."""
    tree = ast.parse(path.read_text())
    skipped = {id(n) for block in ast.walk(tree) if _is_type_checking(block) for n in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("dvm_rt."))
        elif isinstance(node, ast.ImportFrom) and node.module == "dvm_rt":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dvm_rt."):
            yield node.module.split(".")[1]
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_imports_point_down_only():
    checked = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        own = relative.parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in LEVEL, f"{relative}: not in any layer"
        for name in imported(path):
            checked += 1
            down = name == own or LEVEL.get(name, 99) < LEVEL[own] or (str(relative), name) in EXCEPTIONS
            assert down, f"{relative} imports {name}, which is not below it"
    assert checked > 50


def test_only_transport_imports_zmq():
    importers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module
                or ""] if isinstance(node, ast.ImportFrom) else []
            if any(n.split(".")[0] == "zmq" for n in names):
                importers.add(path.name)
    assert importers == {"transport.py"}


def test_no_pickle_and_no_code_from_data():
    banned = {"pickle", "marshal", "dill", "joblib", "shelve", "cloudpickle"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module
                or ""] if isinstance(node, ast.ImportFrom) else []
            assert not banned & {n.split(".")[0] for n in names}, path
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            assert called not in ("exec", "compile", "__import__"), path
            assert called != "eval" or "array" in path.parts, path  # dvm.eval is a function of ours


def modules_after(statement: str) -> set[str]:
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-P", "-c", script], env={"PYTHONPATH": str(PACKAGE.parent)}, capture_output=True,
        text=True, check=True, timeout=60
    )
    return set(out.stdout.split())


HEAVY = {"zmq", "uvloop", "asyncio", "numpy", "typer", "rich", "torch", "onnx", "msgpack", "subprocess"}


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import dvm_rt", set()),
        ("import dvm_rt.runtime", set()),
        ("from dvm_rt.runtime import Runtime; Runtime(inline=True)", set()),
        ("import dvm_rt.zygote", set()),
        ("import dvm_rt.session", set()),
        ("import dvm_rt.wire", {"msgpack"}),
        ("import dvm_rt.zygote; dvm_rt.zygote._preload()", {"zmq", "msgpack"}),
        ("import dvm_rt.scheduler.shell, dvm_rt.scheduler.loop", {"zmq", "msgpack"}),
    ],
)
def test_light_things_stay_light(statement, allowed):
    loaded = modules_after(statement)
    assert loaded & HEAVY <= allowed
    assert "dvm_rt" in loaded


def test_the_zygote_has_one_thread():
    script = "import os, dvm_rt.zygote as z; z._preload(); print('threads', len(os.listdir('/proc/self/task')))"
    out = subprocess.run(
        [sys.executable, "-P", "-c", script], env={"PYTHONPATH": str(PACKAGE.parent)}, capture_output=True,
        text=True, check=True, timeout=60
    )
    assert out.stdout.strip() == "threads 1"


def test_sources_without_a_core_say_what_to_do(tmp_path: Path) -> None:
    """Who starts Python beside the sources gets them, not what was installed (-S: nor what is installed as editable)."""
    shutil.copytree(PACKAGE, tmp_path / "dvm_rt", ignore=shutil.ignore_patterns("*.so", "__pycache__", "native"))
    found = subprocess.run(
        [sys.executable, "-S", "-c", "import dvm_rt; dvm_rt.asarray(1)"],
        cwd=tmp_path, env={"PYTHONPATH": str(Path(np.__file__).parent.parent)}, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 1 and "start Python in another folder" in found.stderr.splitlines()[-1]
