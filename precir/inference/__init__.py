"""Quantised inference as a compile: weights in 8 bits, scales from calibration, no state."""

from precir.inference.errors import InferenceError
from precir.inference.model import QuantizedModel, quantize_model
from precir.inference.report import InferenceReport

__all__ = ["InferenceError", "InferenceReport", "QuantizedModel", "quantize_model"]
