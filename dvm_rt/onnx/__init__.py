"""The ONNX frontend: `load` gives a Session that runs a model; `backend` is what ONNX's own suite runs against.

    model         files -> Model, checked before memory is taken
    table         one row an operator; `operators/` holds their functions
    values        what flows between nodes: arrays, host values with symbolic sizes, sequences
    numpy_names   NumPy under the names that operators are written with
    running       graphs in traced segments and steps; control flow
    session       load, Session
    backend       onnx.backend.base
    conformance   ONNX's suite: counts by group, the table of operators
    command       dvm-rt run

Needs the extra `onnx`; nothing else of dvm_rt imports this folder."""

from __future__ import annotations

from importlib import import_module

__all__ = ["Session", "load"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("dvm_rt.onnx.session"), name)
    raise AttributeError(f"module 'dvm_rt.onnx' has no attribute {name!r}")
