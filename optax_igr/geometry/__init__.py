"""In which geometry a step acts: exponentiated gradients and projections, as the last link of any chain."""

from optax_igr.geometry.eg_plus_minus import EgPlusMinusState, eg_plus_minus
from optax_igr.geometry.exponentiate import ExponentiateState, exponentiate
from optax_igr.geometry.exponentiate_hypentropy import (
    exponentiate_hypentropy,
)
from optax_igr.geometry.exponentiate_signed import exponentiate_signed
from optax_igr.geometry.exponentiate_simplex import (
    ExponentiateSimplexState,
    exponentiate_simplex,
)
from optax_igr.geometry.exponentiated_gradient import (
    exponentiated_gradient,
)
from optax_igr.geometry.keep_params_in import keep_params_in
from optax_igr.geometry.projection_simplex_kl import projection_simplex_kl
from optax_igr.geometry.spectral_ball import projection_spectral_ball

__all__ = [
    "EgPlusMinusState",
    "ExponentiateSimplexState",
    "ExponentiateState",
    "eg_plus_minus",
    "exponentiate",
    "exponentiate_hypentropy",
    "exponentiate_signed",
    "exponentiate_simplex",
    "exponentiated_gradient",
    "keep_params_in",
    "projection_simplex_kl",
    "projection_spectral_ball",
]
