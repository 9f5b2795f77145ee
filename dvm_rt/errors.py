"""The one exception tree. Every message reads `<who>: <where>: <what>, got <x>, allowed <y>`."""

from __future__ import annotations


MESSAGE_MAX = 1000  # characters: what was got may be an array, or a program


class DvmError(Exception):
    """Root of everything that this package raises on purpose. A message that is too long lacks its middle."""

    def __init__(self, message: str = "") -> None:
        half = MESSAGE_MAX // 2
        super().__init__(message if len(message) <= MESSAGE_MAX else f"{message[:half]} ... {message[-half:]}")


class GraphError(DvmError):
    """A graph that means nothing: a cycle, an unknown value, a branch on a symbolic dimension."""


class ShapeError(DvmError):
    """Shapes that do not fit an operator, a function's traced shape, or a limit."""


class DTypeError(DvmError):
    """An element type that the operator, the function or this build does not take."""


class EncodeError(DvmError):
    """A plan that cannot be encoded for these dimensions (a limit of the machine was reached)."""


class InvalidBytecodeError(DvmError):
    """The verifier refused a program. `code` names the rule, `section` and `word` the place."""

    def __init__(self, message: str, code: str = "", section: int = 0, word: int = 0) -> None:
        super().__init__(message)
        self.code, self.section, self.word = code, section, word


class DeviceTrap(DvmError):
    """A running program stopped itself: a gather index out of range, for example."""


class DeviceLostError(DvmError):
    """The device died and the launch could not be replayed."""


class DeviceTimeoutError(DvmError):
    """A value did not arrive within the time that was allowed for it, or a launch's loops went on for longer than allowed."""


class DeviceOutOfMemoryError(DvmError):
    """The arena cannot hold the tensor. What was there is intact; smaller requests go on working."""


class WorkerLostError(DvmError):
    """An encoder died more often with this request than retries are allowed."""


class PoisonRequestError(DvmError):
    """A request that killed every encoder that held it alone."""


class PoolUnhealthyError(DvmError):
    """Processes die without any progress between the deaths: the restart limit was reached."""


class BackpressureTimeout(DvmError):
    """No credit was given back within the time that was allowed."""


class VersionMismatchError(DvmError):
    """The peer speaks another protocol version or has another instruction table."""


class AuthError(DvmError):
    """The peer may not connect."""


class ProtocolError(DvmError):
    """A frame that breaks the protocol."""


class ModelFormatError(DvmError):
    """A model file or weight file that is truncated, inconsistent or not what it says."""


class UnsupportedOperatorError(DvmError):
    """No operator of this name, or not with these attributes."""


class ForkedClientError(DvmError):
    """The runtime was made before a fork: the child cannot use it."""


class ClosedError(DvmError):
    """The runtime is closed."""
