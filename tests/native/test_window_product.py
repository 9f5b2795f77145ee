"""Products whose right operand are windows that slide over an array: the bits of the reference on every instruction set, for
windows that go along one row of places, two or many, in steps of any size, in slices of K and in every compute dtype."""

from __future__ import annotations

import numpy as np
import pytest

from dvm_rt import _native, dtypes
from dvm_rt.isa import reference, verifier
from dvm_rt.isa.program import READ, WINDOWS, WRITE, ProgramBuilder

TARGETS = _native.targets()
CASES = [  # batch, rows of A, channels, kernel, places, step, dilation
    (1, 1, 1, (1, 1), (1, 1), (1, 1), (1, 1)), (2, 3, 2, (3, 3), (5, 40), (1, 1), (1, 1)),
    (1, 20, 3, (2, 3), (7, 20), (1, 1), (2, 1)), (1, 15, 2, (3, 3), (9, 14), (2, 2), (1, 1)),
    (2, 5, 1, (7, 7), (3, 33), (2, 2), (1, 1)), (1, 16, 4, (3, 2), (11, 7), (1, 1), (1, 2)),
    (1, 2, 3, (1, 4), (1, 100), (1, 3), (1, 1)), (1, 4, 130, (3, 3), (2, 17), (1, 1), (1, 1)),
    (1, 33, 40, (1, 1), (8, 16), (2, 2), (1, 1)), (3, 1, 5, (3, 3), (64, 1), (1, 1), (1, 1)),
    (21, 1, 1, (3, 3), (4, 6), (1, 1), (1, 1)), (18, 1, 1, (5, 5), (7, 14), (2, 2), (1, 2)),
    (2, 1, 1, (3, 3), (61, 56), (1, 1), (1, 1)), (17, 1, 1, (1, 3), (1, 19), (1, 1), (1, 4)),
    (1, 64, 3, (3, 3), (7, 7), (1, 1), (2, 2)), (2, 10, 120, (3, 3), (5, 9), (2, 2), (1, 1)),
    (1, 65, 3, (3, 3), (7, 7), (1, 1), (1, 1)), (1, 70, 9, (3, 3), (33, 34), (1, 1), (1, 1)),
    (1, 6, 2, (2, 2), (4, 31), (3, -1), (1, 1)), (5, 1, 1, (7, 2), (9, 70), (1, 1), (1, 1)),
    (4, 1, 1, (5, 5), (6, 33), (1, 1), (1, 2)), (3, 1, 1, (3, 4), (5, 129), (1, 1), (1, 1)),
    (3, 1, 1, (3, 3), (6, 20), (2, 1), (2, 1)), (2, 17, 2, (3, 3), (6, 20), (2, 2), (1, 1)),
    (18, 1, 1, (3, 3), (7, 14), (2, 2), (1, 1)), (3, 1, 1, (5, 5), (9, 70), (2, 2), (1, 1)),
    (3, 1, 1, (7, 4), (5, 33), (2, 2), (1, 1)), (3, 1, 1, (3, 3), (7, 20), (1, 1), (2, 1)),
    (2, 1, 1, (3, 3), (11, 5), (1, 1), (3, 2)), (2, 1, 1, (3, 1), (2, 17), (2, 2), (1, 1)),
]  # fmt: skip


def program(
    case: tuple, compute: dtypes.DType, random: np.random.Generator
) -> tuple[bytes, list[np.ndarray], np.ndarray]:
    """C = A @ windows of X for each of a batch, and the windows as matrices; X is no longer than they reach."""
    batch, m, channels, (height, width), (rows, places), (down, across), (far, wide) = case
    space = ((rows - 1) * abs(down) + (height - 1) * far + 1, (places - 1) * abs(across) + (width - 1) * wide + 1)
    a = (random.standard_normal((m, channels * height * width)) * 4).astype(compute.numpy)
    x = (random.standard_normal((batch, channels, *space)) * 4).astype(compute.numpy)
    c = np.zeros((batch, m, rows * places), compute.numpy)
    builder, size = ProgramBuilder(), compute.bytes
    section = builder.matmul(rows * places, m, a.shape[1], batch, dtype=compute)
    section.operand(builder.add_arg(a.nbytes, dtype=compute), (0, a.strides[0], 0), depth=size)
    image, channel, row, _ = x.strides
    section.operand(builder.add_arg(x.nbytes, dtype=compute),
                    (across * size, 0, image, 0, 0, wide * size, far * row, down * row), mode=READ | WINDOWS, depth=channel,
                    base=(places - 1) * size if across < 0 else 0, index=height * 256 + width, limit=places)
    section.operand(builder.add_arg(c.nbytes, READ | WRITE, compute), c.strides[::-1], mode=READ | WRITE)
    at = np.arange(rows)[:, None] * down, np.arange(places)[None] * across + (places - 1 if across < 0 else 0)
    laid = np.stack([x[:, :, at[0] + i * far, at[1] + j * wide] for i in range(height) for j in range(width)], axis=2)
    return builder.build(), [a, x, c], laid.reshape(batch, a.shape[1], rows * places)


@pytest.mark.parametrize("compute", [dtypes.float32, dtypes.float64, dtypes.int32, dtypes.uint64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_windows(case: tuple, compute: dtypes.DType) -> None:
    code, args, laid = program(case, compute, np.random.default_rng(1))
    assert verifier.check(code) is None
    found = []
    for target in TARGETS:
        for parts in (0, 3):
            again = [*args[:2], np.zeros_like(args[2])]
            _native.Program(code).run(again, target, threads=2, parts=parts)
            found.append(again[2].tobytes())
        want = args[0].astype(np.float64) @ laid if compute.kind == "f" else args[0] @ laid
        np.testing.assert_allclose(again[2], want, rtol=1e-5, atol=1e-3)
    if compute is dtypes.float32 or args[2].size < 500:  # the reference's float64 is made of exact fractions
        again = [*args[:2], np.zeros_like(args[2])]
        reference.run(code, again)
        found.append(again[2].tobytes())
    assert len(set(found)) == 1


def test_nothing_outside_of_the_windows_is_read() -> None:
    """What lies between the windows, and behind the last of them, is NaN and does not matter."""
    for step, wide in ((4, 2), (2, 1)):
        case = (3, 1, 2, (2, wide), (6, 21), (3, step), (1, 1))
        code, (a, x, c), _ = program(case, dtypes.float32, np.random.default_rng(2))
        untouched = np.ones(x.shape[-2:], bool)
        for row, column in np.ndindex(2, wide):
            untouched[row::3, column::step] = False
        x[..., untouched] = np.nan
        for target in TARGETS:
            c[:] = 0
            _native.Program(code).run([a, x, c], target)
            assert np.isfinite(c).all()
