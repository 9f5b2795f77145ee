"""Promotion as in the Array API standard, and conversions as the oracle does them."""

from __future__ import annotations

import numpy as np
import pytest

from dvm_rt import dtypes
from dvm_rt.dtypes import DTYPES, bfloat16, bool_, float16, float32, float64, int8, int32, int64, uint8, uint64

OF_NUMPY = [d for d in DTYPES if d is not bfloat16]


@pytest.mark.parametrize("a", OF_NUMPY, ids=str)
@pytest.mark.parametrize("b", OF_NUMPY, ids=str)
def test_promotion_of_one_kind_is_that_of_the_standard(a: dtypes.DType, b: dtypes.DType) -> None:
    found = dtypes.promote(a, b)
    assert found is dtypes.promote(b, a)
    if {a.kind, b.kind} <= {"i", "u"} or a.kind == b.kind:
        wanted = np.promote_types(a.numpy, b.numpy)
        assert (found is None) if wanted.kind == "f" and a.kind != "f" else found.numpy == wanted
    else:
        assert found is (a if ("b", "u", "i", "f").index(a.kind) > ("b", "u", "i", "f").index(b.kind) else b)


def test_promotion_beyond_numpy() -> None:
    assert dtypes.promote(bfloat16, float16) is float32 and dtypes.promote(bfloat16, float64) is float64
    assert dtypes.promote(bfloat16, int64) is bfloat16 and dtypes.promote(uint64, int8) is None
    assert dtypes.with_number(int8, 3) is int8 and dtypes.with_number(int8,
        3.0) is float32 and dtypes.with_number(bool_, 3) is int64
    assert dtypes.with_number(float16, 3.0) is float16 and dtypes.with_number(uint8, True) is uint8
    assert dtypes.sum_dtype(int8) is int64 and dtypes.sum_dtype(uint8) is uint64 and dtypes.sum_dtype(float16) is float16


@pytest.mark.parametrize("wide", DTYPES, ids=str)
@pytest.mark.parametrize("narrow", DTYPES, ids=str)
def test_what_holds_every_value(wide: dtypes.DType, narrow: dtypes.DType) -> None:
    if narrow.kind == "f":
        digits = {float16: 10, bfloat16: 7, float32: 23, float64: 52}[narrow]
        ends = [1 + 2.0**-digits, 2.0**15 if narrow is float16 else 2.0**1000 if narrow is float64 else 2.0**100]
    else:
        ends = [False, True] if narrow is bool_ else list(dtypes.limits(narrow))
    stored = [dtypes.from_storage(dtypes.to_storage(np.asarray(n), wide), wide).item() for n in ends]
    assert dtypes.holds(wide, narrow) == (stored == ends)


def test_floats_become_integers_by_truncation_and_saturation() -> None:
    x = np.array([1.9, -1.9, 1e30, -1e30, np.nan, np.inf, 2.0**31, -(2.0**31) - 1])
    top, bottom = 2**31 - 1, -(2**31)
    assert dtypes.rounded(x, int32).tolist() == [1, -1, top, bottom, 0, top, top, bottom]
    assert dtypes.rounded(x, uint64).tolist() == [1, 0, 2**64 - 1, 0, 0, 2**64 - 1, 2**31, 0]


def test_bfloat16_bits() -> None:
    x = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -0.0, np.inf, 3.4e38, 1e-45])
    assert dtypes.from_bits(dtypes.bfloat16_bits(x)).tolist() == [1.0, 1.0, 1 + 2**-6, -0.0, np.inf, np.inf, 0.0]
    assert dtypes.bfloat16_bits(np.array(np.nan)) == 0x7FC0
