"""In which geometry a step acts: exponentiated gradients and projections, as the last link of any chain."""

from optax_igr.geometry.eg_plus_minus import EgPlusMinusState as EgPlusMinusState
from optax_igr.geometry.eg_plus_minus import eg_plus_minus as eg_plus_minus
from optax_igr.geometry.exponentiate import ExponentiateState as ExponentiateState
from optax_igr.geometry.exponentiate import exponentiate as exponentiate
from optax_igr.geometry.exponentiate_hypentropy import (
    exponentiate_hypentropy as exponentiate_hypentropy,
)
from optax_igr.geometry.exponentiate_signed import exponentiate_signed as exponentiate_signed
from optax_igr.geometry.exponentiate_simplex import (
    ExponentiateSimplexState as ExponentiateSimplexState,
)
from optax_igr.geometry.exponentiate_simplex import exponentiate_simplex as exponentiate_simplex
from optax_igr.geometry.exponentiated_gradient import (
    exponentiated_gradient as exponentiated_gradient,
)
from optax_igr.geometry.keep_params_in import keep_params_in as keep_params_in
from optax_igr.geometry.projection_simplex_kl import projection_simplex_kl as projection_simplex_kl
from optax_igr.geometry.spectral_ball import projection_spectral_ball as projection_spectral_ball
