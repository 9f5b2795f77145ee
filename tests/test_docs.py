"""docs/reading.md prints what it says: each example is run, and its output is the text that follows it.

`python -m tests.test_docs` writes the output anew."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import dvm_rt as dvm
from dvm_rt.trace import LABELS

PAGE = Path(__file__).parent.parent / "docs" / "reading.md"
EXAMPLE = re.compile(r"```python\n(.*?)```\n(?:```text\n(.*?)```\n)?", re.DOTALL)


def written(page: str) -> str:
    """The page with what its examples print now."""
    names: dict[str, object] = {}

    def run(example: re.Match[str]) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(example[1], str(PAGE), "exec"), names)
        said = "" if example[2] is None else f"```text\n{out.getvalue().rstrip()}\n```\n"
        return f"```python\n{example[1]}```\n{said}"

    with dvm.Runtime(inline=True):
        return EXAMPLE.sub(run, page)


def test_examples_print_what_the_page_says() -> None:
    page = PAGE.read_text()
    assert len(EXAMPLE.findall(page)) > 3 and page == written(page)


def test_every_span_of_a_trace_is_on_the_page() -> None:
    told = set(re.findall(r"^\| [\w, ]+ \| ([\w, ()]+) \|", PAGE.read_text(), re.MULTILINE))
    spans = {name for cell in told for name in cell.split(", ")}
    assert {kind.lower() for kind in LABELS} <= spans


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
