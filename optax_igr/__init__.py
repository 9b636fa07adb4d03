"""Gradient transformations for JAX and Optax: what is minimised, in which geometry, and how far.

The rooms: `penalties`, `geometry`, `curvature`, `step_size`.
"""

import importlib.metadata

from optax_igr._core.value_functions import fill_masked as fill_masked
from optax_igr._core.value_functions import microbatched as microbatched
from optax_igr.curvature import multibatch_lbfgs as multibatch_lbfgs
from optax_igr.curvature import newton_cg as newton_cg
from optax_igr.curvature import overlapping_batches as overlapping_batches
from optax_igr.curvature import scale_by_multibatch_lbfgs as scale_by_multibatch_lbfgs
from optax_igr.curvature import scale_by_newton_cg as scale_by_newton_cg
from optax_igr.curvature import scale_by_sqn as scale_by_sqn
from optax_igr.curvature import slbfgs as slbfgs
from optax_igr.curvature import sqn as sqn
from optax_igr.curvature import svrg as svrg
from optax_igr.geometry import eg_plus_minus as eg_plus_minus
from optax_igr.geometry import exponentiate as exponentiate
from optax_igr.geometry import exponentiate_hypentropy as exponentiate_hypentropy
from optax_igr.geometry import exponentiate_signed as exponentiate_signed
from optax_igr.geometry import exponentiate_simplex as exponentiate_simplex
from optax_igr.geometry import exponentiated_gradient as exponentiated_gradient
from optax_igr.geometry import keep_params_in as keep_params_in
from optax_igr.geometry import projection_simplex_kl as projection_simplex_kl
from optax_igr.geometry import projection_spectral_ball as projection_spectral_ball
from optax_igr.penalties import add_gradient_penalty as add_gradient_penalty
from optax_igr.penalties import add_igr as add_igr
from optax_igr.penalties import add_microbatch_gradient_penalty as add_microbatch_gradient_penalty
from optax_igr.penalties import add_schatten_decay as add_schatten_decay
from optax_igr.penalties import add_spectral_decay as add_spectral_decay
from optax_igr.penalties import cancel_igr as cancel_igr
from optax_igr.penalties import conv_operator as conv_operator
from optax_igr.penalties import extrapolated_gradient_penalty as extrapolated_gradient_penalty
from optax_igr.penalties import extrapolation_eval_params as extrapolation_eval_params
from optax_igr.penalties import hold_igr as hold_igr
from optax_igr.penalties import igr_coefficient as igr_coefficient
from optax_igr.penalties import matrix_operator as matrix_operator
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
