"""Random indices of every kind beside each other, read and written, against NumPy."""

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.errors import DvmError

HOW = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}


def draw_key(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple:
    """An index of NumPy: whole numbers, slices with steps, None, ..., arrays of whole numbers, masks, bools without axes."""
    lead = tuple(rng.integers(1, 4, rng.integers(0, 3)))  # of the arrays, which broadcast
    key: list[object] = []
    axis = 0
    while axis < len(shape):
        more = sum(k is None or isinstance(k, np.bool_) for k in key) < 2  # 8 axes are all that there may be
        kind = rng.choice(["number", "slice", "slice", "step", "array", "array", "mask", "end", *["none", "truth"] * more])
        size = shape[axis]
        if kind == "number":
            key.append(int(rng.integers(-size, size)))
        elif kind == "slice":
            key.append(slice(*[None if rng.random() < 0.3 else int(n) for n in rng.integers(-size - 1, size + 2, 2)]))
        elif kind == "step":
            step = int(rng.choice([-3, -2, -1, 2, 3]))
            key.append(slice(*[None if rng.random() < 0.5 else int(n) for n in rng.integers(-size - 1, size + 2, 2)], step))
        elif kind == "array":
            own = tuple(n if rng.random() < 0.7 else 1 for n in lead[int(rng.integers(0, len(lead) + 1)) :])
            key.append(rng.integers(-size, size, own))
        elif kind == "mask":
            rank = int(rng.integers(1, min(2, len(shape) - axis) + 1))
            key.append(rng.random(shape[axis : axis + rank]) < 0.5)
            axis += rank - 1
        elif kind == "none":
            key.append(None)
            axis -= 1
        elif kind == "truth":
            key.append(rng.choice([True, True, False]))
            axis -= 1
        else:
            break
        axis += 1
    if rng.random() < 0.3:
        key.insert(int(rng.integers(0, len(key) + 1)), ...) if axis >= len(shape) or not key else key.append(...)
    return tuple(key)


def device(key: tuple, rng: np.random.Generator) -> tuple:
    return tuple(dvm.asarray(k) if isinstance(k, np.ndarray) and rng.random() < 0.5 else k for k in key)


@pytest.mark.parametrize("first", range(0, 600, 100))
def test_random_indices_are_those_of_numpy(first: int) -> None:
    for seed in range(first, first + 100):
        rng = np.random.default_rng(seed)
        a = rng.integers(-50, 50, tuple(rng.integers(1, 5, rng.integers(1, 5)))).astype(np.float32)
        key = draw_key(rng, a.shape)
        try:
            want = a[key]
        except IndexError:  # arrays that do not broadcast
            with pytest.raises(DvmError):
                np.asarray(dvm.asarray(a)[device(key, rng)])
            continue
        where = f"seed {seed}, {a.shape}[{key}]"
        np.testing.assert_array_equal(np.asarray(dvm.asarray(a)[device(key, rng)]), want, where)
        value = rng.integers(-50, 50, want.shape).astype(np.float32)
        if want.ndim and rng.random() < 0.3:
            value = value[..., :1] if value.shape[-1] else value
        expected = a.copy()
        how = rng.choice(["set", *HOW])
        if how == "set":
            expected[key] = value
        else:
            HOW[how].at(expected, key, value)
        got = np.asarray(dvm.updated(dvm.asarray(a), device(key, rng), value, how=how))
        if how != "set" or all(n == 1 for n in np.unique(places(a, key), return_counts=True)[1]):
            np.testing.assert_array_equal(got, expected, f"{where} {how}")


def places(a: np.ndarray, key: tuple) -> np.ndarray:
    """Which elements a key names: those that are named twice may be set to either value."""
    return np.arange(a.size).reshape(a.shape)[key]
