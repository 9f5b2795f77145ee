"""Matmul and pack sections: the bits of the definition (`isa/matmul.py`) in every form, shape and instruction set.

Every program here is loaded through the verifier, so the scratch that `isa/matmul.py` promises is also checked against
the one that the native side computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvm_rt import _native, dtypes
from dvm_rt.isa import matmul, reference
from dvm_rt.isa.program import PACKED, READ, WRITE, ProgramBuilder, SectionBuilder

TARGETS = _native.targets()
Array = np.ndarray
Epilogue = Callable[[ProgramBuilder, SectionBuilder], list[Array]]
GUARD = np.float32(-77)  # around and between rows of C: must survive


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def bits(x: Array) -> Array:
    return np.ascontiguousarray(x).view(np.uint32)


# ---- forms of the operands: each gives an array with the same values and another layout ----------------------------


def transposed(x: Array) -> Array:
    """The same matrix (or stack of them), its columns contiguous."""
    return np.ascontiguousarray(np.swapaxes(x, -1, -2)).swapaxes(-1, -2)


def widened(x: Array, by: int = 37) -> Array:
    """The same matrix as columns of a wider one: rows are strided."""
    wide = np.full((*x.shape[:-1], x.shape[-1] + by), np.nan, np.float32)
    wide[..., 3 : 3 + x.shape[-1]] = x
    return wide[..., 3 : 3 + x.shape[-1]]


def scattered(x: Array) -> Array:
    """Rows more than a page apart."""
    return widened(x, 1100)


LAYOUTS = {"rows": lambda x: x, "columns": transposed, "strided": widened, "scattered": scattered}


# ---- programs -------------------------------------------------------------------------------------------------------


def storage(x: Array) -> tuple[Array, int]:
    """The whole contiguous buffer that a view lies in, and the byte at which the view starts."""
    root = x
    while root.base is not None:
        root = root.base
    return root, x.__array_interface__["data"][0] - root.__array_interface__["data"][0]


def strides(x: Array, batch: Sequence[int]) -> tuple[int, int, list[int]]:
    """Strides of the last dimension, the one before, and the batch dimensions (innermost first). A dimension of 1 has
    no stride of its own: one of the inner two must be 4 bytes."""
    inner, outer = x.strides[-1], x.strides[-2]
    if 4 not in (inner, outer):
        inner, outer = (4, outer) if x.shape[-1] == 1 else (inner, 4)
    full = np.broadcast_to(x, (*batch, *x.shape[-2:])).strides[:-2]
    return inner, outer, list(full[::-1])


def program(
    a: Array, b: Array, packed: Array | None = None, epilogue: Epilogue | None = None
) -> tuple[bytes, list[Array], Array]:
    """A program of one matmul section, its arguments, and C: a strided matrix between guards. The program itself sets
    the guards, because memory that it does not write would be cleared before it runs."""
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    whole = np.zeros((*batch, m, n + 5), np.float32)
    c = whole[..., 2 : 2 + n]
    builder, args = ProgramBuilder(), [whole]
    result = builder.add_arg(whole.nbytes, READ | WRITE)
    fill = builder.vector(whole.size)
    fill.operand(result, [4], mode=WRITE)
    fill.begin_pass()
    fill.word("mov.k", GUARD)
    fill.word("store", 0)
    fill.end_pass()
    fill.word("end_row")
    section = builder.matmul(n, m, k, *batch[::-1])

    def operand(x: Array, mode: int, sizes: Sequence[int], depth: int = 0) -> None:
        root, base = storage(x)
        args.append(root)
        section.operand(builder.add_arg(root.nbytes), sizes, mode=mode, base=base, depth=depth)

    inner, outer, steps = strides(a, batch)
    operand(a, READ, [0, outer, *steps], inner)
    inner, outer, steps = strides(b, batch)
    if packed is None:
        operand(b, READ, [inner, 0, *steps], outer)
    else:
        operand(packed, READ | PACKED, [0] * (2 + len(batch)))
    section.operand(result, c.strides[::-1], mode=READ | WRITE, base=8)
    if epilogue:
        args += epilogue(builder, section)
        section.word("end")
    return builder.build(), args, c


def product(
    a: Array, b: Array, target: str = "", packed: Array | None = None, epilogue: Epilogue | None = None
) -> Array:
    code, args, c = program(a, b, packed, epilogue)
    _native.Program(code).run(args, target)
    assert np.all(args[0][..., :2] == GUARD) and np.all(args[0][..., -3:] == GUARD), "wrote beside C"
    return c


def pack(b: Array, target: str = "", shift: int = 0) -> Array:
    """The packed form of one matrix, made by a pack section; `shift` elements behind the beginning of a line of the caches."""
    (k, n), (root, base) = b.shape, storage(b)
    inner, outer, _ = strides(b, ())
    size = matmul.packed_bytes(n, k)
    out = np.full(size // 4 + shift + 32, GUARD, np.float32)
    out, at = out[-out.ctypes.data // 4 % 16 :][: size // 4 + shift + 16], shift
    builder = ProgramBuilder()
    section = builder.pack(n, k)
    section.operand(builder.add_arg(root.nbytes), [inner], base=base, depth=outer)
    section.operand(builder.add_arg(size + 4 * shift, WRITE), mode=WRITE | PACKED, base=4 * shift)
    _native.Program(builder.build()).run([root, out], target)
    assert not np.any(out[:at]), "wrote before the packed form"  # cleared, as what no section writes
    assert np.all(out[at + size // 4 :] == GUARD), "wrote beyond the packed form"
    return out[at : at + size // 4].copy()


# ---- the definition -------------------------------------------------------------------------------------------------

# Every length that changes the path: rows of all tiles, panels and their parts, slices of K.
ROWS = [1, 2, 3, 4, 6, 7, 9, 10, 14, 15, 19, 28, 29, 97]
COLUMNS = [1, 15, 16, 17, 31, 32, 33, 48, 49, 64, 65, 95, 96, 100, 127, 128, 129, 145, 190, 257]
DEPTHS = [1, 2, 3, 7, 64, 255]
SHAPES = [(m, k, n) for i, m in enumerate(ROWS) for j, n in enumerate(COLUMNS) for k in [DEPTHS[(i + j) % len(DEPTHS)]]]
LONG = [(1, 1024, 33), (3, 1025, 40), (15, 1025, 5), (2, 2049, 130), (20, 2056, 31)]


def check_all_forms(m: int, k: int, n: int, target: str) -> None:
    a, b = random(m, k), random(k, n)
    want = bits(matmul.matmul(a, b))
    for name, layout in LAYOUTS.items():
        np.testing.assert_array_equal(bits(product(layout(a), b, target)), want, f"A {name}")
        np.testing.assert_array_equal(bits(product(a, layout(b), target)), want, f"B {name}")
        packed = pack(layout(b), target)
        np.testing.assert_array_equal(bits(packed), bits(matmul.pack(b)), f"pack {name}")
    np.testing.assert_array_equal(bits(product(a, b, target, packed)), want, "B packed")
    np.testing.assert_array_equal(bits(product(widened(a), b, target, packed)), want, "A strided, B packed")


@pytest.mark.parametrize("target", TARGETS)
def test_every_form_has_the_bits_of_the_definition(target: str) -> None:
    for shape in SHAPES:
        if target != "baseline" or np.prod(shape) < 60_000:
            check_all_forms(*shape, target)


@pytest.mark.parametrize("target", TARGETS)
def test_a_packed_form_may_lie_at_any_element(target: str) -> None:
    for n, k in ((33, 20), (64, 40), (5, 1)):
        b = random(k, n)
        for layout in LAYOUTS.values():
            for shift in (0, 1, 8, 15):
                np.testing.assert_array_equal(bits(pack(layout(b), target, shift)), bits(matmul.pack(b)), f"shift {shift}")


@pytest.mark.parametrize("target", TARGETS)
def test_a_packed_form_beyond_the_caches_is_the_same(target: str) -> None:
    """Past 16 MiB it is stored in another way."""
    for n, k in ((4096, 1024), (4097, 1024)):
        b = random(k, n)
        for layout in LAYOUTS.values():
            np.testing.assert_array_equal(bits(pack(layout(b), target, 0)), bits(matmul.pack(b)))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", LONG)
def test_slices_are_added_in_order(target: str, shape: tuple[int, int, int]) -> None:
    check_all_forms(*shape, target)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_shape_and_layout(data: st.DataObject) -> None:
    m, k, n = (data.draw(st.integers(1, high), name) for name, high in (("m", 40), ("k", 70), ("n", 150)))
    batch = data.draw(st.lists(st.integers(1, 3), max_size=2), "batch")
    layout_a, layout_b = (LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))] for _ in "ab")
    target = data.draw(st.sampled_from(TARGETS), "target")
    a = layout_a(random(*data.draw(st.sampled_from([batch, [1] * len(batch), []])), m, k))
    b = layout_b(random(*batch, k, n, seed=1))
    c = product(a, b, target)
    for index in np.ndindex(*batch):
        row = np.broadcast_to(a, (*batch, m, k))[index]
        np.testing.assert_array_equal(bits(c[index]), bits(matmul.matmul(row, b[index])))


def test_reference_interpreter_agrees() -> None:
    for m, k, n in ((5, 9, 40), (2, 1030, 3)):
        code, args, c = program(random(2, m, k), transposed(random(1, k, n)))
        copies = [x.copy() for x in args]
        _native.Program(code).run(args)
        reference.run(code, copies)
        np.testing.assert_array_equal(bits(args[0]), bits(copies[0]))


# ---- beyond the reach of the definition -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(130, 1500, 330), (40, 300, 1100), (300, 1024, 64), (1, 3000, 1100), (290, 1024, 1100)])
def test_large_products(shape: tuple[int, int, int]) -> None:
    """Several groups of panels, several row blocks in L2, streamed B: equal in all forms, and right."""
    m, k, n = shape
    a, b = random(m, k), random(k, n)
    exact, scale = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)
    want = product(a, b)
    assert np.max(np.abs(want - exact) / scale) < 1e-6
    packed = pack(b)
    for target in TARGETS[:2]:
        for name, layout in LAYOUTS.items():
            np.testing.assert_array_equal(bits(product(layout(a), layout(b), target)), bits(want), f"{target} {name}")
        np.testing.assert_array_equal(bits(product(a, b, target, packed)), bits(want), target)
    for row in {0, m // 2, m - 1}:
        np.testing.assert_array_equal(bits(product(a[row : row + 1], b, packed=packed)), bits(want[row : row + 1]))


@pytest.mark.parametrize("target", TARGETS)
def test_a_row_does_not_know_its_neighbours(target: str) -> None:
    a, b = random(29, 80), random(80, 70)
    whole, packed = product(a, b, target), pack(b)
    for rows in (1, 2, 5, 14, 28):
        for first in (0, 29 - rows):
            part = a[first : first + rows]
            for c in (product(part, b, target), product(part, b, target, packed), product(part, transposed(b), target)):
                np.testing.assert_array_equal(bits(c), bits(whole[first : first + rows]))


# ---- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_attention_heads(target: str) -> None:
    """Scores and context of 12 heads that lie side by side in the rows of one matrix."""
    tokens, heads, width = 20, 12, 32
    qkv = random(tokens, 3, heads, width)
    q, k, v = (np.moveaxis(qkv[:, i], 0, 1) for i in range(3))
    scores = product(q, np.swapaxes(k, -1, -2), target)
    context = product(np.ascontiguousarray(scores), v, target)
    for h in range(heads):
        np.testing.assert_array_equal(bits(scores[h]), bits(matmul.matmul(q[h], k[h].T)))
        np.testing.assert_array_equal(bits(context[h]), bits(matmul.matmul(scores[h], v[h])))


@pytest.mark.parametrize(("batch_a", "batch_b"), [((3,), ()), ((), (3,)), ((2, 1), (1, 3)), ((2, 3, 2), (3, 1))])
def test_batches_broadcast(batch_a: tuple[int, ...], batch_b: tuple[int, ...]) -> None:
    a, b = random(*batch_a, 5, 11), random(*batch_b, 11, 35)
    c = product(a, b)
    wide_a, wide_b = np.broadcast_to(a, (*c.shape[:-2], 5, 11)), np.broadcast_to(b, (*c.shape[:-2], 11, 35))
    for index in np.ndindex(*c.shape[:-2]):
        np.testing.assert_array_equal(bits(c[index]), bits(matmul.matmul(wide_a[index], wide_b[index])))


def test_packed_b_serves_a_batch() -> None:
    a, b = random(4, 3, 50), random(50, 40)
    c = product(a, b, packed=pack(b))
    for i in range(4):
        np.testing.assert_array_equal(bits(c[i]), bits(matmul.matmul(a[i], b)))


# ---- special values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_nan_is_canonical_and_infinities_pass(target: str) -> None:
    a, b = random(4, 40), random(40, 50)
    a[0, 3], a[1, 5], a[2, 7], b[7, 2] = np.uint32(0xFFC12345).view(np.float32), np.inf, -np.inf, 0
    with np.errstate(invalid="ignore"):
        want = bits(matmul.matmul(a, b))
    for c in (product(a, b, target), product(a, transposed(b), target), product(a, b, target, pack(b))):
        np.testing.assert_array_equal(bits(c), want)
    assert np.all(bits(c)[0] == 0x7FC00000) and np.all(np.isinf(c[1])) and np.isnan(c[2, 2])


def test_subnormal_and_signed_zero_results() -> None:
    a, b = np.full((3, 1), 1e-30, np.float32), np.full((1, 33), 1e-12, np.float32)
    a[1], a[2] = -1e-30, -1e-45
    for target in TARGETS:
        np.testing.assert_array_equal(bits(product(a, b, target)), bits(matmul.matmul(a, b)))


# ---- epilogues ------------------------------------------------------------------------------------------------------


def add_operand(builder: ProgramBuilder, section: SectionBuilder, x: Array, sizes: Sequence[int]) -> int:
    return section.operand(builder.add_arg(x.nbytes), sizes)


def dense_epilogue(bias: Array, residual: Array, scale: Array) -> Epilogue:
    """relu((product + bias) * scale of the row) + residual: all exactly rounded operators."""

    def build(builder: ProgramBuilder, section: SectionBuilder) -> list[Array]:
        section.word("mov.i", 2)
        section.word("add.i", add_operand(builder, section, bias, [4]))
        section.word("mul.b", add_operand(builder, section, scale, [0, 4]))
        section.word("relu")
        section.word("add.i", add_operand(builder, section, residual, residual.strides[::-1]))
        section.word("store", 2)
        return [bias, scale, residual]

    return build


def gelu_words(section: SectionBuilder, bias: int) -> None:
    for word in (("add.i", bias), ("store_slot", 0), ("mul.k", 0.5**0.5), ("erf",), ("add.k", 1.0), ("mul.k", 0.5), ("mul.s", 0)):
        section.word(*word)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("m", "k", "n"), [(1, 5, 1), (3, 7, 130), (5, 20, 33), (20, 33, 300), (31, 1030, 129),
                                           (200, 40, 31), (130, 9, 420), (67, 6, 6), (33, 8, 42), (19, 5, 64), (90, 3, 1)])
def test_epilogue_is_the_same_as_operators_afterwards(m: int, k: int, n: int, target: str) -> None:
    a, b, bias, residual, scale = random(m, k), random(k, n), random(n), random(m, n, seed=2), random(m)
    c = matmul.matmul(a, b)
    want = bits(np.maximum((c + bias) * scale[:, None], np.float32(0)) + residual)
    epilogue = dense_epilogue(bias, residual, scale)
    for x in (a, transposed(a)):
        for y in (b, transposed(b)):
            np.testing.assert_array_equal(bits(product(x, y, target, epilogue=epilogue)), want)
        np.testing.assert_array_equal(bits(product(x, b, target, pack(b), epilogue)), want)


@pytest.mark.parametrize("target", TARGETS)
def test_gelu_epilogue_has_the_bits_of_a_vector_section(target: str) -> None:
    m, k, n = 21, 64, 200
    a, b, bias = random(m, k), random(k, n), random(n)

    def epilogue(builder: ProgramBuilder, section: SectionBuilder) -> list[Array]:
        section.word("mov.i", 2)
        gelu_words(section, add_operand(builder, section, bias, [4]))
        section.word("store", 2)
        return [bias]

    fused = product(a, b, target, pack(b), epilogue)
    plain = np.ascontiguousarray(product(a, b, target))
    builder = ProgramBuilder()
    section = builder.vector(n, m)
    section.operand(builder.add_arg(plain.nbytes), [4, 4 * n])
    shift = section.operand(builder.add_arg(bias.nbytes), [4])
    section.begin_pass()
    section.word("mov.i", 0)
    gelu_words(section, shift)
    section.word("store", section.operand(builder.add_arg(plain.nbytes, WRITE), [4, 4 * n], mode=WRITE))
    section.end_pass()
    section.word("end_row")
    after = np.empty_like(plain)
    _native.Program(builder.build()).run([plain, bias, after], target)
    np.testing.assert_array_equal(bits(fused), bits(after))


def sum_epilogue(*others: tuple[Array, Sequence[int]]) -> Epilogue:
    """product + an array + the next one, and nothing else: one and two of them are added in the tiles."""

    def build(builder: ProgramBuilder, section: SectionBuilder) -> list[Array]:
        section.word("mov.i", 2)
        for x, sizes in others:
            section.word("add.i", add_operand(builder, section, x, sizes))
        section.word("store", 2)
        return [x for x, _ in others]

    return build


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("m", "k", "n"), [(1, 5, 1), (1, 7, 130), (3, 4, 128), (5, 20, 33), (6, 9, 64), (9, 8, 96),
                                           (20, 33, 300), (31, 1030, 129), (200, 2050, 31), (64, 16, 256), (90, 3, 1)])
def test_what_tiles_add_has_the_bits_of_operators_afterwards(m: int, k: int, n: int, target: str) -> None:
    a, b, bias, residual = random(m, k), random(k, n), random(n), random(m, n, seed=2)
    rows, columns, wide = (residual, residual.strides[::-1]), (bias, [4]), random(m, n + 9, seed=2)
    c = matmul.matmul(a, b)
    for others, want in (((columns,), c + bias), ((rows,), c + residual), ((columns, rows), c + bias + residual),
                         ((rows, columns), c + residual + bias), ((columns, columns), c + bias + bias),
                         (((wide, wide.strides[::-1]),), c + wide[:, :n]),
                         ((columns, rows, columns), c + bias + residual + bias)):
        epilogue = sum_epilogue(*others)
        for form in (product(a, b, target, pack(b), epilogue), product(a, b, target, epilogue=epilogue),
                     product(transposed(a), transposed(b), target, epilogue=epilogue)):
            np.testing.assert_array_equal(bits(form), bits(want))


@pytest.mark.parametrize("target", TARGETS)
def test_what_tiles_add_may_differ_from_step_to_step_of_a_batch(target: str) -> None:
    a, b, bias = random(3, 9, 30), random(30, 70), random(3, 70)
    c = product(a, b, target, pack(b), sum_epilogue((bias, [4, 0, 4 * 70])))
    for i in range(3):
        np.testing.assert_array_equal(bits(c[i]), bits(matmul.matmul(a[i], b) + bias[i]))


@pytest.mark.parametrize("target", TARGETS)
def test_a_product_that_is_added_to_itself(target: str) -> None:
    """What the epilogue adds lies where the product is stored: it is the product, not what was there before."""
    for m, k, n in ((5, 20, 33), (64, 30, 96)):
        a, b = random(m, k), random(k, n)

        def epilogue(builder: ProgramBuilder, section: SectionBuilder) -> list[Array]:
            section.word("mov.i", 2)
            section.word("add.i", section.operand(0, [4, 4 * (n + 5)], base=8))
            section.word("store", 2)
            return []

        want = matmul.matmul(a, b)
        np.testing.assert_array_equal(bits(product(a, b, target, pack(b), epilogue)), bits(want + want))


@pytest.mark.parametrize("target", TARGETS)
def test_a_nan_that_tiles_add_is_canonical(target: str) -> None:
    a, b, bias = random(20, 8), random(8, 96), random(96)
    bias[5:7] = np.array([0xFFC12345, 0x7F812345], np.uint32).view(np.float32)
    a[3, 2] = np.nan
    c = product(a, b, target, pack(b), sum_epilogue((bias, [4])))
    assert np.all(bits(c)[:, 5:7] == 0x7FC00000) and np.all(bits(c)[3] == 0x7FC00000)
    np.testing.assert_array_equal(np.isnan(c).sum(), 20 * 2 + 94)


def test_epilogue_stores_elsewhere_and_per_batch() -> None:
    """An output that is not C, int32 and strided, with a batch of biases."""
    a, b, bias, out = random(2, 9, 30) * 8, random(30, 70), random(2, 70), np.zeros((2, 9, 140), np.int32)

    def epilogue(builder: ProgramBuilder, section: SectionBuilder) -> list[Array]:
        shift = section.operand(builder.add_arg(bias.nbytes), [4, 0, 4 * 70])
        target = builder.add_arg(out.nbytes, WRITE, dtypes.int32)
        place = section.operand(target, [8, 4 * 140, 4 * 140 * 9], dtype=dtypes.int32, mode=WRITE)
        section.word("mov.i", 2)
        section.word("add.i", shift)
        section.word("store_any", place)
        return [bias, out]

    c = product(a, b, epilogue=epilogue)
    np.testing.assert_array_equal(out[:, :, ::2], np.trunc(c + bias[:, None]).astype(np.int32))
    assert not out[:, :, 1::2].any()


def test_epilogue_nan_is_canonical() -> None:
    a, b = random(4, 8), random(8, 40)
    a[1, 1] = np.nan

    def epilogue(builder: ProgramBuilder, section: SectionBuilder) -> list[Array]:
        section.word("mov.i", 2)
        section.word("neg")
        section.word("store", 2)
        return []

    for target in TARGETS:
        c = product(a, b, target, epilogue=epilogue)
        assert np.all(bits(c)[1] == 0x7FC00000) and not np.isnan(c[0]).any()


def test_scratch_is_bounded() -> None:
    """However large the product, scratch holds one group of panels of one slice."""
    for n, m, k, stride_n in ((10**6, 10**6, 10**6, 4), (10**6, 1, 10**6, 4 * 10**6)):
        assert matmul.scratch_bytes(n, m, k, False, stride_n) <= 32 * 32 * 1024 * 4
    assert matmul.scratch_bytes(10**6, 7, 10**6, True, 0) == 0
