"""DLPack: what goes out keeps its bits and is not written to, what comes in keeps its dtype and is a copy."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

import dvm_rt as dvm
import dvm_rt.xp as xp
from dvm_rt.dtypes import DTYPES, bfloat16

SHAPES = ((2, 3, 4), (5,), (), (0, 3))


def _of(dtype: dvm.dtypes.DType, shape: tuple[int, ...]) -> dvm.Array:
    return dvm.asarray(np.random.default_rng(7).integers(0, 2 if dtype.kind == "b" else 100, shape)).astype(dtype)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d is not bfloat16], ids=repr)
def test_numpy_reads_every_dtype_without_a_copy(dtype: dvm.dtypes.DType) -> None:
    for shape in SHAPES:
        array = _of(dtype, shape)
        taken = np.from_dlpack(array)
        assert taken.dtype == dtype.numpy and taken.shape == shape and taken.tobytes() == np.asarray(array).tobytes()
        assert not taken.flags.writeable or not taken.size
        assert taken.size < 2 or np.shares_memory(taken, np.asarray(array))
    assert array.__dlpack_device__() == (1, 0)


def test_memory_outlives_its_array_and_its_runtime() -> None:
    with dvm.Runtime():
        taken = np.from_dlpack(dvm.arange(1000) * 2)
    assert (taken == np.arange(1000) * 2).all()


def test_who_cannot_be_told_that_memory_is_read_only_gets_a_copy() -> None:
    array = dvm.arange(5)
    for options in ({}, {"max_version": (0, 8)}, {"max_version": (1, 0), "copy": True}):
        class Old:
            def __dlpack__(self, **_: object) -> object:
                return array.__dlpack__(**options)

            def __dlpack_device__(self) -> tuple[int, int]:
                return array.__dlpack_device__()

        taken = np.from_dlpack(Old())
        assert taken.tolist() == [0, 1, 2, 3, 4] and not np.shares_memory(taken, np.asarray(array))
    with pytest.raises(BufferError, match="without a copy"):
        array.__dlpack__(copy=False)
    with pytest.raises(BufferError, match="device, got"):
        array.__dlpack__(dl_device=(2, 0))


def test_a_traced_array_has_no_memory() -> None:
    @dvm.function
    def leaks(x: dvm.Array) -> dvm.Array:
        np.from_dlpack(x)
        return x

    with pytest.raises(dvm.GraphError):
        leaks(dvm.arange(3))


class Foreign:
    """An array of another library, made of one of NumPy."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def __dlpack__(self, **options: object) -> object:
        return self.value.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.value.__dlpack_device__()


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d is not bfloat16], ids=repr)
def test_what_comes_in_keeps_its_dtype_and_is_a_copy(dtype: dvm.dtypes.DType) -> None:
    for shape in SHAPES:
        host = np.array(np.asarray(_of(dtype, shape)))
        for make in (dvm.asarray, xp.from_dlpack):
            array = make(Foreign(host.T))
            assert array.dtype is dtype and np.asarray(array).tobytes() == host.T.tobytes()
            assert not host.size or not np.shares_memory(np.asarray(array), host)
    with pytest.raises(BufferError, match="copy=False"):
        xp.from_dlpack(Foreign(host), copy=False)


def test_foreign_arrays_are_operands_and_arguments() -> None:
    x, traced = dvm.asarray([1.0, 2.0]), []

    @dvm.function
    def double(a: dvm.Array, parts: list[dvm.Array]) -> dvm.Array:
        traced.append(type(a))
        return a * 2 + parts[0]

    other = Foreign(np.array([3, 4], np.float32))
    assert (x + other).tolist() == [4, 6] and (other * x).tolist() == [3, 8] and dvm.maximum(other, x).tolist() == [3, 4]
    for _ in range(3):
        assert double(Foreign(np.array([3, 4], np.float32)), [other]).tolist() == [9, 12]
    assert traced == [dvm.Array]  # as an array, once: not as a constant, which each object would trace anew


def test_arrays_that_only_numpy_knows_keep_their_dtype() -> None:
    class Table:
        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            return np.array([0.1, 0.2])

    assert dvm.asarray(Table()).dtype is dvm.float64 and dvm.asarray([0.1, 0.2]).dtype is dvm.float32
    assert dvm.asarray(Foreign(np.array(0.1))).dtype is dvm.float64


def test_what_is_no_number_is_a_dtype_error() -> None:
    with pytest.raises(dvm.DTypeError, match="complex64"):
        dvm.asarray(Foreign(np.ones(2, np.complex64)))

    class Elsewhere(Foreign):
        def __dlpack__(self, **_: object) -> object:
            raise BufferError("not on the CPU")

        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

    with pytest.raises(dvm.DTypeError, match="arrays on the CPU"):
        dvm.asarray(Elsewhere(np.ones(2)))


def test_torch_both_ways() -> None:
    torch = pytest.importorskip("torch")
    array = dvm.asarray([[1.5, -2.0, 3.25]])
    for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float16, "float16"), (torch.float64, "float64"),
                        (torch.bool, "bool")):
        tensor = torch.tensor([[1.5, -2.0, 3.25]]).to(dtype)
        came = dvm.asarray(tensor.T)
        assert came.dtype.name == name and came.shape == (3, 1)
        assert torch.equal(torch.from_dlpack(came), tensor.T) and torch.equal(torch.as_tensor(came), tensor.T)
    torch.from_dlpack(array, copy=True).add_(1)
    assert array.tolist() == [[1.5, -2.0, 3.25]]
    weight = torch.nn.Linear(3, 2).weight  # it requires gradients; here it counts as its value
    assert np.allclose(np.asarray(array @ dvm.asarray(weight).T), array.tolist() @ weight.detach().numpy().T, atol=1e-6)
    assert (array + torch.ones(3)).tolist() == (torch.ones(3) + array).tolist() == [[2.5, -1.0, 4.25]]
    assert (array.astype("bfloat16") + torch.ones(3, dtype=torch.bfloat16)).dtype is bfloat16


JAX = """
import jax.numpy as jnp
import dvm_rt as dvm
array = dvm.asarray([[1.5, -2.0, 3.25]])
assert jnp.from_dlpack(array).tolist() == array.tolist()
assert jnp.from_dlpack(array.astype("bfloat16")).dtype == jnp.bfloat16
assert dvm.asarray(jnp.asarray([1.5], jnp.bfloat16)).dtype is dvm.bfloat16
"""


@pytest.mark.skipif(not find_spec("jax"), reason="jax is not installed")
def test_jax_both_ways() -> None:
    """In a process of its own: JAX has threads, and other tests fork."""
    subprocess.run([sys.executable, "-c", JAX], check=True)
