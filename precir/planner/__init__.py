"""Scaling laws of precision: what format a training run deserves, before it is run."""

from precir.planner.errors import FitError, PlanError
from precir.planner.fit import Fit, Run, efficiencies, fit_bits, fit_law
from precir.planner.laws import LAWS, Laws
from precir.planner.measure import Measured, measure
from precir.planner.plan import Plan, plan, plan_step
from precir.planner.reading import StepFacts, read

__all__ = [
    "LAWS",
    "Fit",
    "FitError",
    "Laws",
    "Measured",
    "Plan",
    "PlanError",
    "Run",
    "StepFacts",
    "efficiencies",
    "fit_bits",
    "fit_law",
    "measure",
    "plan",
    "plan_step",
    "read",
]
