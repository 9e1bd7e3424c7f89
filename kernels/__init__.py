"""Kernels that generated code calls by name: quantisation and products of quantised tensors.

One kernel per file, with its plain JAX reference beside it; what it launches on a GPU is Triton
code in ``triton/``. Import as ``precir.kernels``.
"""

if __name__ != "precir.kernels":
    raise ImportError(
        f"import precir.kernels, not {__name__}: a second copy of a JAX primitive "
        "would not be recognised"
    )

from precir.formats import E4M3, E5M2, E8M0FNU
from precir.kernels.act_quantize import (
    act_gradients,
    act_gradients_amax,
    act_quantize,
    activation_scale,
)
from precir.kernels.adam_update import Updated, adam_update
from precir.kernels.delayed import (
    current_scale,
    delayed_scale,
    finite_amax,
    recent_amax,
    record_amax,
)
from precir.kernels.dequantize import dequantize
from precir.kernels.layer import Layer
from precir.kernels.lookup import lookup
from precir.kernels.loss_scale import all_finite, next_loss_scale
from precir.kernels.norm_quantize import (
    Normalised,
    NormGradients,
    norm_gradients,
    norm_quantize,
    norm_scale,
)
from precir.kernels.observe import amax, merge_stats, observe
from precir.kernels.quantize import quantize
from precir.kernels.quantize_both import (
    quantize_and_amax,
    quantize_both,
    quantize_both_and_amax,
    turned_back,
)
from precir.kernels.rows import put_row, row
from precir.kernels.scaled_dot import scaled_dot
from precir.kernels.scales import amax_scale, bounded, rescale, rms_scale, scale_root
from precir.kernels.stochastic import quantize_stochastic
from precir.kernels.tap import tap
from precir.kernels.writing import Written
from precir.scaled import ScaledArray

__all__ = [
    "E4M3",
    "E5M2",
    "E8M0FNU",
    "Layer",
    "NormGradients",
    "Normalised",
    "ScaledArray",
    "Updated",
    "Written",
    "act_gradients",
    "act_gradients_amax",
    "act_quantize",
    "activation_scale",
    "adam_update",
    "all_finite",
    "amax",
    "amax_scale",
    "bounded",
    "current_scale",
    "delayed_scale",
    "dequantize",
    "finite_amax",
    "lookup",
    "merge_stats",
    "next_loss_scale",
    "norm_gradients",
    "norm_quantize",
    "norm_scale",
    "observe",
    "put_row",
    "quantize",
    "quantize_and_amax",
    "quantize_both",
    "quantize_both_and_amax",
    "quantize_stochastic",
    "recent_amax",
    "record_amax",
    "rescale",
    "rms_scale",
    "row",
    "scale_root",
    "scaled_dot",
    "tap",
    "turned_back",
]
