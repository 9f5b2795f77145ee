"""Session folders: two starts at once do not take each other's folder away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dvm_rt import session


@pytest.mark.parametrize("step", ["mkdir", "open"])
def test_a_folder_that_another_start_sweeps_before_it_is_held_is_made_again(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    monkeypatch.setenv("DVM_RT_SESSION_ROOT", str(root))
    real, swept = getattr(os, step), []

    def swept_behind(path: str, *rest: object, **more: object) -> object:
        done = real(path, *rest, **more)
        if not swept and "s-" in os.path.basename(path):
            swept.append(path)
            swept.append(session.sweep(str(root)))
        return done

    monkeypatch.setattr(os, step, swept_behind)
    one = session.SessionDirectory()
    monkeypatch.undo()
    assert swept[1] == 1 and one.path != swept[0] and os.listdir(root) == [os.path.basename(one.path)]
    assert session.sweep(str(root)) == 0  # it is held
    one.close()
    assert not os.listdir(root)
