"""How far the step goes: learned by exponentiated gradients, bounded by curvature, set per layer."""

from optax_igr.step_size.cauchy import ScaleByCauchyStepState as ScaleByCauchyStepState
from optax_igr.step_size.cauchy import scale_by_cauchy_step as scale_by_cauchy_step
from optax_igr.step_size.curvature_limit import LimitByCurvatureState as LimitByCurvatureState
from optax_igr.step_size.curvature_limit import limit_by_curvature as limit_by_curvature
from optax_igr.step_size.egdd import EgddState as EgddState
from optax_igr.step_size.egdd import egdd as egdd
from optax_igr.step_size.gain import ScaleByGainState as ScaleByGainState
from optax_igr.step_size.gain import scale_by_gain as scale_by_gain
from optax_igr.step_size.layerwise import ScaleByPathState as ScaleByPathState
from optax_igr.step_size.layerwise import factor_table as factor_table
from optax_igr.step_size.layerwise import layerwise_decay as layerwise_decay
from optax_igr.step_size.layerwise import scale_by_path as scale_by_path
from optax_igr.step_size.scale import AdaptScaleState as AdaptScaleState
from optax_igr.step_size.scale import adapt_scale as adapt_scale
