"""Gradient transformations for JAX and Optax: what is minimised, in which geometry, and how far.

The rooms: `penalties`, `step_size`.
"""

import importlib.metadata

from optax_igr._core.value_functions import fill_masked as fill_masked
from optax_igr._core.value_functions import microbatched as microbatched
from optax_igr.penalties import add_gradient_penalty as add_gradient_penalty
from optax_igr.penalties import add_igr as add_igr
from optax_igr.penalties import add_microbatch_gradient_penalty as add_microbatch_gradient_penalty
from optax_igr.penalties import cancel_igr as cancel_igr
from optax_igr.penalties import extrapolated_gradient_penalty as extrapolated_gradient_penalty
from optax_igr.penalties import extrapolation_eval_params as extrapolation_eval_params
from optax_igr.penalties import hold_igr as hold_igr
from optax_igr.penalties import igr_coefficient as igr_coefficient
from optax_igr.penalties import modified_loss as modified_loss
from optax_igr.step_size import adapt_scale as adapt_scale
from optax_igr.step_size import egdd as egdd
from optax_igr.step_size import factor_table as factor_table
from optax_igr.step_size import layerwise_decay as layerwise_decay
from optax_igr.step_size import limit_by_curvature as limit_by_curvature
from optax_igr.step_size import scale_by_cauchy_step as scale_by_cauchy_step
from optax_igr.step_size import scale_by_gain as scale_by_gain
from optax_igr.step_size import scale_by_path as scale_by_path

__version__ = importlib.metadata.version("optax_igr")
