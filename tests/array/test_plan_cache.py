"""Plans and programs on disk: a second runtime makes none; whatever is wrong with a file is counted, and never
changes a result."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.array import plan_cache
from dvm_rt.array.session import session

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
    assert after["programs_loaded"] >= 4 and after["encoded"] == 0
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("encode", ["workers", "caller"])
def test_through_processes(tmp_path: Path, encode: str) -> None:
    first, _ = work(tmp_path)
    second, after = work(tmp_path, inline=False, encoders=1, encode=encode)
    assert second == first and after["cache_hits"] > 0 and "plans_by_workers" not in after
    assert after["programs_loaded"] >= 4 and after["encoded"] == sum(w["encoded"] for w in after["workers"]) == 0


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


def test_what_others_left_in_the_folder_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVM_RT_PLAN_CACHE_BYTES_MAX", "20000")
    first, _ = work(tmp_path / "good")
    folder = tmp_path / "shared"
    (folder / "folder.plan").mkdir(parents=True)
    (folder / "gone.plan").symlink_to(tmp_path / "nowhere")
    (folder / "unfinished.part").write_bytes(bytes(19_000))  # of a process that was killed while it wrote
    os.utime(folder / "unfinished.part", (1, 1))
    second, after = work(folder)
    assert second == first and "cache_unwritable" not in after and after["cache_misses"] > 0
    assert not (folder / "unfinished.part").exists()
    assert work(folder)[1]["cache_hits"] == after["cache_misses"]


def test_a_file_that_cannot_be_put_in_its_place_leaves_none_behind(tmp_path: Path) -> None:
    first, before = work(tmp_path)
    for file in files(tmp_path):
        file.unlink()
        file.mkdir()
    second, after = work(tmp_path)
    assert second == first and after["cache_unwritable"] > 0
    assert not list(tmp_path.glob("*.part"))


def test_it_is_written_on_demand(tmp_path: Path) -> None:
    with dvm.Runtime(inline=True, cache=tmp_path) as rt:
        np.asarray(dvm.sum(dvm.asarray(X) * 3.0))
        rt.save()
        with dvm.Runtime(inline=True, cache=tmp_path):  # the first one is still there
            np.asarray(dvm.sum(dvm.asarray(X) * 3.0))
            assert dvm.stats()["programs_loaded"] == 1 and dvm.stats()["encoded"] == 0


def rewritten(folder: Path, change: Callable[[plan_cache.Programs], plan_cache.Programs]) -> int:
    """Writes other programs into every file, under a digest that fits. Returns how many."""
    cache, count = plan_cache.PlanCache(folder, 1 << 30, Counter()), 0
    for file in files(folder):
        plan, programs = cache.load(file)
        programs = change(programs)
        cache.save(file, plan, programs)
        count += len(programs)
    return count


def flipped(code: bytes, place: int) -> bytes:
    data = bytearray(code)
    data[place] ^= 16
    return bytes(data)


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("what", ["flipped", "cut", "empty", "another", "of another table"])
def test_a_program_that_is_none_is_encoded_again(tmp_path: Path, what: str, inline: bool) -> None:
    first, _ = work(tmp_path)
    changes = {
        "flipped": lambda programs: [(s, flipped(code, len(code) // 2)) for s, code in programs],
        "cut": lambda programs: [(s, code[:-8]) for s, code in programs],
        "empty": lambda programs: [(s, b"no program") for s, _ in programs],
        "another": lambda programs: [(tuple(n - 1 for n in s), code) for s, code in programs],  # beyond what it gets
        "of another table": lambda programs: [(s, flipped(code, 8)) for s, code in programs],
    }
    count = rewritten(tmp_path, changes[what])
    second, after = work(tmp_path, inline=inline, **({} if inline else {"encoders": 1}))
    assert second == first and after["programs_refused"] == count and "programs_loaded" not in after


def test_the_file_of_a_plan_is_bounded(tmp_path: Path) -> None:
    cache = plan_cache.PlanCache(tmp_path, 16 * 10_000, Counter())
    path = tmp_path / "one.plan"
    with dvm.Runtime(inline=True):
        np.asarray(dvm.sum(dvm.asarray(X) * 5.0))
        plan = session().stream.plan_bytes(1)
    cache.save(path, plan, [((n,), bytes(1000)) for n in range(100)])
    _, kept = cache.load(path)
    assert path.stat().st_size <= 10_500 and kept and [s for s, _ in kept] == [(n,) for n in range(100 - len(kept), 100)]
