"""PyTorch models, exported with dynamic sizes, against ONNX Runtime over random shapes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
pytest.importorskip("torch", reason="torch is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

import dvm_rt as dvm
from dvm_rt.onnx import load
from dvm_rt.onnx.running import HOST_FUNCTION, HOST_PATH
from tests.onnx.exported import MODELS

SHAPES = 50


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {name: row.to_onnx() for name, row in MODELS.items()}


@pytest.mark.parametrize("name", MODELS)
def test_as_onnxruntime(name: str, files: dict[str, bytes]) -> None:
    other = onnxruntime.InferenceSession(files[name], providers=["CPUExecutionProvider"])
    random = np.random.default_rng(11)
    with dvm.Runtime(inline=True):
        session = load(files[name])
        for _ in range(SHAPES):
            feeds = MODELS[name].inputs(random)
            shapes = {k: v.shape for k, v in feeds.items()}
            for got, wanted in zip(session.run(feeds), other.run(None, feeds), strict=True):
                assert got.shape == wanted.shape and got.dtype == wanted.dtype, shapes
                np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-5, err_msg=str(shapes))
        counts = session.counts()
        assert counts[HOST_PATH] == counts[HOST_FUNCTION] == 0, [r for r in session.explain()
            if {HOST_PATH, HOST_FUNCTION} & set(r.where)]


@pytest.mark.parametrize("name", ["bert", "gpt", "vit", "convolutions", "mobile net", "residual net"])
def test_one_plan_serves_all_shapes(name: str, files: dict[str, bytes]) -> None:
    """Sizes of 1 are part of a signature, other sizes are not: the number of traces stays behind that of shapes."""
    random = np.random.default_rng(5)
    with dvm.Runtime(inline=True):
        session = load(files[name])
        for _ in range(30):
            session.run({k: v for k, v in MODELS[name].inputs(random).items()})
        stats = dvm.stats()
    assert stats.get("plans_for_one_shape", 0) == 0
    assert stats["traces"] <= 8


def test_the_same_bytes_through_processes(files: dict[str, bytes]) -> None:
    results = []
    for arguments in ({"inline": True}, {"encoders": 1}):
        random = np.random.default_rng(3)
        with dvm.Runtime(**arguments):
            session = load(files["gpt"])
            results.append([np.array(y) for _ in range(4) for y in session.run(MODELS["gpt"].inputs(random))])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


async def test_run_async(files: dict[str, bytes]) -> None:
    random = np.random.default_rng(3)
    feeds = {name: MODELS[name].inputs(random) for name in ("bert", "control")}
    async with dvm.Runtime(encoders=1):
        for name, feed in feeds.items():
            session = load(files[name])
            for a, b in zip(await session.run_async(feed), session.run(None, feed), strict=True):
                np.testing.assert_array_equal(a, b)
