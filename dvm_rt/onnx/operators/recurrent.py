"""RNN, LSTM, GRU: the inputs of all steps are one product, then a loop over the steps that the device takes by itself.

Weights that are constants are turned and cut on the host, once; so the products of the loop read them packed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import dvm_rt as dvm
from dvm_rt.array.array import Array
from dvm_rt.onnx.table import LIFTS, Call, row
from dvm_rt.onnx.values import lift

Value = object
ACTIVATIONS: dict[str, Callable[[Array, float, float], Array]] = {
    "Relu": lambda x, a, b: dvm.relu(x),
    "Tanh": lambda x, a, b: dvm.tanh(x),
    "Sigmoid": lambda x, a, b: dvm.sigmoid(x),
    "Affine": lambda x, a, b: x * a + b,
    "LeakyRelu": lambda x, a, b: dvm.where(x < 0.0, x * a, x),
    "ThresholdedRelu": lambda x, a, b: dvm.where(x > a, x, 0.0),
    "ScaledTanh": lambda x, a, b: dvm.tanh(x * b) * a,
    "HardSigmoid": lambda x, a, b: dvm.minimum(dvm.maximum(x * a + b, 0.0), 1.0),
    "Elu": lambda x, a, b: dvm.where(x < 0.0, (dvm.exp(dvm.minimum(x, 0.0)) - 1.0) * a, x),
    "Softsign": lambda x, a, b: x / (dvm.abs(x) + 1.0),
    "Softplus": lambda x, a, b: dvm.maximum(x, 0.0) + dvm.log(dvm.exp(-dvm.abs(x)) + 1.0),
}
DEFAULTS = {"LeakyRelu": (0.01, 0.0), "ThresholdedRelu": (1.0, 0.0), "ScaledTanh": (1.0, 1.0),
            "HardSigmoid": (0.2, 0.5), "Elu": (1.0, 0.0), "Affine": (1.0, 0.0)}
Step = Callable[..., tuple[Array, ...]]  # (the row of gates of the inputs, *states) -> new states


class _Shape:
    """What the attributes of a layer say."""

    def __init__(self, c: Call, gates: int, defaults: tuple[str, ...], joined: bool = True) -> None:
        self.c, self.gates, self.joined = c, gates, joined
        self.hidden, self.clip = c.get("hidden_size"), c.get("clip")
        direction = c.get("direction", "forward")
        self.ways = [direction == "reverse"] if direction != "bidirectional" else [False, True]
        self.batch_first = bool(c.get("layout", 0))
        names = c.get("activations", defaults * len(self.ways))
        alphas, betas = list(c.get("activation_alpha", ())), list(c.get("activation_beta", ()))
        self.activations = []
        for name in names:
            found = next((known for known in ACTIVATIONS if known.lower() == name.lower()), None)
            if found is None:
                raise c.refuse(f"activation, got {name!r}, allowed {', '.join(ACTIVATIONS)}")
            a, b = DEFAULTS.get(found, (0.0, 0.0))
            takes_a, takes_b = found in DEFAULTS, found in ("ScaledTanh", "HardSigmoid", "Affine")
            a = alphas.pop(0) if takes_a and alphas else a
            b = betas.pop(0) if takes_b and betas else b
            self.activations.append((found, a, b))
        self.per_way = len(names) // len(self.ways)

    def input_bias(self, bias: Value) -> Value:
        """What is added to the products of the inputs: both biases, where the cell adds those of inputs and of states up."""
        count = self.gates * self.hidden
        return bias[:count] + bias[count:] if self.joined else bias[:count]

    def functions(self, way: int) -> list[Callable[[Array], Array]]:
        def made(name: str, a: float, b: float) -> Callable[[Array], Array]:
            return lambda x: ACTIVATIONS[name](x, a, b)

        return [made(*row) for row in self.activations[way * self.per_way : (way + 1) * self.per_way]]

    def clipped(self, x: Array) -> Array:
        return x if self.clip is None else dvm.minimum(dvm.maximum(x, -self.clip), self.clip)


def _layer(
    shape: _Shape, x: Value, weights: Value, bias: Value, lengths: Value, states: list[Value], cell: Callable[[int], Step]
) -> list[Value]:
    """Runs every way over time: [all outputs, last state of each kind..]."""
    x = lift(x)
    x = dvm.permute_dims(x, (1, 0, 2)) if shape.batch_first else x
    batch = x.shape[1]
    ways, last = [], []
    for way, backwards in enumerate(shape.ways):
        rows = x @ turned(weights, way)
        rows = rows if bias is None else rows + lift(shape.input_bias(bias[way]))
        given = [_initial(shape, s, way, batch, x) for s in states]
        outputs, ends = _over_time(rows, cell(way), given, lengths, backwards)
        ways.append(outputs)
        last.append(ends)
    together = dvm.stack(ways, axis=1)
    ends = [dvm.stack([e[i] for e in last], axis=0) for i in range(len(states))]
    if shape.batch_first:
        return [dvm.permute_dims(together, (2, 0, 1, 3)), *(dvm.permute_dims(e, (1, 0, 2)) for e in ends)]
    return [together, *ends]


def turned(weights: Value, way: int, first: int | None = None, last: int | None = None) -> Array:
    """The weights (of some gates) of one way, transposed."""
    part = weights[way][first:last]
    return part.T if isinstance(part, Array) else lift(np.ascontiguousarray(part.T))


def _initial(shape: _Shape, state: Value, way: int, batch: int, x: Array) -> Array:
    if state is None:
        return dvm.zeros((batch, shape.hidden), dtype=x.dtype)
    state = lift(state)
    return state[:, way] if shape.batch_first else state[way]


def _over_time(rows: Array, step: Step, states: list[Array], lengths: Value, backwards: bool) -> tuple[Array, tuple[Array, ...]]:
    """(outputs of all steps, states at the end); beyond the length of a sequence outputs are 0 and states stay."""

    def all_live(carry: tuple, row: Array) -> tuple[tuple, Array]:
        new = step(row, *carry)
        return new, new[0]

    def some_live(carry: tuple, given: tuple) -> tuple[tuple, Array]:
        row, live = given
        new = step(row, *carry)
        return tuple(dvm.where(live, n, s) for n, s in zip(new, carry, strict=True)), dvm.where(live, new[0], 0.0)

    rows = dvm.flip(rows, axis=0) if backwards else rows
    if lengths is None:
        ends, outputs = dvm.scan(all_live, tuple(states), rows)
    else:
        places = dvm.expand_dims(dvm.arange(rows.shape[0], dtype="int64"), axis=1)
        live = dvm.expand_dims(places < lift(lengths).astype("int64"), axis=2)
        ends, outputs = dvm.scan(some_live, tuple(states), (rows, dvm.flip(live, axis=0) if backwards else live))
    return dvm.flip(outputs, axis=0) if backwards else outputs, ends


def _parts(x: Array, count: int) -> list[Array]:
    return dvm.split(x, count, axis=-1)


@row("RNN", kind=LIFTS)
def rnn(c: Call, x: Value, weights: Value, recurrent: Value, bias: Value = None, lengths: Value = None,
        initial: Value = None) -> Value:
    shape = _Shape(c, 1, ("Tanh",))

    def cell(way: int) -> Step:
        (f,), r = shape.functions(way), turned(recurrent, way)
        return lambda x, h: (f(shape.clipped(x + h @ r)),)

    return _layer(shape, x, weights, bias, lengths, [initial], cell)


@row("GRU", kind=LIFTS)
def gru(c: Call, x: Value, weights: Value, recurrent: Value, bias: Value = None, lengths: Value = None,
        initial: Value = None) -> Value:
    shape = _Shape(c, 3, ("Sigmoid", "Tanh"), joined=False)
    linear_first, n = bool(c.get("linear_before_reset", 0)), shape.hidden

    def cell(way: int) -> Step:
        f, g = shape.functions(way)
        own = None if bias is None else bias[way][3 * n :]
        first, rest = (None if own is None else lift(part)
                       for part in ((None, None) if own is None else (own[: 2 * n], own[2 * n :])))
        whole = turned(recurrent, way) if linear_first else None
        gates, last = (turned(recurrent, way, 0, 2 * n), turned(recurrent, way, 2 * n, 3 * n)) if whole is None else (None, None)

        def step(x: Array, h: Array) -> tuple[Array]:
            xz, xr, xh = _parts(x, 3)
            product = h @ (gates if whole is None else whole)
            both = _plus(product[:, : 2 * n], first)
            hz, hr = _parts(both, 2)
            z, reset = f(shape.clipped(xz + hz)), f(shape.clipped(xr + hr))
            inner = _plus((reset * h) @ last, rest) if whole is None else reset * _plus(product[:, 2 * n :], rest)
            return ((1.0 - z) * g(shape.clipped(xh + inner)) + z * h,)

        return step

    return _layer(shape, x, weights, bias, lengths, [initial], cell)


def _plus(x: Array, bias: Array | None) -> Array:
    return x if bias is None else x + bias


@row("LSTM", kind=LIFTS)
def lstm(
    c: Call, x: Value, weights: Value, recurrent: Value, bias: Value = None, lengths: Value = None, initial: Value = None,
    initial_cell: Value = None, peepholes: Value = None,
) -> Value:  # fmt: skip
    shape = _Shape(c, 4, ("Sigmoid", "Tanh", "Tanh"))
    if c.get("input_forget", 0):
        raise c.refuse("input_forget, got 1, allowed 0")

    def cell(way: int) -> Step:
        f, g, h = shape.functions(way)
        r = turned(recurrent, way)
        peeps = None if peepholes is None else _parts(lift(peepholes[way]), 3)

        def step(x: Array, hidden: Array, state: Array) -> tuple[Array, Array]:
            i, o, forget, new = _parts(x + hidden @ r, 4)
            if peeps is not None:
                i, forget = i + peeps[0] * state, forget + peeps[2] * state
            state = f(shape.clipped(forget)) * state + f(shape.clipped(i)) * g(shape.clipped(new))
            o = o if peeps is None else o + peeps[1] * state
            return f(shape.clipped(o)) * h(state), state

        return step

    return _layer(shape, x, weights, bias, lengths, [initial, initial_cell], cell)
