"""RNN, LSTM, GRU: the inputs of all steps are one product, then a step at a time.

A number of steps that is known while tracing is unrolled up to STEPS_TRACED; beyond that, or where it is symbolic, the layer runs
by itself: its cell is a function that is launched once a step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import dvm_rt as dvm
from dvm_rt.array.array import Array
from dvm_rt.onnx.table import STEP, Call, row
from dvm_rt.onnx.values import fetch, lift

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
DEFAULTS = {"LeakyRelu": (0.01, 0.0), "ThresholdedRelu": (1.0, 0.0), "ScaledTanh": (1.0, 1.0), "HardSigmoid": (0.2, 0.5), "Elu": (1.0, 0.0), "Affine": (1.0, 0.0)}
Cell = Callable[..., tuple[Array, ...]]


class _Shape:
    """What the attributes of a layer say."""

    def __init__(self, c: Call, gates: int, defaults: tuple[str, ...]) -> None:
        self.c, self.gates = c, gates
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

    def functions(self, way: int) -> list[Callable[[Array], Array]]:
        def made(name: str, a: float, b: float) -> Callable[[Array], Array]:
            return lambda x: ACTIVATIONS[name](x, a, b)

        return [made(*row) for row in self.activations[way * self.per_way : (way + 1) * self.per_way]]

    def clipped(self, x: Array) -> Array:
        return x if self.clip is None else dvm.minimum(dvm.maximum(x, -self.clip), self.clip)


def _layer(shape: _Shape, x: Value, weights: Value, recurrent: Value, bias: Value, lengths: Value, states: list[Value], cell: Callable[..., Cell]) -> list[Value]:
    """Runs every way over time: [all outputs, last state of each kind..]."""
    x = lift(x)
    x = dvm.permute_dims(x, (1, 0, 2)) if shape.batch_first else x
    steps, batch = x.shape[0], x.shape[1]
    own = np.asarray(fetch(lengths)) if lengths is not None else None
    if own is not None and (own == steps).all():
        own = None
    ways, last = [], []
    for way, backwards in enumerate(shape.ways):
        w, r = lift(weights, True)[way], lift(recurrent, True)[way]
        b = lift(bias, True)[way] if bias is not None else None
        given = [_initial(shape, s, way, batch, x) for s in states]
        step = cell(shape, way, w, r, b)
        outputs, ends = _over_time(x, step, given, steps, own, backwards)
        ways.append(outputs)
        last.append(ends)
    together = dvm.stack(ways, axis=1)
    ends = [dvm.stack([e[i] for e in last], axis=0) for i in range(len(states))]
    if shape.batch_first:
        return [dvm.permute_dims(together, (2, 0, 1, 3)), *(dvm.permute_dims(e, (1, 0, 2)) for e in ends)]
    return [together, *ends]


def _initial(shape: _Shape, state: Value, way: int, batch: int, x: Array) -> Array:
    if state is None:
        return dvm.zeros((batch, shape.hidden), dtype=x.dtype)
    state = lift(state)
    return state[:, way] if shape.batch_first else state[way]


def _over_time(x: Array, step: Cell, states: list[Array], steps: int, lengths: np.ndarray | None, backwards: bool) -> tuple[Array, list[Array]]:
    outputs: list[Array] = [None] * steps
    for at in range(steps - 1, -1, -1) if backwards else range(steps):
        new = list(step(x[at], *states))
        if lengths is not None:
            live = dvm.asarray((at < lengths)[:, None])
            new = [dvm.where(live, n, s) for n, s in zip(new, states, strict=True)]
            outputs[at] = dvm.where(live, new[0], 0.0)
        else:
            outputs[at] = new[0]
        states = new
    return dvm.stack(outputs, axis=0), states


def _gates(x: Array, w: Array, b: Array | None) -> Array:
    product = x @ w.T
    return product if b is None else product + b


def _parts(x: Array, count: int) -> list[Array]:
    return dvm.split(x, count, axis=-1)


@row("RNN", kind=STEP)
def rnn(c: Call, x: Value, weights: Value, recurrent: Value, bias: Value = None, lengths: Value = None, initial: Value = None) -> Value:
    shape = _Shape(c, 1, ("Tanh",))

    def cell(shape: _Shape, way: int, w: Array, r: Array, b: Array | None) -> Cell:
        (f,) = shape.functions(way)
        joined = None if b is None else b[: shape.hidden] + b[shape.hidden :]
        return dvm.function(lambda x, h: (f(shape.clipped(_gates(x, w, joined) + h @ r.T)),))

    return _layer(shape, x, weights, recurrent, bias, lengths, [initial], cell)


@row("GRU", kind=STEP)
def gru(c: Call, x: Value, weights: Value, recurrent: Value, bias: Value = None, lengths: Value = None, initial: Value = None) -> Value:
    shape = _Shape(c, 3, ("Sigmoid", "Tanh"))
    linear_first = bool(c.get("linear_before_reset", 0))

    def cell(shape: _Shape, way: int, w: Array, r: Array, b: Array | None) -> Cell:
        f, g = shape.functions(way)
        n = shape.hidden
        own, other = (None, None) if b is None else (b[: 3 * n], b[3 * n :])

        def step(x: Array, h: Array) -> tuple[Array]:
            xz, xr, xh = _parts(_gates(x, w, own), 3)
            hz, hr = _parts(_gates(h, r[: 2 * n], None if other is None else other[: 2 * n]), 2)
            z, reset = f(shape.clipped(xz + hz)), f(shape.clipped(xr + hr))
            last = None if other is None else other[2 * n :]
            inner = reset * _gates(h, r[2 * n :], last) if linear_first else _gates(reset * h, r[2 * n :], last)
            return ((1.0 - z) * g(shape.clipped(xh + inner)) + z * h,)

        return dvm.function(step)

    return _layer(shape, x, weights, recurrent, bias, lengths, [initial], cell)


@row("LSTM", kind=STEP)
def lstm(
    c: Call, x: Value, weights: Value, recurrent: Value, bias: Value = None, lengths: Value = None, initial: Value = None,
    initial_cell: Value = None, peepholes: Value = None,
) -> Value:  # fmt: skip
    shape = _Shape(c, 4, ("Sigmoid", "Tanh", "Tanh"))
    if c.get("input_forget", 0):
        raise c.refuse("input_forget, got 1, allowed 0")

    def cell(shape: _Shape, way: int, w: Array, r: Array, b: Array | None) -> Cell:
        f, g, h = shape.functions(way)
        n = shape.hidden
        joined = None if b is None else b[: 4 * n] + b[4 * n :]
        peeps = None if peepholes is None else _parts(lift(peepholes, True)[way], 3)

        def step(x: Array, hidden: Array, state: Array) -> tuple[Array, Array]:
            i, o, forget, new = _parts(_gates(x, w, joined) + hidden @ r.T, 4)
            if peeps is not None:
                i, forget = i + peeps[0] * state, forget + peeps[2] * state
            state = f(shape.clipped(forget)) * state + f(shape.clipped(i)) * g(shape.clipped(new))
            o = o if peeps is None else o + peeps[1] * state
            return f(shape.clipped(o)) * h(state), state

        return dvm.function(step)

    return _layer(shape, x, weights, recurrent, bias, lengths, [initial, initial_cell], cell)


