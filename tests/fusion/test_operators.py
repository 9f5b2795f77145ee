"""Every operator of the table, alone in a plan, against its NumPy meaning in float64."""

from __future__ import annotations

import numpy as np
import pytest

from dvm_rt.fusion.fuser import fuse
from dvm_rt.graph.operators import OPERATORS, Lowering
from tests.fusion.running import check, graph_of, normal, run_plan

SHAPES = ((), (1,), (7,), (0,), (3, 0, 2), (1, 1, 1), (5, 1, 13), (2, 3, 129), (131,), (4, 257))
FLOATS = [n for n, row in OPERATORS.items() if row.inputs == 1 and row.lowering is Lowering.ELEMENTWISE]
NOT_OF_FLOATS = ("astype", "copy", "logical_not", "bitwise_invert")
POSITIVE = ("sqrt", "rsqrt", "log", "log2", "log10", "log1p", "lgamma", "digamma")
INSIDE = {"asin": 1.0, "acos": 1.0, "atanh": 0.99}  # their domain ends there
PAIRS = (
    "add", "subtract", "multiply", "divide", "maximum", "minimum", "atan2", "hypot", "logaddexp", "copysign", "fmod", "remainder",
    "floor_divide",
)  # fmt: skip
WHOLES = ("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift")
COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
LOGICAL = ("logical_and", "logical_or", "logical_xor")
CHECKED: set[str] = {"parameter", "constant", "dimension"}  # leaves: in every test


def checked(*names: str) -> None:
    """These operators have a test here: the last test holds that none is left out."""
    CHECKED.update(names)


checked(*FLOATS, *PAIRS, *COMPARISONS, *LOGICAL)
checked(*WHOLES, "prod", "iota", "philox", "argmax", "argmin")  # in test_dtypes.py, with all dtypes, and below


def suited(name: str, x: np.ndarray) -> np.ndarray:
    """Values in the domain of an operator, and where it is smooth."""
    if name in POSITIVE:
        return np.abs(x) + np.float32(0.01)
    if name == "acosh":
        return np.abs(x) + np.float32(1.01)
    return np.clip(x, -INSIDE[name], INSIDE[name]) if name in INSIDE else x


@pytest.mark.parametrize("name", [n for n in FLOATS if n not in NOT_OF_FLOATS])
@pytest.mark.parametrize("shape", SHAPES)
def test_unary(name: str, shape: tuple[int, ...]) -> None:
    check(lambda op, x: getattr(op, name)(x), [suited(name, normal(*shape) * np.float32(3))],
          atol=1e-4 if name == "tan" else 1e-5)


@pytest.mark.parametrize("name", [n for n in FLOATS if n not in NOT_OF_FLOATS])
def test_unary_on_special_values(name: str) -> None:
    big = np.float32(80 if name in ("sinh", "cosh", "exp2", "expm1") else 1e4)
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, big, -big, 0.5, 1.5, 2.5, -0.5, 1e-15], np.float32)
    check(lambda op, x: getattr(op, name)(x), [x], atol=0)


@pytest.mark.parametrize("name", PAIRS + COMPARISONS)
@pytest.mark.parametrize(("a", "b"), [((5,), (5,)), ((4, 7), (7,)), ((4, 1), (1, 9)), ((), (3, 3)),
                                      ((2, 1, 130), (3, 1)), ((0, 3), (3,)), ((1,), (1,))])
def test_binary_with_broadcasting(name: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    x, y = normal(*a), normal(*b)
    if name in COMPARISONS:
        x, y = np.round(x), np.round(y)
    if name in ("fmod", "remainder", "floor_divide"):
        x, y = np.round(x * 8) / 8, np.round(y * 4) / 2 + np.float32(0.25)  # exact quotients
    check(lambda op, x, y: getattr(op, name)(x, y), [x, y])
    check(lambda op, x, y: getattr(op, name)(y, x), [x, y])


@pytest.mark.parametrize("name", LOGICAL + ("equal", "not_equal"))
def test_bools(name: str) -> None:
    x, y = normal(3, 50) > 0, normal(50) > 0
    check(lambda op, x, y: getattr(op, name)(op.logical_not(x), y), [x, y])


@pytest.mark.parametrize("dtype", ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16"])
@pytest.mark.parametrize("shape", [(), (6,), (3, 131)])
def test_conversions(dtype: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng().integers(-3 if dtype[0] == "i" else 0, 4, shape).astype(dtype)
    check(lambda op, x: op.astype(x, dtype="float32"), [x])
    check(lambda op, x: op.astype(x, dtype="bool"), [x])
    check(lambda op, x: op.exp(op.astype(x, dtype="float32")), [x])


def test_conversion_of_floats_and_bools_back() -> None:
    check(lambda op, x: (op.astype(x, dtype="bool"), op.astype(op.greater(x, 0.0), dtype="float32")), [np.round(normal(5, 9))])


@pytest.mark.parametrize(("c", "a", "b"), [((4, 5), (4, 5), (4, 5)), ((5,), (4, 1), (1, 5)), ((4, 1, 1), (1, 6), ())])
def test_where(c: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> None:
    checked("where")
    x = normal(*a)
    x[..., :1] = np.nan
    check(lambda op, c, x, y: op.where(c, x, y), [normal(*c) > 0, x, normal(*b)])
    check(lambda op, c, x: op.where(c, x, op.logical_not(x)), [normal(*c) > 0, normal(*a) > 0])


@pytest.mark.parametrize("name", ["sum", "max", "min", "mean", "var", "any", "all"])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(("shape", "axes"), [
    ((6,), (0,)), ((5, 7), (0,)), ((5, 7), (1,)), ((5, 7), (0, 1)), ((3, 4, 5), (1,)), ((3, 4, 5), (0, 2)), ((2, 3, 140), (0, 1)),
    ((3, 1, 4), (1,)), ((4, 5), ()), ((2, 1), (0, 1)), ((20000,), (0,)), ((3, 16390), (1,)),
])  # fmt: skip
def test_reductions(name: str, shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool) -> None:
    checked("sum", "max", "min", "mean", "var", "any", "all")
    x = normal(*shape) > 1.2 if name in ("any", "all") else normal(*shape)
    more = {"correction": 1.0} if name == "var" and np.prod([shape[i] for i in axes]) > 1 else {
        "correction": 0.0} if name == "var" else {}
    atol = 1e-5 * max(1.0, np.prod([shape[i] for i in axes]) ** 0.5)  # what cancels in a sum leaves its rounding
    check(lambda op, x: getattr(op, name)(x, axes=axes, keepdims=keepdims, **more), [x], atol=atol)


@pytest.mark.filterwarnings("ignore:Mean of empty slice")  # NumPy's; the mean of nothing is NaN
@pytest.mark.parametrize("name", ["sum", "mean", "max"])
def test_reduction_over_nothing(name: str) -> None:
    check(lambda op, x: getattr(op, name)(x, axes=(1,), keepdims=False), [normal(3, 0)])


@pytest.mark.parametrize(("a", "b"), [
    ((5, 7), (7, 3)), ((7,), (7, 3)), ((5, 7), (7,)), ((7,), (7,)), ((2, 5, 7), (7, 3)), ((2, 5, 7), (2, 7, 3)),
    ((3, 1, 5, 7), (2, 7, 3)),
    ((1, 7), (7, 1)), ((40, 1), (1, 33)), ((6, 130), (130, 65)), ((0, 7), (7, 3)), ((5, 0), (0, 3)), ((2, 0), (0,)),
    ((3, 1200), (1200, 2)),
])  # fmt: skip
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    checked("matmul", "matrix_product")
    check(lambda op, x, y: op.matmul(x, y), [normal(*a), normal(*b)])
    check(lambda op, x, y: op.relu(op.add(op.matmul(op.tanh(x), op.tanh(y)), 1.0)), [normal(*a), normal(*b)])


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6), (0, 6)])
def test_linear(shape: tuple[int, ...]) -> None:
    checked("linear")
    check(lambda op, x, w, b: op.linear(x, w, b), [normal(*shape), normal(9, 6), normal(9)])
    check(lambda op, x, w: op.linear(x, w), [normal(*shape), normal(9, 6)])


@pytest.mark.parametrize("shape", [(8,), (3, 4, 35), (5, 1)])
def test_composites(shape: tuple[int, ...]) -> None:
    checked("silu", "gelu", "clip", "softmax", "log_softmax", "layer_norm", "rms_norm", "pow")
    x, w, b = normal(*shape), normal(shape[-1]), normal(shape[-1])
    check(lambda op, x: (op.silu(x), op.gelu(x, approximate="none"), op.gelu(x, approximate="tanh")), [x])
    check(lambda op, x: (op.clip(x, low=-0.5, high=0.25), op.clip(x, low=None, high=0.0)), [x])
    for axis in range(len(shape)):
        check(lambda op, x, axis=axis: (op.softmax(x, axis=axis), op.log_softmax(x, axis=axis)), [x])
    check(lambda op, x, w, b: (op.layer_norm(x, w, b, eps=1e-5), op.layer_norm(x, eps=1e-5),
                               op.layer_norm(x, w, eps=1e-5)), [x, w, b], atol=2e-5)
    check(lambda op, x, w: (op.rms_norm(x, w, eps=1e-5), op.rms_norm(x, eps=1e-5)), [x, w])
    for exponent in (0, 1, 2, 3, 7, -2, 0.5, -0.5):
        check(lambda op, x, e=exponent: op.pow(x, exponent=float(e)), [np.abs(x) + 0.1], rtol=2e-5)


VIEWS = {
    "permute_dims": lambda op, x: op.permute_dims(x, axes=(2, 0, 1)),
    "reshape": lambda op, x: op.reshape(x, shape=(x.shape[0] * x.shape[1], x.shape[2])),
    "reshape to one": lambda op, x: op.reshape(x, shape=(-1,)),
    "reshape across": lambda op, x: op.reshape(op.permute_dims(x, axes=(1, 0, 2)), shape=(x.shape[1], -1)),
    "expand_dims": lambda op, x: op.expand_dims(x, axes=(0, 2)),
    "squeeze": lambda op, x: op.squeeze(op.expand_dims(x, axes=(1,)), axes=(1,)),
    "broadcast_to": lambda op, x: op.broadcast_to(x, shape=(3, *x.shape)),
    "index": lambda op, x: op.index(x, entries=((1, None, None), -1, (None, None, 2))),
    "index backwards": lambda op, x: op.index(x, entries=((None, None, -1), (None, None, None), (None, None, -2))),
    "index cut off": lambda op, x: op.index(x, entries=((None, 100, None), (None, -1, None))),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(name: str) -> None:
    checked("permute_dims", "reshape", "expand_dims", "squeeze", "broadcast_to", "index")
    view = VIEWS[name]
    x = normal(4, 3, 6)
    check(view, [x])  # of an input: a copy
    check(lambda op, x: op.exp(view(op, x)), [x])  # read through strides
    check(lambda op, x: op.exp(view(op, op.tanh(x))), [x])  # of a computed value
    check(lambda op, x: (view(op, op.tanh(x)), op.tanh(x)), [x])
    check(lambda op, x: op.max(view(op, op.tanh(x)), axes=(0,), keepdims=True), [x])


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize(("table", "indices"), [((10, 6), (4,)), ((10, 6), (2, 3)), ((10, 6), ()), ((5,), (4,)),
                                                ((7, 2, 5), (3,)), ((4, 1), (3, 2)), ((9, 130), (0,))])
def test_take(dtype: type, table: tuple[int, ...], indices: tuple[int, ...]) -> None:
    checked("take")
    rows = np.random.default_rng().integers(-table[0], table[0], indices).astype(dtype)
    check(lambda op, t, i: op.take(t, i), [normal(*table), rows])
    check(lambda op, t, i: op.tanh(op.take(op.exp(t), i)), [normal(*table), rows])
    if len(table) == 2 and indices:
        check(lambda op, t, i, b: op.layer_norm(op.add(op.take(t, i), b), eps=1e-3),
              [normal(*table), rows, normal(table[1])], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_joins(axis: int) -> None:
    checked("concat", "stack")
    shape = [3, 4, 5]
    other = list(shape)
    other[axis] = 2
    arrays = [normal(*shape), normal(*other), normal(*shape)]
    check(lambda op, x, y, z: op.concat(x, op.tanh(y), z, axis=axis), arrays)
    check(lambda op, x, y, z: op.exp(op.concat(op.concat(x, y, axis=axis), z, x, axis=axis)), arrays)
    check(lambda op, x, y, z: op.stack(x, op.tanh(z), x, axis=axis), arrays)
    check(lambda op, x, y, z: op.concat(op.matmul(x, op.permute_dims(z, axes=(0, 2, 1))),
                                        op.matmul(x, op.permute_dims(z, axes=(0, 2, 1))), axis=axis), arrays)


def test_powers() -> None:
    checked("power", "nextafter", "logsumexp")
    x, y = np.abs(normal(4, 130)) + np.float32(0.1), normal(130) * np.float32(3)
    check(lambda op, x, y: op.power(x, y), [x, y])
    check(lambda op, x: (op.pow(x, exponent=1.75), op.pow(x, exponent=-0.3), op.pow(x, exponent=65.0)), [x / 8])
    for kind in (np.float32, np.float64):  # the oracle computes in float64: its neighbours are those
        a, b = np.append(x, [0, -0.0, np.inf, np.nan, 1]).astype(kind), np.append(x[::-1], [-0.0, 1, 0, 1, np.inf]).astype(kind)
        got = run_plan(fuse(graph_of(lambda op, x, y: op.nextafter(x, y), [a, b])).plan, [a, b])[0]
        np.testing.assert_array_equal(got.view(f"u{got.itemsize}"), np.nextafter(a, b).view(f"u{got.itemsize}"))
    for axes in ((0,), (1,), (0, 1)):
        check(lambda op, x, axes=axes: op.logsumexp(x, axes=axes, keepdims=False), [normal(4, 130) * np.float32(20)])
    inf = np.float32(np.inf)
    check(lambda op, x: op.logsumexp(x, axes=(1,), keepdims=True),
          [np.array([[1, -inf], [-inf, -inf], [inf, 3], [np.nan, 1]], np.float32)])


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@pytest.mark.parametrize(("shape", "axes"), [((7,), (0,)), ((5, 9), (0,)), ((5, 9), (1,)), ((3, 4, 5), (0, 2)),
                                             ((2, 140), (0, 1))])
def test_places(name: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    x = np.round(normal(*shape))  # equal ones: the first counts
    check(lambda op, x: (getattr(op, name)(x, axes=axes, keepdims=True),
                         getattr(op, name)(x, axes=axes, keepdims=False)), [x], atol=0)
    x.flat[3] = np.nan
    check(lambda op, x: getattr(op, name)(x, axes=axes, keepdims=False), [x], atol=0)


def test_iota_and_random_bits() -> None:
    check(lambda op, x: op.iota(size=x.shape[0]), [normal(300)], atol=0)
    check(lambda op, x: op.add(op.astype(op.iota(size=x.shape[0]), dtype="float32"), x), [normal(300)])
    key = np.array(12345, np.uint64)

    def bits(op, x, key):
        counter = op.reshape(op.astype(op.iota(size=x.shape[0] * x.shape[1]), dtype="uint64"), shape=x.shape)
        return op.bitwise_right_shift(op.philox(counter, key), 40)

    check(bits, [normal(3, 100), key], rtol=0, atol=0)


def test_full() -> None:
    checked("full")
    check(lambda op, x: op.full(shape=(x.shape[0], 3), value=2.5, dtype="float32"), [normal(4)])
    check(lambda op, x: op.add(op.full(shape=(3, x.shape[0]), value=2.5, dtype="float32"), x), [normal(4)])
    check(lambda op, x: op.full(shape=(2, x.shape[0]), value=True, dtype="bool"), [normal(4)])
    check(lambda op, x: op.sum(op.full(shape=(2, x.shape[0]), value=1.0, dtype="float32"), axes=(1,),
                               keepdims=False), [normal(4)])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("q", "k", "mask"),
    [((5, 8), (9, 8), None), ((2, 3, 5, 32), (2, 1, 140, 32), None), ((3, 1, 20), (3, 7, 20), (7,)),
     ((2, 2, 4, 3), (2, 1, 6, 3), (2, 1, 1, 6)),
     ((4, 6, 1), (6, 1), (4, 6, 1)), ((3, 0, 8), (3, 5, 8), None), ((3, 2, 8), (3, 0, 8), None), ((2, 1, 4), (2, 1, 4), (1, 1)),
     ((2, 0, 4), (2, 0, 4), (0, 0))],
)  # fmt: skip
def test_attention(q: tuple[int, ...], k: tuple[int, ...], mask: tuple[int, ...] | None, causal: bool) -> None:
    checked("attention")
    attributes = {"scale": None, "causal": causal, "masked": float("-inf"), "empty": 0.0}
    inputs = [normal(*q), normal(*k), normal(*k)]
    if mask is None:
        check(lambda op, *xs: op.attention(*xs, **attributes), inputs, atol=1e-5)
        return
    for given in (normal(*mask), normal(*mask) > 0):
        for masked in (float("-inf"), -3.0):
            attributes |= {"scale": 0.3, "masked": masked}
            check(lambda op, *xs: op.attention(*xs, **attributes), [*inputs, given], atol=1e-5)


def test_windows() -> None:
    """Geometry of all kinds is in tests/array/test_windows.py."""
    checked("matmul_integer", "grouped_matmul", "grouped_product")  # in tests/array/test_products.py
    checked("cumulative")  # in tests/array/test_running.py, and below
    checked("section")  # in tests/array/test_kernel.py
    checked("beside")  # in tests/fusion/test_projections.py
    checked("windows", "window_product", "conv", "conv_transpose", "max_pool", "avg_pool")
    x, two = normal(2, 3, 9, 8), {"stride": (2, 1), "padding": ((1, 0), (1, 1)), "dilation": (1, 2)}
    check(lambda op, x: op.windows(op.tanh(x), kernel=(3, 2), stride=(2, 2), dilation=(1, 2)), [x])

    def product(op, w, x):
        seen = op.permute_dims(op.windows(op.tanh(x), kernel=(3, 2), stride=(2, 2), dilation=(1, 2)), axes=(0, 1, 4, 5, 2, 3))
        return op.window_product(w, seen)

    check(product, [normal(5, 18), x])
    check(lambda op, w, x: op.multiply(op.index(product(op, w, x), entries=((None, None, None),) * 2 + ((1, 7, None),)), 2.0),
          [normal(2, 5, 18), x])
    check(lambda op, x: op.sum(op.windows(x, kernel=(3,), stride=(1,), dilation=(2,)), axes=(4,), keepdims=False), [x])
    weight = {"shape": (4, 3, 3, 3), "value": 0.5, "dtype": "float32"}
    check(lambda op, x: op.relu(op.conv(x, op.full(**weight), **two, groups=1)), [x], atol=1e-4)
    weight = {"shape": (3, 4, 3, 3), "value": 0.5, "dtype": "float32"}
    check(lambda op, x: op.conv_transpose(x, op.full(**weight), output_padding=(1, 0), **two, groups=1), [x], atol=1e-4)
    check(lambda op, x: op.max_pool(x, kernel=(3, 2), ceil_mode=True, **two), [x])
    check(lambda op, x: op.cumulative(x, axis=2, product=0, reverse=1, lead=2), [x], atol=1e-4)
    check(lambda op, x: op.avg_pool(op.exp(x), kernel=(3, 2), ceil_mode=True, count_include_pad=False, **two), [x])


def test_no_operator_is_left_out() -> None:
    elsewhere = (Lowering.HOST, Lowering.CONTROL)  # tests/fusion/test_host.py, tests/array/test_control.py
    own_tests = {name for name, row in OPERATORS.items() if row.lowering in elsewhere}
    assert set(OPERATORS) - own_tests == CHECKED
