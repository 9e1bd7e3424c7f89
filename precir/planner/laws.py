"""Every law the planner knows, in one value."""

from __future__ import annotations

from dataclasses import dataclass

from precir.planner.kumar import KUMAR, KUMAR_FLOAT_WEIGHTS, Kumar, Part
from precir.planner.others import (
    CHEN,
    DREMOV,
    OUYANG,
    AfterTraining,
    FourBits,
    QuantisedShare,
)
from precir.planner.quartet import QUARTET, Quartet
from precir.planner.sun import SUN, FloatLaw


@dataclass(frozen=True)
class Laws:
    """What a plan rests on. Change one with `dataclasses.replace(LAWS, kumar=...)`.

    Attributes:
      kumar: integers, by bits of weights, activations, and keys and values.
      float_weights: as kumar's weights, for floating-point weights alone.
      sun: floating point, by exponent and mantissa bits.
      ouyang: quantisation after training.
      chen: W4A4.
      dremov: how long to train quantised.
      quartet: forward and backward formats.
    """

    kumar: Kumar = KUMAR
    float_weights: Part = KUMAR_FLOAT_WEIGHTS
    sun: FloatLaw = SUN
    ouyang: AfterTraining = OUYANG
    chen: FourBits = CHEN
    dremov: QuantisedShare = DREMOV
    quartet: Quartet = QUARTET


LAWS = Laws()
