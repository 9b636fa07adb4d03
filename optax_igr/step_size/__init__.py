"""How far the step goes: learned by exponentiated gradients, bounded by curvature, set per layer."""

from optax_igr.step_size.cauchy import ScaleByCauchyStepState, scale_by_cauchy_step
from optax_igr.step_size.curvature_limit import LimitByCurvatureState, limit_by_curvature
from optax_igr.step_size.egdd import EgddState, egdd
from optax_igr.step_size.gain import ScaleByGainState, scale_by_gain
from optax_igr.step_size.layerwise import (
    ScaleByPathState,
    factor_table,
    layerwise_decay,
    scale_by_path,
)
from optax_igr.step_size.scale import AdaptScaleState, adapt_scale

__all__ = [
    "AdaptScaleState",
    "EgddState",
    "LimitByCurvatureState",
    "ScaleByCauchyStepState",
    "ScaleByGainState",
    "ScaleByPathState",
    "adapt_scale",
    "egdd",
    "factor_table",
    "layerwise_decay",
    "limit_by_curvature",
    "scale_by_cauchy_step",
    "scale_by_gain",
    "scale_by_path",
]
