"""The encoder: what it makes of a plan passes the verifier, and computes what the plan says, bit for bit.

Programs run on the reference interpreter and are compared with a node-by-node evaluation of the plan in the same
arithmetic; then on the native machine with every instruction set, whose bits must agree."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from tests.native.plans import FUSED, Case, Value, arrays_of, expected, random_case

from dvm_rt import _native
from dvm_rt.dtypes import float32, int32, int64
from dvm_rt.errors import DeviceTrap, EncodeError, GraphError, InvalidBytecodeError
from dvm_rt.fusion.plan import NONE, PACKED, READ, WRITE, Expression, Plan, PlanBuilder
from dvm_rt.isa import matmul, reference
from dvm_rt.isa.checksum import checksum
from dvm_rt.isa.layout import RECORD
from dvm_rt.isa.program import parse
from dvm_rt.isa.table import mnemonic

Array = np.ndarray
TARGETS = _native.targets()


def encode(plan: Plan, symbols) -> bytes:
    return _native.Plan(plan.to_bytes()).encode(symbols)


def run_everywhere(program: bytes, arrays: list[Array]) -> tuple[list[Array], list[Array]]:
    """Runs a program on the reference interpreter and on every target; returns (reference, native) arrays and asserts
    that targets agree."""
    of_reference = [a.copy() for a in arrays]
    if not program:
        return of_reference, of_reference
    reference.run(program, of_reference)
    verified, results = _native.Program(program), []
    for target in TARGETS:
        results.append([a.copy() for a in arrays])
        verified.run(results[-1], target)
        for number, (got, first) in enumerate(zip(results[-1], results[0], strict=True)):
            assert got.tobytes() == first.tobytes(), f"argument {number}: {target} and {TARGETS[0]} differ"
    return of_reference, results[0]


def words_of(program: bytes) -> list[str]:
    return [mnemonic(w.op) for s in parse(program).sections for w in s.words]


def check(case: Case, plan: Plan, symbols, seed: int = 0, native_exact: bool = False, tolerance: float = 3e-5) -> bytes:
    """Encodes, runs everywhere, compares with the plan's own meaning; returns the program."""
    rng = np.random.default_rng(seed)
    program = encode(plan, symbols)
    arrays = arrays_of(plan, symbols, rng, case.indices)
    exact = expected(case, plan, symbols, arrays)
    of_reference, native = run_everywhere(program, arrays)
    for buffer, want in exact.items():
        assert of_reference[buffer].tobytes() == want.tobytes(), f"buffer {buffer}: reference"
        if native_exact:
            assert native[buffer].tobytes() == want.tobytes(), f"buffer {buffer}: native"
    if not native_exact:
        for buffer, want in expected(case, plan, symbols, arrays, wide=True).items():
            np.testing.assert_allclose(native[buffer], want, rtol=tolerance, atol=tolerance)
    return program


# ---- vector kernels -------------------------------------------------------------------------------------------------

SHAPES = [
    (0, 5), (5, 0), (0, 0), (1, 1), (1, 7), (5, 1), (3, 31), (3, 127), (3, 128), (3, 129), (2, 257), (4, 768), (2, 16385),
]  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_fused_kernel_over_shapes(name: str) -> None:
    case = Case(2)
    FUSED[name](case)
    plan = case.build()
    for shape in SHAPES:
        if min(shape) and name == "chain8":  # x / (e^t + 1): its relative error is not bounded
            check(case, plan, shape, tolerance=1e-3)
        else:
            check(case, plan, shape)


@pytest.mark.parametrize("name", FUSED)
def test_fused_kernel_with_prefetch_and_streaming(name: str) -> None:
    """Beyond L2; single passes that compute leave it to the hardware what comes from L3."""
    case = Case(2, stream=True)
    FUSED[name](case)
    plan = case.build()
    near, far = words_of(check(case, plan, (660, 800), tolerance=1e-3)), words_of(encode(plan, (2700, 800)))
    assert "store_nt" in near and {"store_nt", "fetch"} <= set(far)
    assert ("fetch" in near) == (near.count("pass") > 1)
    assert not {"store_nt", "fetch"} & set(words_of(encode(plan, (33, 80))))


def test_operands_are_prefetched_where_they_are_first_read() -> None:
    case = Case(2, stream=True)
    FUSED["lstm"](case)
    words = parse(check(case, case.build(), (760, 800), tolerance=1e-3)).sections[0].words
    named = [(mnemonic(w.op), w.a) for w in words]
    fetched = [i for i, (name, _) in enumerate(named) if name == "fetch"]
    assert len(fetched) == 5
    for i in fetched:
        readers = [at for at, (name, operand) in enumerate(named) if name.endswith(".i") and operand == named[i][1]]
        assert readers[0] == i + 1


def test_short_rows_little_beyond_l2_are_stored_through_the_caches() -> None:
    case = Case(2, stream=True)
    FUSED["softmax"](case)
    near, far = check(case, case.build(), (330, 800), tolerance=1e-3), encode(case.build(), (1000, 800))
    assert "fetch" in words_of(near) and "store_nt" not in words_of(near)
    assert "store_nt" in words_of(far)


@pytest.mark.parametrize("block", range(8))
def test_random_exact(block: int) -> None:
    for seed in range(20 * block, 20 * block + 20):
        made = random_case(seed, smooth=False)
        check(made.case, made.plan, made.symbols, seed, native_exact=True)


@pytest.mark.parametrize("block", range(4))
def test_random_smooth(block: int) -> None:
    for seed in range(1000 + 15 * block, 1015 + 15 * block):
        made = random_case(seed, smooth=True)
        check(made.case, made.plan, made.symbols, seed, tolerance=2e-4)


def test_same_plan_over_random_shapes() -> None:
    random = Random(5)
    for seed in range(24):
        made = random_case(seed, smooth=False)
        for _ in range(3):
            symbols = [
                random.choice([0, 1, 2, 3, 5, 17, 64, 127, 128, 129, 131]) if s.parameter == 0 else 5 for s in made.plan.symbols
            ]
            if np.prod([v for v, s in zip(symbols, made.plan.symbols, strict=True) if s.parameter == 0]) < 3000:
                check(made.case, made.plan, symbols, seed, native_exact=True)


def test_prepared_words_are_what_the_generator_writes() -> None:
    """Words are prepared for inner strides that the plan states as constants. The same plan with strides that are only
    known when the dimensions are takes the other way, and must give the same bytes."""
    for seed in range(40):
        made = random_case(seed, smooth=False)
        plan = made.plan
        symbol = next(i for i, e in enumerate(plan.expressions) if e.op == "SYMBOL")
        hidden = [*plan.expressions, *_hidden_constants(plan, symbol)]
        first = len(plan.expressions)
        number = {e.k: first + 3 * i + 2 for i, e in enumerate(_constants(plan))}

        def hide(stride: int, plan: Plan = plan, number: dict[int, int] = number) -> int:
            return stride if stride == NONE or plan.expressions[stride].op != "CONST" else number[plan.expressions[stride].k]

        kernel = plan.kernels[0]
        args = tuple(a._replace(strides=tuple(hide(s) for s in a.strides)) for a in kernel.args)
        other = replace(plan, expressions=tuple(hidden), kernels=(kernel._replace(args=args),))
        assert encode(plan, made.symbols) == encode(other, made.symbols)


def test_kernels_that_are_alike_are_encoded_as_if_they_were_not() -> None:
    """The section of a kernel that comes again over other buffers is taken from the first one. Where the expressions of the
    others have other numbers they are encoded one by one, and must give the same bytes."""
    for seed in range(40):
        made = random_case(seed, smooth=False)
        plan = _again(_again(made.plan))
        first, *others = plan.kernels
        more = len(plan.expressions)
        twice = (*plan.expressions, *(e._replace(a=e.a + more, b=e.b + more) if e.op not in ("CONST", "SYMBOL") else e
                                      for e in plan.expressions))
        others = tuple(k._replace(dims=tuple(d + more for d in k.dims)) for k in others)
        unlike = replace(plan, expressions=twice, kernels=(first, *others))
        rows = [symbol for symbol in range(len(plan.symbols)) if plan.symbols[symbol].parameter == 0]
        for size in (None, 0, 1, 131):
            symbols = [s if size is None or i not in rows else size for i, s in enumerate(made.symbols)]
            assert encode(plan, symbols) == encode(unlike, symbols)


def _again(plan: Plan) -> Plan:
    """With the last kernel once more, into outputs of its own."""
    first, count = len(plan.buffers), len(plan.outputs)
    kernel = plan.kernels[-1]
    written = [a.buffer for a in kernel.args if a.buffer != NONE and a.mode & WRITE]
    new = {buffer: first + i for i, buffer in enumerate(dict.fromkeys(written))}
    buffers = [plan.buffers[b]._replace(index=count + i) for i, b in enumerate(new)]
    outputs = [next(o for o in plan.outputs if o.buffer == b)._replace(buffer=new[b]) for b in new]
    args = tuple(a._replace(buffer=new.get(a.buffer, a.buffer)) for a in kernel.args)
    return replace(plan, buffers=(*plan.buffers, *buffers), outputs=(*plan.outputs, *outputs),
                   kernels=(*plan.kernels, kernel._replace(args=args)))


def _constants(plan: Plan) -> list[Expression]:
    return [e for e in plan.expressions if e.op == "CONST"]


def _hidden_constants(plan: Plan, symbol: int) -> list[Expression]:
    """For each constant c: c + symbol * 0, which folds to nothing but a value."""
    out, first = [], len(plan.expressions)
    for e in _constants(plan):
        at = first + len(out)
        zero = Expression("CONST", k=0)
        out += [zero, Expression("MUL", symbol, at), Expression("ADD", plan.expressions.index(e), at + 1)]
    return out


def test_more_reductions_than_a_pass_can_hold() -> None:
    case = Case(2)
    x, total = case.first, None
    for i in range(7):
        part = (x * (i + 1.0)).sum() + (x - float(i)).max()
        total = part if total is None else total + part
    case.output(x + total)
    case.output(total, per_row=True)
    program = check(case, case.build(), (3, 200))
    assert words_of(program).count("pass") == 3


def test_rows_are_values_where_the_kernel_has_no_long_inputs() -> None:
    case = Case(2)
    bias = case.input(ones=[1])
    case.output(bias.op("square") + 1.0)  # one value a row, stored to every element
    check(case, case.build(), (5, 70), native_exact=True)


def test_integer_per_row_with_a_reduction() -> None:
    case = Case(2)
    count = case.input(int64, ones=[1])
    total = case.first.sum()
    case.output(total / count, per_row=True)
    case.output(case.first * count)
    check(case, case.build(), (5, 70))


def test_integer_per_row_without_a_reduction() -> None:
    case = Case(2)
    row = case.input(int32, ones=[1]) * case.input(ones=[1])
    case.output(row, per_row=True)
    case.output(case.first * row)
    for shape in ((5, 70), (5, 1), (1, 1), (3, 0), (0, 3)):
        check(case, case.build(), shape, native_exact=True)


def test_reductions_over_nothing() -> None:
    case = Case(2)
    case.output(case.first.sum() + 1.0, per_row=True)
    case.output(case.first.max(), per_row=True)
    case.output(case.first.op("exp"))
    program = check(case, case.build(), (3, 0), native_exact=True)
    assert program


def test_a_cheap_value_is_computed_again_and_a_dear_one_kept() -> None:
    cheap, dear = Case(2), Case(2)
    for case, op in ((cheap, "square"), (dear, "exp")):
        value = case.first.op(op)
        case.output(value / value.sum())
    assert parse(check(cheap, cheap.build(), (3, 200))).scratch_bytes == 0
    assert parse(check(dear, dear.build(), (3, 200))).scratch_bytes == 832
    assert parse(encode(dear.build(), (3, 1 << 20))).scratch_bytes == 0  # a row beyond the cache is computed again


def test_gather_out_of_range_traps() -> None:
    case = Case(2)
    case.output(case.first + case.gathered())
    plan = case.build()
    symbols = [3, 40, 6]
    arrays = arrays_of(plan, symbols, np.random.default_rng(0), case.indices)
    program = _native.Program(encode(plan, symbols))
    index = next(iter(case.indices))
    for bad in (6, -7):
        arrays[index][...] = bad
        with pytest.raises(DeviceTrap):
            program.run(arrays)


def test_size_node_follows_the_dimension() -> None:
    case = Case(2)
    size = Value(case, case.kernel.size(case.dims[1]))
    case.output(case.first.sum() / size, per_row=True)
    plan = case.build()
    for n in (1, 5, 300):
        arrays = arrays_of(plan, (2, n), np.random.default_rng(n))
        _, native = run_everywhere(encode(plan, (2, n)), arrays)
        np.testing.assert_allclose(native[1], arrays[0].mean(-1, keepdims=True), rtol=1e-5, atol=1e-6)


# ---- matmul ---------------------------------------------------------------------------------------------------------


def matmul_plan(batch: int, shared: bool, left: str, right: str, epilogue: str) -> Plan:
    """C[b.., m, n] = A @ B, then an epilogue. `left`, `right`: "plain", "transposed"; right also "packed"."""
    b = PlanBuilder()
    batches = [b.symbol(0, d) for d in range(batch)]
    m, k = b.symbol(0, batch + (left == "transposed")), b.symbol(0, batch + (left != "transposed"))
    a_shape = [*batches, k, m] if left == "transposed" else [*batches, m, k]
    a = b.input(b.parameter(float32, a_shape))
    own = [] if shared else batches
    n = b.symbol(1, len(own) + (right != "transposed"))
    b_shape = [*own, n, k] if right == "transposed" else [*own, k, n]
    b_parameter = b.parameter(float32, b_shape)
    zero, one = b.const(0), b.const(1)
    a_strides, b_strides = b.contiguous(a_shape[::-1]), b.contiguous(b_shape[::-1])
    row, depth = (a_strides[0], a_strides[1]) if left == "transposed" else (a_strides[1], a_strides[0])
    column, b_depth = (b_strides[1], b_strides[0]) if right == "transposed" else (b_strides[0], b_strides[1])
    packed = right == "packed"
    b_buffer = b.pack(b_parameter, k, n, b_strides[1], b_strides[0]) if packed else b.input(b_parameter)
    out = b.output(float32, [*batches, m, n])
    out_strides = b.contiguous([n, m, *batches[::-1]])
    kernel = b.kernel("MATMUL", [n, m, *batches[::-1]], k)
    kernel.arg(a, READ, float32, [zero, row, *a_strides[2:]], depth=depth)
    b_batch = [zero] * batch if shared else b_strides[2:]
    kernel.arg(b_buffer, READ | (PACKED if packed else 0), float32, [zero if packed else column, zero, *b_batch],
               depth=NONE if packed else b_depth)  # fmt: skip
    c = kernel.arg(out, WRITE, float32, out_strides)
    if epilogue == "none":
        return b.build()
    bias = kernel.arg(b.input(b.parameter(float32, [n])), READ, float32, [one, zero, *[zero] * batch])
    value = kernel.binary("add", kernel.input(c), kernel.input(bias))
    if epilogue == "bias":
        kernel.output(value, c)
    else:  # relu, times one value a row, plus a residual; the sign of the product as integers on the side
        scale = kernel.arg(b.input(b.parameter(float32, [*batches, m, one])), READ, float32,
                           b.contiguous([one, m, *batches[::-1]]))
        residual = kernel.arg(b.input(b.parameter(float32, [*batches, m, n])), READ, float32, out_strides)
        side = kernel.arg(b.output(int32, [*batches, m, n]), WRITE, int32, out_strides)
        value = kernel.binary("mul", kernel.unary("relu", value), kernel.unary("neg", kernel.input(scale)))
        kernel.output(kernel.binary("add", value, kernel.input(residual)), c)
        kernel.output(kernel.binary("gt", kernel.input(c), kernel.const(0.0)), side)
    return b.build()


def matmul_expected(arrays: list[Array], plan: Plan, batch: int, left: str, right: str, epilogue: str) -> list[Array]:
    """The outputs, from the reference's matmul; arrays[1] is B unpacked."""
    a, b = arrays[0], arrays[1]
    a = a.swapaxes(-1, -2) if left == "transposed" else a
    b = b.swapaxes(-1, -2) if right == "transposed" else b
    lead, m, n, k = a.shape[:-2], a.shape[-2], b.shape[-1], a.shape[-1]
    count = int(np.prod(lead))
    flat, every_b = a.reshape(count, m, k), np.broadcast_to(b, (*lead, k, n)).reshape(count, k, n)
    if k:
        product = np.stack([matmul.matmul(x, y) for x, y in zip(flat, every_b, strict=True)])
    else:
        product = np.zeros((len(flat), m, n), np.float32)
    product = product.reshape(*lead, m, n).astype(np.float32)
    if epilogue == "none":
        return [product]
    value = product + arrays[3]
    if epilogue == "bias":
        return [value]
    scale, residual = arrays[4], arrays[5]
    value = np.where(value < 0, np.float32(0), value) * -scale + residual
    return [value, (product > 0).astype(np.int32)]


MATMULS = [
    (0, True, "plain", "plain", "none"), (0, True, "transposed", "plain", "bias"), (0, True, "plain", "transposed", "all"),
    (0, True, "plain", "packed", "all"), (1, True, "plain", "packed", "bias"), (1, True, "plain", "plain", "all"),
    (1, False, "plain", "transposed", "none"), (2, False, "transposed", "plain", "all"), (2, False, "plain", "plain", "bias"),
]  # fmt: skip
SIZES = [(1, 1, 1), (1, 40, 7), (5, 1, 33), (7, 33, 1), (3, 130, 20), (17, 65, 40), (4, 0, 5), (0, 3, 5), (4, 35, 0)]


@pytest.mark.parametrize("form", MATMULS, ids=lambda f: "-".join(map(str, f)))
def test_matmul_with_epilogue(form) -> None:
    batch, shared, left, right, epilogue = form
    plan, rng = matmul_plan(*form), np.random.default_rng(1)
    for m, n, k in SIZES:
        for lead in {0: [()], 1: [(1,), (3,)], 2: [(2, 3), (1, 2), (2, 1)]}[batch]:
            value_of = {"m": m, "n": n, "k": k, **{f"batch{i}": v for i, v in enumerate(lead)}}
            symbols = [_matmul_symbol(s, form, value_of) for s in plan.symbols]
            values = plan.evaluate(symbols)
            parameters = [rng.standard_normal([values[d] for d in p.dims]).astype(np.float32) for p in plan.parameters]
            whole = parameters[:2] + [None] + parameters[2:]
            want = matmul_expected(whole, plan, batch, left, right, epilogue)
            arrays = []
            for buffer in plan.buffers:
                if buffer.role == "PACKED":
                    arrays.append(matmul.pack(parameters[1]) if parameters[1].size else np.zeros(0, np.float32))
                elif buffer.role == "PARAMETER":
                    arrays.append(parameters[buffer.index])
                else:
                    out = plan.outputs[buffer.index]
                    arrays.append(np.full([values[d] for d in out.dims], 7, out.dtype.numpy))
            of_reference, native = run_everywhere(encode(plan, symbols), arrays)
            for output, expect in zip(plan.outputs, want, strict=True):
                got = of_reference[output.buffer]
                assert got.shape == expect.shape
                if expect.size:
                    assert got.tobytes() == expect.tobytes(), (m, n, k, lead)
                    assert native[output.buffer].tobytes() == expect.tobytes(), (m, n, k, lead)


def _matmul_symbol(symbol, form, value_of: dict[str, int]) -> int:
    batch, shared, left, right, _ = form
    if symbol.parameter == 1:
        return value_of["n"]
    if symbol.dim < batch:
        return value_of[f"batch{symbol.dim}"]
    return value_of["m" if (symbol.dim == batch) != (left == "transposed") else "k"]


def test_batches_join_the_rows_where_the_weights_are_shared() -> None:
    plan = matmul_plan(2, True, "plain", "packed", "all")
    values = {"m": 5, "n": 40, "k": 8, "batch0": 2, "batch1": 3}
    section = parse(encode(plan, [_matmul_symbol(s, (2, True, "plain", "packed", "all"), values)
                                  for s in plan.symbols])).sections[0]
    assert section.rank == 2 and section.dims[:2] == (40, 30)


# ---- several kernels ------------------------------------------------------------------------------------------------


def attention_plan() -> Plan:
    """softmax(q @ k^T) @ v with the scores and weights in the workspace; q, k, v of [t, d]."""
    b = PlanBuilder()
    t, d = b.symbol(0, 0), b.symbol(0, 1)
    q, k, v = (b.input(b.parameter(float32, [t, d])) for _ in range(3))
    zero, one = b.const(0), b.const(1)
    scores, weights = b.temporary(float32, [t, t], 0), b.temporary(float32, [t, t], 1)
    square = b.contiguous([t, t])
    first = b.kernel("MATMUL", [t, t], d)
    first.arg(q, READ, float32, [zero, d], depth=one)
    first.arg(k, READ, float32, [d, zero], depth=one)
    first.arg(scores, WRITE, float32, square)
    soft = b.kernel("VECTOR", [t, t])
    x = soft.input(soft.arg(scores, READ, float32, square))
    e = soft.unary("exp", soft.binary("sub", x, soft.max(x)))
    soft.output(soft.binary("div", e, soft.sum(e)), soft.arg(weights, WRITE, float32, square))
    last = b.kernel("MATMUL", [d, t], t)
    last.arg(weights, READ, float32, [zero, t], depth=one)
    last.arg(v, READ, float32, [one, zero], depth=d)
    last.arg(b.output(float32, [t, d]), WRITE, float32, b.contiguous([d, t]))
    return b.build()


def test_several_kernels_share_a_workspace() -> None:
    plan, rng = attention_plan(), np.random.default_rng(2)
    for t, d in ((1, 4), (7, 32), (33, 16), (130, 8)):
        program = encode(plan, (t, d))
        parsed = parse(program)
        rounded = -(-t * t * 4 // 64) * 64
        assert len(parsed.sections) == 3 and parsed.workspace_bytes == 2 * rounded
        q, k, v = (rng.standard_normal((t, d)).astype(np.float32) for _ in range(3))
        _, native = run_everywhere(program, [q, k, v, np.zeros((t, d), np.float32)])
        s = q.astype(np.float64) @ k.T
        w = np.exp(s - s.max(-1, keepdims=True))
        np.testing.assert_allclose(native[3], w / w.sum(-1, keepdims=True) @ v, rtol=2e-5, atol=2e-5)
    assert encode(plan, (0, 4)) == b""


def test_pack_kernel() -> None:
    """Packs a parameter into the workspace, plain and transposed, and multiplies with it."""
    for transposed in (False, True):
        b = PlanBuilder()
        m, k = b.symbol(0, 0), b.symbol(0, 1)
        a, right = b.parameter(float32, [m, k]), b.parameter(float32, [])
        n = b.symbol(right, 1 - transposed)
        b._parameters[right] = type(b._parameters[right])(float32, (n, k) if transposed else (k, n))
        zero, one = b.const(0), b.const(1)
        panels = b.floordiv(b.add(n, b.const(31)), b.const(32))
        panel_buffer = b.temporary(float32, [k, panels, b.const(32)], 0)
        pack = b.kernel("PACK", [n], k)
        pack.arg(b.input(right), READ, float32, [k if transposed else one], depth=one if transposed else n)
        pack.arg(panel_buffer, WRITE | PACKED, float32, [zero])
        kernel = b.kernel("MATMUL", [n, m], k)
        kernel.arg(b.input(a), READ, float32, [zero, k], depth=one)
        kernel.arg(panel_buffer, READ | PACKED, float32, [zero, zero])
        kernel.arg(b.output(float32, [m, n]), WRITE, float32, b.contiguous([n, m]))
        plan, rng = b.build(), np.random.default_rng(3)
        for sizes in ((3, 5, 40), (1, 1, 1), (2, 7, 1), (2, 1, 33)):
            x, y = rng.standard_normal(sizes[:2]).astype(np.float32), rng.standard_normal(sizes[1:]).astype(np.float32)
            stored = np.ascontiguousarray(y.T if transposed else y)
            arrays = {a: x, right: stored}
            bound = [arrays[p.index] if p.role == "PARAMETER" else np.zeros((sizes[0], sizes[2]), np.float32)
                     for p in plan.buffers if p.role != "TEMPORARY"]  # fmt: skip
            _, native = run_everywhere(encode(plan, sizes), bound)
            assert native[-1].tobytes() == matmul.matmul(x, y).tobytes()


# ---- what is refused ------------------------------------------------------------------------------------------------


def refused(plan: Plan, symbols, text: str) -> None:
    native = _native.Plan(plan.to_bytes())
    with pytest.raises(EncodeError, match=text):
        native.encode(symbols)


def test_limits_are_errors() -> None:
    case = Case(2)
    values = [case.first.op("tanh")]
    for _ in range(26):
        values.append(values[-1].op("tanh"))
    total = values.pop()
    for value in reversed(values):  # the last value needs all before it, and each is needed again
        total = total * value
    case.output(total)
    refused(case.build(), (3, 4), "more than 24 strips")

    case = Case(2)
    value = case.first
    for _ in range(13):
        value = case.first - value.max()
    case.output(value)
    refused(case.build(), (3, 4), "more than 12 reductions")

    case = Case(2)
    case.output(case.first, per_row=True)
    refused(case.build(), (3, 4), "once a row")

    case = Case(2)
    case.output(case.first)
    plan = case.build()
    refused(plan, (3,), "number of them, got 1, allowed 2")
    refused(plan, (-1, 4), "negative")
    refused(plan, (2**62, 4), "64 bits")
    refused(plan, (2**30, 2**20), "2\\^40")
    with pytest.raises(OverflowError):
        _native.Plan(plan.to_bytes()).encode((2**70, 1))


def test_matrices_without_a_contiguous_dimension_are_refused() -> None:
    plan = matmul_plan(0, True, "plain", "plain", "none")
    kernel = plan.kernels[0]
    for number, text in ((0, "matrix A"), (1, "matrix B"), (2, "rows of the product")):
        two = next(i for i, e in enumerate(plan.expressions) if e.op == "SYMBOL")
        args = list(kernel.args)
        args[number] = args[number]._replace(depth=two, strides=(two if number else args[0].strides[0],
            args[number].strides[1] if number else two))
        refused(replace(plan, kernels=(kernel._replace(args=tuple(args)),)), (3, 5, 4), text)


# ---- plan bytes -----------------------------------------------------------------------------------------------------


def plans() -> list[Plan]:
    out = [random_case(seed, smooth=False).plan for seed in range(6)]
    return [*out, attention_plan(), matmul_plan(1, True, "plain", "packed", "all"),
            matmul_plan(2, False, "transposed", "plain", "bias")]


def test_python_and_native_agree_on_plans() -> None:
    for plan in plans():
        data = plan.to_bytes()
        assert Plan.from_bytes(data) == plan and Plan.from_bytes(data).to_bytes() == data
        symbols = [3 + i for i in range(len(plan.symbols))]
        native = _native.Plan(data)
        assert native.evaluate(symbols) == plan.evaluate(symbols)
        assert native.info["kernels"] == len(plan.kernels) and native.info["buffers"] == len(plan.buffers)
        assert f"{len(plan.kernels)} kernels" in plan.dump()


def test_expressions_follow_python() -> None:
    b = PlanBuilder()
    x, y = b.symbol(0, 0), b.symbol(0, 1)
    minus = b.mul(x, b.const(-1))
    b.parameter(float32, [x, y])
    for op in (b.floordiv, b.mod, b.minimum, b.maximum, b.add, b.mul):
        op(minus, y), op(y, minus), op(x, y), op(minus, b.const(-3))
    plan = b.build()
    native = _native.Plan(plan.to_bytes())
    for symbols in ((7, 3), (1, 1), (12, 5), (6, 3)):
        assert native.evaluate(symbols) == plan.evaluate(symbols)
    for symbols in ((0, 3), (3, 0)):
        with pytest.raises(GraphError, match="division by zero"):
            plan.evaluate(symbols)
        with pytest.raises(EncodeError, match="division by zero"):
            native.evaluate(symbols)


def test_damaged_plans_are_refused() -> None:
    data = bytearray(plans()[0].to_bytes())
    head = RECORD["PlanHead"].numpy
    for name in ("magic", "version", "table_hash", "checksum", "kernels", "nodes"):
        bad = bytearray(data)
        bad[head.fields[name][1]] ^= 1
        for load in (_native.Plan, Plan.from_bytes):
            with pytest.raises(GraphError):
                load(bytes(bad))
    for end in (0, 10, head.itemsize, len(data) - 8):
        for load in (_native.Plan, Plan.from_bytes):
            with pytest.raises(GraphError):
                load(bytes(data[:end]))


@pytest.mark.parametrize("number", range(9))
def test_hostile_plans_do_no_harm(number: int) -> None:
    """Random changes with a good checksum: each is refused, or encodes to something that the verifier judges."""
    plan = plans()[number]
    data, random = plan.to_bytes(), Random(number)
    start = RECORD["PlanHead"].numpy.itemsize
    counts = {"refused": 0, "loaded": 0, "encoded": 0, "verified": 0}
    for _ in range(700):
        bad = bytearray(data)
        for _ in range(random.choice([1, 1, 2, 5])):
            at = random.randrange(start, len(bad))
            bad[at] = random.choice([0, 1, 2, 0xFF, 0x7F, 0x80, random.randrange(256), bad[at] ^ 1 << random.randrange(8)])
        bad[start - 8 : start] = checksum(bytes(bad[start:])).to_bytes(8, "little")
        try:
            native = _native.Plan(bytes(bad))
        except GraphError:
            counts["refused"] += 1
            continue
        counts["loaded"] += 1
        for symbols in ([5] * len(plan.symbols), [random.randrange(200) for _ in plan.symbols]):
            try:
                program = native.encode(symbols)
                counts["encoded"] += 1
                if program:
                    _native.Program(program)
                    counts["verified"] += 1
            except (EncodeError, InvalidBytecodeError):
                continue
    assert min(counts.values()) > 0, counts


# ---- determinism ----------------------------------------------------------------------------------------------------

ANOTHER_PROCESS = """
import hashlib, sys
from tests.native.plans import random_case
from dvm_rt import _native
digest = hashlib.blake2b()
for seed in range(12):
    made = random_case(seed, smooth=False)
    native = _native.Plan(made.plan.to_bytes())
    for _ in range(2):
        digest.update(native.encode(made.symbols))
print(digest.hexdigest())
"""


def test_bytes_are_the_same_in_every_process_and_for_every_target() -> None:
    digests = set()
    for target in TARGETS:
        environment = os.environ | {"DVM_RT_TARGET": target, "PYTHONPATH": os.pathsep.join(sys.path), "MALLOC_PERTURB_": "165"}
        done = subprocess.run([sys.executable, "-c", ANOTHER_PROCESS], env=environment, capture_output=True,
                              text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1
