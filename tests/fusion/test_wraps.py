"""Wraps of small integers and roundings of short floats: only where they change what somebody sees, and with the same
results as after every operator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt import dtypes
from dvm_rt.fusion.plan import Node
from dvm_rt.fusion.words import without_idle_narrowing

RNG = np.random.default_rng(11)


def ops(nodes: list[Node]) -> list[str]:
    return [n.op for n in nodes]


def test_a_wrap_between_sums_is_idle() -> None:
    x, y = Node("NODE_INPUT", 0), Node("NODE_INPUT", 1)
    nodes = [x, y, Node("mul", 0, 1), Node("wrap_i8", 2), Node("add", 3, 0), Node("wrap_i8", 4), Node("NODE_OUTPUT", 5, 2)]
    kept = without_idle_narrowing(nodes, [dtypes.int8] * 3)
    assert kept == [x, y, Node("mul", 0, 1), Node("add", 2, 0), Node("NODE_OUTPUT", 3, 2)]


@pytest.mark.parametrize("between", ("max", "abs", "shr", "lt"))
def test_a_wrap_that_is_seen_stays(between: str) -> None:
    second = 1 if between in ("max", "shr", "lt") else Node("neg").b
    nodes = [Node("NODE_INPUT", 0), Node("NODE_INPUT", 1), Node("add", 0, 1), Node("wrap_u8", 2),
             Node(between, 3, second), Node("NODE_OUTPUT", 4, 2)]
    assert without_idle_narrowing(nodes, [dtypes.uint8] * 3) == nodes


def test_wider_bits_are_seen() -> None:
    """int8 added as int16: the wrap to 8 bits matters, the one to 16 does not; but for a store of 32 bits both do."""
    nodes = [Node("NODE_INPUT", 0), Node("NODE_INPUT", 1), Node("add", 0, 0), Node("wrap_i8", 2), Node("add", 3, 1),
             Node("wrap_i16", 4),
             Node("NODE_OUTPUT", 5, 2)]  # fmt: skip
    assert ops(without_idle_narrowing(nodes, [dtypes.int8, dtypes.int16, dtypes.int16])).count("wrap_i8") == 1
    assert "wrap_i16" not in ops(without_idle_narrowing(nodes, [dtypes.int8, dtypes.int16, dtypes.int16]))
    assert without_idle_narrowing(nodes, [dtypes.int8, dtypes.int16, dtypes.int32]) == nodes
    assert without_idle_narrowing(nodes, [dtypes.int8, dtypes.int16, dtypes.bool_]) == nodes


def test_a_rounding_before_a_store_is_idle() -> None:
    """Stores round; what else looks at the value needs it rounded, and so does a store of another dtype."""
    nodes = [Node("NODE_INPUT", 0), Node("NODE_INPUT", 1), Node("add", 0, 1), Node("to_bf16", 2), Node("NODE_OUTPUT", 3, 2)]
    assert without_idle_narrowing(nodes, [dtypes.bfloat16] * 3) == [*nodes[:3], Node("NODE_OUTPUT", 2, 2)]
    assert without_idle_narrowing(nodes, [dtypes.bfloat16, dtypes.bfloat16, dtypes.float32]) == nodes
    assert without_idle_narrowing(nodes, [dtypes.bfloat16, dtypes.bfloat16, dtypes.float16]) == nodes
    both = [*nodes, Node("neg", 3), Node("NODE_OUTPUT", 5, 3)]
    assert without_idle_narrowing(both, [dtypes.bfloat16] * 4) == both


@pytest.mark.parametrize(("factor", "dtype", "idle"), [(2.0, "bf16", True), (1.0, "bf16", True),
                                                       (3.0, "bf16", False), (0.5, "bf16", False),
                                                       (-2.0, "bf16", False), (2.0, "f16", False), (float("inf"), "bf16", False)])  # fmt: skip
def test_a_rounding_of_a_doubled_value(factor: float, dtype: str, idle: bool) -> None:
    stored = {"bf16": dtypes.bfloat16, "f16": dtypes.float16}[dtype]
    for a, b in ((0, 1), (1, 0)):
        nodes = [Node("NODE_INPUT", 0), Node("NODE_CONST", k=factor), Node("mul", a, b), Node(f"to_{dtype}", 2),
                 Node("exp", 3), Node("NODE_OUTPUT", 4, 1)]
        assert (f"to_{dtype}" not in ops(without_idle_narrowing(nodes, [stored] * 2))) == idle


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
def test_chains_of_all_short_floats(dtype: str) -> None:
    """All 65,536 values through chains in one launch and operator by operator: the same bytes."""
    bits = np.arange(65536, dtype=np.uint16)
    x = dvm.asarray(bits.view(np.float16)) if dtype == "float16" else dvm.asarray(
        (bits.astype(np.uint32) << 16).view(np.float32), dtype)
    y = x[::-1]
    for chain in (lambda s, x, y: dvm.abs(s(s(dvm.maximum(s(s(x * y) + x), y) * 2) - y)), lambda s, x, y: s(s(x * 4) + y) * 0.5,
                  lambda s, x, y: s(dvm.where(x > y, s(x * 2), s(y * 0.25))) * 2, lambda s, x, y: s(dvm.minimum(s(-x * 2), y)).astype("float32") + 1):  # fmt: skip
        fused = np.asarray(dvm.function(lambda x, y, chain=chain: chain(lambda a: a, x, y))(x, y))
        stored = np.asarray(chain(lambda a: (np.asarray(a), a)[1], x, y))
        assert fused.tobytes() == stored.tobytes()


CHAINS: dict[str, Callable] = {
    "sums": lambda m, x, y: (x * y + x) * 3 - y,
    "largest": lambda m, x, y: m.maximum(x * y + x, y) * 2 - x,
    "bits": lambda m, x, y: ((x + y) ^ (x * y)) & (y - 5),
    "shifts": lambda m, x, y: ((x + y) >> 1) + ((x * y) << 2),
    "divided": lambda m, x, y: (x * x + y) // 7 + (x - y) % 5,
    "chosen": lambda m, x, y: m.where(x + y > 3, x * 2, y + 100) + x,
    "wider": lambda m, x, y: (x + y).astype("int64") * 3 + (x * y).astype("int32"),
    "real": lambda m, x, y: (x * y + y).astype("float32") * 0.5,
    "total": lambda m, x, y: m.sum(x * y + x, axis=1) + m.max(x + x, axis=1),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ("int8", "int16", "uint8", "uint16"))
@pytest.mark.parametrize("name", CHAINS)
def test_as_if_wrapped_after_every_operator(name: str, dtype: str) -> None:
    info = np.iinfo(dtype)
    x, y = (RNG.integers(info.min, info.max, (7, 50), endpoint=True).astype(dtype) for _ in range(2))
    wanted = CHAINS[name](np, x, y)
    for call in (CHAINS[name], lambda m, x, y: dvm.function(lambda x, y: CHAINS[name](m, x, y))(x, y)):
        got = np.asarray(call(dvm, dvm.asarray(x), dvm.asarray(y)))
        assert got.dtype == wanted.dtype and got.tobytes() == np.ascontiguousarray(wanted).tobytes()
