"""Every error that this package raises on purpose says who, where and what, got and allowed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dvm_rt import errors

PACKAGE = Path(__file__).parent.parent / "dvm_rt"
NAMES = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.DvmError)}
BY_OTHERS = re.compile(r"\{(what|error|_line\(error\))\}['\"]$")  # ends with what somebody else has said


def raised(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text, as source, of each error that is made with its text in place."""
    for node in ast.walk(ast.parse(path.read_text())):
        named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES and node.args
        if named and isinstance(node.args[0], ast.JoinedStr | ast.Constant):
            yield node.lineno, ast.unparse(node.args[0])


@pytest.mark.parametrize("folder", sorted(p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.rglob("*.py"))
                                          or p.suffix == ".py"))
def test_python_errors_have_the_form(folder: str) -> None:
    path = PACKAGE / folder
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    wrong = [
        f"{file.name}:{line}: {text}" for file in files for line, text in raised(file)
        if not BY_OTHERS.search(text) and not re.search(r"\bgot\b.*\ballowed\b", text, re.DOTALL)
    ]  # fmt: skip
    assert not wrong


def test_native_errors_have_the_form() -> None:
    made = [m for file in sorted((PACKAGE / "native").glob("*.cpp"))
            for m in re.findall(r'Error\("\w+", (?:say\()?(".*?)\);\n', file.read_text(), re.DOTALL)]
    assert len(made) > 25
    assert not [text for text in made if not ("got" in text and "allowed" in text)]


def test_there_are_errors_to_look_at() -> None:
    assert sum(1 for file in PACKAGE.rglob("*.py") for _ in raised(file)) > 200
