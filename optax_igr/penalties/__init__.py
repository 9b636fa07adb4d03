"""What is minimised: penalties on the gradient norm and on the norms of weights."""

from optax_igr.penalties.extrapolated import (
    ExtrapolatedGradientPenaltyState as ExtrapolatedGradientPenaltyState,
)
from optax_igr.penalties.extrapolated import (
    extrapolated_gradient_penalty as extrapolated_gradient_penalty,
)
from optax_igr.penalties.extrapolated import (
    extrapolation_eval_params as extrapolation_eval_params,
)
from optax_igr.penalties.gradient_norm import GradientPenaltyState as GradientPenaltyState
from optax_igr.penalties.gradient_norm import add_gradient_penalty as add_gradient_penalty
from optax_igr.penalties.implicit import add_igr as add_igr
from optax_igr.penalties.implicit import cancel_igr as cancel_igr
from optax_igr.penalties.implicit import hold_igr as hold_igr
from optax_igr.penalties.implicit import igr_coefficient as igr_coefficient
from optax_igr.penalties.implicit import modified_loss as modified_loss
from optax_igr.penalties.microbatch_gradient_norm import (
    add_microbatch_gradient_penalty as add_microbatch_gradient_penalty,
)
from optax_igr.penalties.schatten import SchattenDecayState as SchattenDecayState
from optax_igr.penalties.schatten import add_schatten_decay as add_schatten_decay
from optax_igr.penalties.spectral import SpectralDecayState as SpectralDecayState
from optax_igr.penalties.spectral import add_spectral_decay as add_spectral_decay
