"""ONNX's own backend suite against dvm_rt: counts by group, the list of what passes, the table of operators.

A case passes, is wrong (another result), or is not supported (a typed error that says what). Cases that download, and
results that are drawn at random, are not comparable and are left out; `light` models are compared with what ONNX's
reference evaluator computes, which takes minutes: only on request."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from dvm_rt.errors import DvmError
from dvm_rt.onnx.running import HOST_FUNCTION, HOST_PATH
from dvm_rt.onnx.session import Session, load

GROUPS = ("node", "simple", "pytorch-converted", "pytorch-operator")
RANDOM = ("test_bernoulli",)
PASSED, WRONG, UNSUPPORTED, FAILED = "passed", "wrong", "not supported", "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one case. `plain`: only numeric types of 16 bits and more (and bool, int8, uint8) go in and out;
    `placed`: operator -> where it ran."""

    name: str
    group: str
    result: str
    said: str
    plain: bool
    operators: tuple[str, ...]
    placed: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def without_host(self) -> bool:
        """Whether NumPy computed nothing of what was given: not between launches, and not as a host function within one."""
        return not any(where in (HOST_PATH, HOST_FUNCTION) for places in self.placed.values() for where in places)


def run(groups: Sequence[str] = GROUPS, pattern: str = "") -> Iterator[Outcome]:
    """The outcomes of all cases whose name has the pattern in it."""
    for group in groups:
        for case in cases(group):
            if pattern in case.name and not case.name.startswith(RANDOM):
                yield outcome(case, group)


def cases(group: str) -> list:
    """The cases of a group, as the installed onnx makes them."""
    if "ONNX_HOME" not in os.environ:  # where it writes
        os.environ["ONNX_HOME"] = folder = tempfile.mkdtemp(prefix="dvm_rt_onnx_")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_model_tests(kind=group)


def outcome(case: object, group: str) -> Outcome:
    """One case, run."""
    model = case.model if case.model is not None else onnx.load(Path(case.model_dir) / "model.onnx", load_external_data=False)
    operators = tuple(sorted({(f"{n.domain}." if n.domain else "") + n.op_type for n in model.graph.node}))
    session: Session | None = None
    result, said = PASSED, ""
    try:
        session = load(case.model if case.model is not None else Path(case.model_dir) / "model.onnx")
        for inputs, wanted in _data(case, model):
            names = [p.name for p in session.inputs] if len(inputs) <= len(session.inputs) else [v.name
                for v in model.graph.input]
            got = session.run(dict(zip(names, inputs, strict=False)))
            difference = differs(wanted, got, case.rtol, case.atol)
            if difference:
                result, said = WRONG, difference
                break
    except DvmError as error:
        result, said = UNSUPPORTED, f"{type(error).__name__}: {error}"
    except Exception as error:  # what is not typed is a failure of ours
        result, said = FAILED, f"{type(error).__name__}: {error}"
    placed: dict[str, set[str]] = {}
    for row in session.explain() if session is not None else ():
        placed.setdefault(row.operator, set()).update(row.where)
    return Outcome(case.name, group, result, said, _is_plain(model), operators, {k: tuple(sorted(v)) for k, v in placed.items()})


def _is_plain(model: onnx.ModelProto) -> bool:
    kinds = onnx.TensorProto
    odd = {kinds.UNDEFINED, kinds.STRING, kinds.COMPLEX64, kinds.COMPLEX128}
    found = {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output) if v.type.HasField("tensor_type")}
    return not any(k in odd or k > kinds.BFLOAT16 for k in found)


def _data(case: object, model: onnx.ModelProto) -> Iterator[tuple[list, list]]:
    if case.data_sets is not None:
        for inputs, outputs in case.data_sets:
            yield [_plain(v) for v in inputs], [_plain(v) for v in outputs]
        return
    for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
        count = len(list(folder.glob("input_*.pb")))
        inputs = [_read(folder / f"input_{i}.pb", v) for i, v in enumerate(list(model.graph.input)[:count])]
        yield inputs, [_read(folder / f"output_{i}.pb", v) for i, v in enumerate(model.graph.output)]


def _plain(value: object) -> object:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return numpy_helper.to_optional(value)
    return [np.asarray(v) for v in value] if isinstance(value, (list, tuple)) else None if value is None else np.asarray(value)


def _read(path: Path, declared: onnx.ValueInfoProto) -> object:
    kinds = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}
    proto = kinds.get(declared.type.WhichOneof("value"), onnx.TensorProto)()
    proto.ParseFromString(path.read_bytes())
    return _plain(proto)


def differs(wanted: object, got: object, rtol: float, atol: float) -> str:
    """What is different, or nothing. Shapes and dtypes are equal, numbers within the suite's tolerances."""
    if wanted is None or got is None:
        return "" if wanted is got else f"got {got!r}, allowed {wanted!r}"
    if isinstance(wanted, list):
        if not isinstance(got, (list, tuple)) or len(got) != len(wanted):
            there = len(got) if isinstance(got, (list, tuple)) else type(got).__name__
            return f"sequence, got {there}, allowed {len(wanted)} values"
        return next((d for w, g in zip(wanted, got, strict=True) if (d := differs(w, g, rtol, atol))), "")
    w, g = np.asarray(wanted), np.asarray(got)
    if w.dtype.kind in "UST":
        w = w.astype(object)
    if w.shape != g.shape or w.dtype != g.dtype:
        return f"got {g.dtype}{list(g.shape)}, allowed {w.dtype}{list(w.shape)}"
    if w.dtype == object or w.dtype.kind in "biu":
        same = bool((w == g).all()) if w.dtype.kind != "i" and w.dtype.kind != "u" else bool(
            np.allclose(w.astype(np.float64), g.astype(np.float64), rtol, atol))
        return "" if same else f"values, got {g.ravel()[:4]}, allowed {w.ravel()[:4]}"
    rtol = max(rtol, 2**-6) if w.dtype.name == "bfloat16" else rtol
    wide = np.complex128 if w.dtype.kind == "c" else np.float64
    w, g = w.astype(wide), g.astype(wide)
    close = np.isclose(g, w, rtol=rtol, atol=atol, equal_nan=True)
    if close.all():
        return ""
    at = np.unravel_index(int(np.argmin(close)), close.shape)
    return f"{int((~close).sum())} of {close.size} values, at {tuple(map(int, at))} got {g[at]}, allowed {w[at]}"


# ---- what is printed ----------------------------------------------------------------------------------------------


def summary(outcomes: Sequence[Outcome]) -> str:
    """Counts by group, then how many of the passing ones ran without the host path."""
    lines = [f"{'group':<20}{'cases':>7}{'passed':>8}{'no host':>9}{'wrong':>7}{'failed':>8}{'not supported':>15}"]
    for group in (*dict.fromkeys(o.group for o in outcomes), "all"):
        rows = [o for o in outcomes if group in (o.group, "all")]
        counts = Counter(o.result for o in rows)
        free = sum(o.result == PASSED and o.without_host for o in rows)
        lines.append(f"{group:<20}{len(rows):>7}{counts[PASSED]:>8}{free:>9}{counts[WRONG]:>7}{counts[FAILED]:>8}"
                     f"{counts[UNSUPPORTED]:>15}")
    plain = [o for o in outcomes if o.plain]
    lines.append(f"plain numeric types: {sum(o.result == PASSED for o in plain)} of {len(plain)} pass")
    return "\n".join(lines)


def table(outcomes: Sequence[Outcome]) -> str:
    """docs/onnx.md: every operator of the suite, where it ran, how many cases pass."""
    where: dict[str, set[str]] = {}
    passed: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for o in outcomes:
        for name in o.operators:
            total[name] += 1
            passed[name] += o.result == PASSED
            where.setdefault(name, set()).update(o.placed.get(name.rsplit(".", 1)[-1], ()))
    lines = [
        "# ONNX operators", "",
        f"Generated by `dvm-rt conformance onnx --table docs/onnx.md` with onnx {onnx.__version__}. Where an operator ran in the",
        "cases of ONNX's backend suite: *instructions* of the vector and matrix units; a *host function* in the process that runs",
        f"programs ({HOST_FUNCTION}: NumPy, within a launch); the *{HOST_PATH}* path, in NumPy between launches; folded into",
        "*shapes and constants*; *control flow*; or taken apart into its *function body*. \"no host\" counts cases in which NumPy",
        "computed nothing of what was given, in neither way.", "",
        "```", summary(outcomes), "```", "",
        "| operator | cases | pass | where |", "|---|---|---|---|",
    ]  # fmt: skip
    lines += [f"| {name} | {total[name]} | {passed[name]} | {', '.join(sorted(where[name])) or 'not supported'} |"
              for name in sorted(total)]
    missing = [o for o in outcomes if o.result != PASSED]
    lines += ["", "## Cases that do not pass", ""]
    lines += [f"- `{o.name}` ({o.group}), {o.result}: {_short(o.said)}" for o in missing]
    return "\n".join(lines) + "\n"


def _short(said: str) -> str:
    """On one line, without folders."""
    return re.sub(r"\S*/(?=\S)", "", " ".join(said.split()))[:200]
