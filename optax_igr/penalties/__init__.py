"""What is minimised: penalties on the gradient norm and on the norms of weights."""

from optax_igr.penalties.extrapolated import (
    ExtrapolatedGradientPenaltyState,
    extrapolated_gradient_penalty,
    extrapolation_eval_params,
)
from optax_igr.penalties.gradient_norm import GradientPenaltyState, add_gradient_penalty
from optax_igr.penalties.igr_coefficient import igr_coefficient
from optax_igr.penalties.implicit import add_igr, cancel_igr, hold_igr
from optax_igr.penalties.microbatch_gradient_norm import (
    add_microbatch_gradient_penalty,
)
from optax_igr.penalties.modified_loss import modified_loss
from optax_igr.penalties.schatten import SchattenDecayState, add_schatten_decay
from optax_igr.penalties.spectral import SpectralDecayState, add_spectral_decay

__all__ = [
    "ExtrapolatedGradientPenaltyState",
    "GradientPenaltyState",
    "SchattenDecayState",
    "SpectralDecayState",
    "add_gradient_penalty",
    "add_igr",
    "add_microbatch_gradient_penalty",
    "add_schatten_decay",
    "add_spectral_decay",
    "cancel_igr",
    "extrapolated_gradient_penalty",
    "extrapolation_eval_params",
    "hold_igr",
    "igr_coefficient",
    "modified_loss",
]
