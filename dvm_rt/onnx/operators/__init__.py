"""The functions of the table's rows, by subject."""

from __future__ import annotations

from importlib import import_module

SUBJECTS = ("elementwise", "shapes", "picking", "reductions", "neural", "quantised", "recurrent", "control",
            "signal", "images", "text", "training")


def load() -> None:
    """Fills the table."""
    for subject in SUBJECTS:
        import_module(f"{__name__}.{subject}")
