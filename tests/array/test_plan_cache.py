"""Plans on disk: a second runtime makes none; whatever is wrong with a file is counted, and never changes a result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.array import plan_cache

X = np.linspace(-2, 2, 35, dtype=np.float32).reshape(5, 7)


def work(folder: Path, **options: object) -> tuple[bytes, dict[str, object]]:
    """What a small job gives in a runtime of its own, and the counters."""

    @dvm.function
    def step(x: dvm.Array) -> dvm.Array:
        return dvm.softmax(dvm.tanh(x * 0.5) + 1.0, axis=-1)

    with dvm.Runtime(cache=folder, **({"inline": True} | options)):  # type: ignore[arg-type]
        x = dvm.asarray(X)
        out = [np.asarray(y).tobytes() for y in (step(x), step(x[:3] + 0.0), dvm.sum(x * 2.0, axis=0))]
        return b"".join(out), dvm.stats()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.plan"))


def test_a_second_runtime_plans_nothing(tmp_path: Path) -> None:
    first, before = work(tmp_path)
    assert before["cache_misses"] == len(files(tmp_path)) > 0 and "cache_hits" not in before
    second, after = work(tmp_path)
    assert second == first
    assert after["cache_hits"] == before["cache_misses"] and "cache_misses" not in after
    assert after["programs_warmed"] >= 4 and after["encoded"] == after["programs_warmed"]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("encode", ["workers", "caller"])
def test_through_processes(tmp_path: Path, encode: str) -> None:
    first, _ = work(tmp_path)
    second, after = work(tmp_path, inline=False, encoders=1, encode=encode)
    assert second == first and after["cache_hits"] > 0 and "plans_by_workers" not in after


@pytest.mark.parametrize("place", [0, 20, 40, 200, -1])
def test_a_flipped_bit_is_counted_and_planned_again(tmp_path: Path, place: int) -> None:
    first, _ = work(tmp_path)
    for file in files(tmp_path):
        data = bytearray(file.read_bytes())
        data[place] ^= 4
        file.write_bytes(data)
    second, after = work(tmp_path)
    assert second == first and after["cache_refused"] == len(files(tmp_path))
    third, last = work(tmp_path)
    assert third == first and "cache_refused" not in last


@pytest.mark.parametrize("keep", [0, 5, 14, 33, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    first, _ = work(tmp_path)
    for file in files(tmp_path):
        file.write_bytes(file.read_bytes()[:keep])
    second, after = work(tmp_path)
    assert second == first and after["cache_refused"] == len(files(tmp_path))


def test_a_file_under_another_name_is_refused(tmp_path: Path) -> None:
    first, _ = work(tmp_path)
    found = files(tmp_path)
    held = [f.read_bytes() for f in found]
    for file, data in zip(found, held[1:] + held[:1], strict=True):
        file.write_bytes(data)
    second, after = work(tmp_path)
    assert second == first and after["cache_refused"] == len(found)


def test_another_build_looks_at_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, before = work(tmp_path)
    monkeypatch.setattr(plan_cache, "build", lambda: b"another")
    second, after = work(tmp_path)
    assert second == first and after["cache_misses"] == before["cache_misses"]
    assert len(files(tmp_path)) == 2 * before["cache_misses"]


def test_the_folder_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVM_RT_PLAN_CACHE_BYTES_MAX", "6000")
    work(tmp_path)
    assert 0 < sum(f.stat().st_size for f in files(tmp_path)) <= 7000


def test_a_folder_that_cannot_be_written_costs_no_result(tmp_path: Path) -> None:
    first, _ = work(tmp_path / "good")
    (tmp_path / "file").write_text("not a folder")
    second, after = work(tmp_path / "file" / "below")
    assert second == first and after["cache_unwritable"] > 0
