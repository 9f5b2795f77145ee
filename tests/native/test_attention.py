"""Attention sections: the bits of the definition (`isa/attention.py`) in every form, shape and instruction set.

Every program here is loaded through both verifiers, so the scratch that `isa/attention.py` promises is checked against the
one that the native side computes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvm_rt import _native, dtypes
from dvm_rt.isa import attention, matmul, reference
from dvm_rt.isa.program import PACKED, READ, WRITE, ProgramBuilder
from dvm_rt.isa.verifier import check

from tests.native.test_matmul import bits, random, storage, transposed, widened

TARGETS = _native.targets()
Array = np.ndarray
FAR = 1 << 40
GUARD = np.float32(-77)


def program(
    q: Array, k: Array, v: Array, mask: Array | None = None, limit: int = FAR, scale: float = 0.25,
    masked: float = -np.inf, empty: float = 0.0, packed: Array | None = None,
) -> tuple[bytes, list[Array], Array]:  # fmt: skip
    """A program of one attention section, its arguments, and O: a strided matrix between guards, which a first section
    writes."""
    (queries, depth), keys = q.shape[-2:], k.shape[-2]
    batch = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    whole = np.zeros((*batch, queries, v.shape[-1] + 5), np.float32)
    builder, args = ProgramBuilder(), [whole]
    result = builder.add_arg(whole.nbytes, WRITE)
    fill = builder.vector(whole.size)
    fill.operand(result, [4], mode=WRITE)
    fill.begin_pass()
    fill.word("mov.k", GUARD)
    fill.word("store", 0)
    fill.end_pass()
    fill.word("end_row")
    section = builder.attention(keys, queries, max(depth, v.shape[-1]), *batch[::-1], scale=scale, masked=masked, empty=empty)

    def operand(x: Array, sizes: list[int], **named: int) -> None:
        root, base = storage(x)
        args.append(root)
        dtype = dtypes.bool_ if root.dtype == np.uint8 else dtypes.float32
        number = builder.add_arg(root.nbytes, READ, dtype)
        outer = np.broadcast_to(x, (*batch, *x.shape[-2:])).strides[:-2] if x.ndim > 1 else ()
        section.operand(number, [*sizes, *outer[::-1]], dtype=dtype, base=base, **named)

    operand(q, [0, q.strides[-2]], depth=q.strides[-1], limit=limit)
    if packed is None:
        operand(k, [k.strides[-2], 0], depth=k.strides[-1], limit=depth)
    else:
        operand(packed, [0, 0], mode=READ | PACKED, limit=depth)
    operand(v, [v.strides[-2], 0], depth=v.strides[-1], limit=v.shape[-1])
    o = whole[..., 2:-3]
    section.operand(result, [0, *o.strides[-2::-1]], mode=WRITE, base=8, depth=4)
    if mask is not None:
        full = np.broadcast_to(mask, (*mask.shape[:-2], queries, keys))
        operand(full, [full.strides[-1], full.strides[-2]])
    return builder.build(), args, o


def run(q: Array, k: Array, v: Array, mask: Array | None = None, target: str = "", **named: float) -> Array:
    code, args, o = program(q, k, v, mask, **named)
    refusal = check(code)
    assert refusal is None, refusal
    _native.Program(code).run(args, target)
    assert np.all(args[0][..., :2] == GUARD) and np.all(args[0][..., -3:] == GUARD), "wrote beside O"
    return o


def defined(q: Array, k: Array, v: Array, mask: Array | None = None, **named: float) -> Array:
    values = {"limit": FAR, "scale": 0.25, "masked": -np.inf, "empty": 0.0} | named
    full = None if mask is None else np.broadcast_to(mask, (len(q), len(k)))
    with np.errstate(all="ignore"):
        return attention.attention(q, k, v, mask=full, **values)


def exact(q: Array, k: Array, v: Array, limit: int = FAR, scale: float = 0.25) -> Array:
    s = scale * (q.astype(np.float64) @ k.T)
    s[np.arange(len(k)) >= limit + np.arange(len(q))[:, None]] = -np.inf
    p = np.exp(s - s.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True) @ v


SHAPES = [(1, 1, 1), (1, 16, 32), (2, 33, 64), (3, 64, 64), (1, 130, 32), (3, 129, 20), (4, 31, 40), (12, 40, 8), (13, 129, 32),
          (15, 257, 5), (29, 127, 33), (5, 200, 96), (1, 300, 64), (2, 70, 48), (61, 140, 32), (130, 270, 8)]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("queries", "keys", "depth"), SHAPES)
def test_every_form_has_the_bits_of_the_definition(queries: int, keys: int, depth: int, target: str) -> None:
    q, k, v = random(queries, depth), random(keys, depth, seed=1), random(keys, depth, seed=2)
    packed = matmul.pack(k.T)
    for limit in (FAR, keys - queries + 1, 3, 0):
        want = bits(defined(q, k, v, limit=limit))
        forms = {"rows": (q, k, v), "strided": (widened(q), widened(k), widened(v)), "columns": (transposed(q), transposed(k), v)}
        for name, form in forms.items():
            np.testing.assert_array_equal(bits(run(*form, target=target, limit=limit)), want, f"{name} {limit}")
        np.testing.assert_array_equal(bits(run(q, k, v, target=target, limit=limit, packed=packed)), want, f"packed {limit}")


@pytest.mark.parametrize("target", TARGETS)
def test_masks(target: str) -> None:
    q, k, v = random(17, 32), random(150, 32, seed=1), random(150, 32, seed=2)
    rng = np.random.default_rng(3)
    added = np.where(rng.random((17, 150)) < 0.3, np.float32(-np.inf), random(17, 150, seed=4)).astype(np.float32)
    some = (rng.random((17, 150)) < 0.5).astype(np.uint8) * 3
    some[5] = 0
    for mask in (added, added[:1], added[:, :1], some, some[:1], some[:, :1], widened(added), np.float32([[-1e30]])):
        for named in ({}, {"limit": 134}, {"masked": -1e30}, {"empty": np.nan}):
            np.testing.assert_array_equal(
                bits(run(q, k, v, mask, target, **named)), bits(defined(q, k, v, mask, **named)), f"{mask.shape} {named}"
            )


def test_close_to_float64() -> None:
    for queries, keys, depth in ((1, 2048, 64), (40, 500, 128), (3, 1000, 32)):
        q, k, v = random(queries, depth), random(keys, depth, seed=1), random(keys, depth, seed=2)
        for limit in (FAR, keys - queries + 1):
            want = exact(q, k, v, limit)
            assert np.max(np.abs(run(q, k, v, limit=limit) - want)) < 2e-6 * max(1, np.abs(want).max())


@pytest.mark.parametrize("target", TARGETS)
def test_a_query_does_not_know_its_neighbours(target: str) -> None:
    q, k, v = random(43, 64), random(300, 64, seed=1), random(300, 64, seed=2)
    whole = run(q, k, v, target=target, limit=258)
    for first, rows in ((0, 1), (5, 2), (17, 3), (20, 14), (42, 1), (0, 20)):
        part = run(q[first : first + rows], k, v, target=target, limit=258 + first)
        np.testing.assert_array_equal(bits(part), bits(whole[first : first + rows]))
    for row in (0, 20, 42):  # decode over the keys so far is that row of the causal pass
        alone = run(q[row : row + 1], k[: 258 + row], v[: 258 + row], target=target)
        np.testing.assert_array_equal(bits(alone), bits(whole[row : row + 1]))


def test_nobody_to_attend_to() -> None:
    q, k, v = random(3, 32), random(5, 32), random(5, 32)
    assert not run(q, k, v, limit=0)[0].any() and run(q, k, v, limit=0)[1].any()
    assert np.all(np.isnan(run(q, k, v, limit=0, empty=np.nan)[0]))
    nothing = np.zeros((1, 1), np.uint8)
    assert not run(q, k, v, nothing).any()
    np.testing.assert_allclose(run(q, k, v, nothing, masked=-1e30), np.broadcast_to(v.mean(0), (3, 32)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_nan_and_infinity(target: str) -> None:
    q, k, v = random(20, 32), random(140, 32, seed=1), random(140, 32, seed=2)
    q[1, 3], k[7, 2], v[60, 5], v[139, 4], q[4, 0] = np.uint32(0xFFC12345).view(np.float32), np.inf, np.nan, np.inf, -np.inf
    want = defined(q, k, v, limit=121)
    np.testing.assert_array_equal(bits(run(q, k, v, target=target, limit=121)), bits(want))
    assert np.all(bits(want)[1] == 0x7FC00000)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    sizes = {"queries": 30, "keys": 200, "depth": 70}
    queries, keys, depth = (data.draw(st.integers(1, high), name) for name, high in sizes.items())
    batch = tuple(data.draw(st.lists(st.integers(1, 3), max_size=2), "batch"))
    groups = data.draw(st.sampled_from([batch, (1,) * len(batch), ()]), "groups")
    limit = data.draw(st.sampled_from([FAR, keys - queries + 1, 1]), "limit")
    target = data.draw(st.sampled_from(TARGETS), "target")
    width = data.draw(st.sampled_from([depth, 1, 33]), "width of the values")
    q, k, v = random(*batch, queries, depth), random(*groups, keys, depth, seed=1), random(*groups, keys, width, seed=2)
    o = run(q, k, v, target=target, limit=limit)
    for index in np.ndindex(*batch):
        one = [np.broadcast_to(x, (*batch, *x.shape[-2:]))[index] for x in (k, v)]
        np.testing.assert_array_equal(bits(o[index]), bits(defined(q[index], *one, limit=limit)))


def test_reference_interpreter_agrees() -> None:
    mask = (random(2, 1, 4, 40) > 0).astype(np.uint8)
    for k in (random(2, 1, 40, 9, seed=1), transposed(random(1, 40, 9, seed=1))):
        code, args, o = program(random(2, 3, 4, 9), k, random(2, 1, 40, 9, seed=2), mask, limit=37)
        copies = [x.copy() for x in args]
        _native.Program(code).run(args)
        reference.run(code, copies)
        np.testing.assert_array_equal(bits(args[0]), bits(copies[0]))
