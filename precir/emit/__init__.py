"""Graph in, Python source out: the module that runs, and that a person can read and keep."""

from precir.emit.load import load
from precir.emit.module import Emitted
from precir.emit.program import emit, emit_with_gradient
from precir.emit.signature import Parameter, Signature, signature_of

__all__ = [
    "Emitted",
    "Parameter",
    "Signature",
    "emit",
    "emit_with_gradient",
    "load",
    "signature_of",
]
