"""What cannot be quantised for inference."""

from __future__ import annotations

from precir.errors import PrecirError


class InferenceError(PrecirError, ValueError):
    """A model, its weights or its calibration batches that cannot be quantised as asked."""
