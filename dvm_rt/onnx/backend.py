"""ONNX's backend interface (onnx.backend.base), so that its own suite and other tools run against dvm_rt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep, namedtupledict

from dvm_rt.errors import DvmError, UnsupportedOperatorError
from dvm_rt.onnx.session import Session, load


class Prepared(BackendRep):
    """A loaded model."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def run(self, inputs: Sequence[object] | Mapping[str, object] | np.ndarray, **_: object) -> tuple[object, ...]:
        """The outputs, as a named tuple where the names allow it; inputs by position or by name."""
        ports = self.session.inputs
        if isinstance(inputs, Mapping):
            feeds = dict(inputs)
        else:
            values = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
            names = [p.name for p in ports]
            if len(values) > len(names):  # initializers that are inputs too
                names = [v.name for v in self.session.model.graph.inputs]
            feeds = dict(zip(names, values, strict=False))
        outputs = self.session.run(feeds)
        return namedtupledict("Outputs", [p.name for p in self.session.outputs])(*outputs)


class DvmBackend(Backend):
    """The backend; device: CPU."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **_: object) -> Prepared:
        """The model, ready to run. Raises UnsupportedOperatorError for a device that is not there, ModelFormatError."""
        if not cls.supports_device(device):
            raise UnsupportedOperatorError(f"onnx: backend: device, got {device!r}, allowed CPU")
        return Prepared(load(model))

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: object, device: str = "CPU", **kwargs: object) -> tuple[object, ...]:
        """One run of a model."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Sequence[np.ndarray], device: str = "CPU", outputs_info: object = None,
        **kwargs: object
    ) -> tuple[object, ...]:
        """One run of a node alone: all outputs that it names, as a named tuple. `opset_version`: the newest unless named."""
        helper = onnx.helper
        given = [name for name in node.input if name]
        values = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.asarray(x).dtype), None)
                  for n, x in zip(given, inputs, strict=True)]
        results = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        version = kwargs.get("opset_version", onnx.defs.onnx_opset_version())
        opsets = [helper.make_opsetid("", version)] + ([helper.make_opsetid(node.domain, 1)] if node.domain else [])
        graph = helper.make_graph([node], node.op_type, values, results)
        return cls.run_model(helper.make_model(graph, opset_imports=opsets), list(inputs), device)

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **_: object) -> bool:
        """Whether the model can be loaded, on this device, and every operator of it is known. What one does with its attributes
        shows when it runs."""
        try:
            return cls.supports_device(device) and not load(model).unknown_operators()
        except DvmError:
            return False

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """CPU alone."""
        return device.split(":")[0] == "CPU"


prepare, run_model, run_node = DvmBackend.prepare, DvmBackend.run_model, DvmBackend.run_node
is_compatible, supports_device = DvmBackend.is_compatible, DvmBackend.supports_device
