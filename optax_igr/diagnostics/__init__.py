"""What training did to a model: implicit regularisation, sharpness, Lipschitz bounds and robustness.

Every function here runs under `jax.jit`, and those that take long accept `progress(done, total)`, which is
called from the host while they run. Inside a chain, `optax.tree.get` finds what a transform measured:
`spectral_norms` of :func:`optax_igr.add_spectral_decay` and `schatten_norms` of :func:`optax_igr.add_schatten_decay`.
"""

from optax_igr.diagnostics.adversarial import InputRobustness, input_robustness
from optax_igr.diagnostics.hessian import Sharpness, sharpness
from optax_igr.diagnostics.implicit import (
    ImplicitRegularization,
    implicit_regularization,
)
from optax_igr.diagnostics.lipschitz import LipschitzBounds, lipschitz_bounds
from optax_igr.diagnostics.monitor_drift import MonitorDriftState, monitor_drift
from optax_igr.diagnostics.parameter_noise import ParameterRobustness, parameter_robustness
from optax_igr.diagnostics.sharpness_ratio import (
    MonitorSharpnessRatioState,
    Regime,
    adam_divisor,
    monitor_sharpness_ratio,
    rmsprop_divisor,
)
from optax_igr.operators import spectral_norm

__all__ = [
    "ImplicitRegularization",
    "InputRobustness",
    "LipschitzBounds",
    "MonitorDriftState",
    "MonitorSharpnessRatioState",
    "ParameterRobustness",
    "Regime",
    "Sharpness",
    "adam_divisor",
    "implicit_regularization",
    "input_robustness",
    "lipschitz_bounds",
    "monitor_drift",
    "monitor_sharpness_ratio",
    "parameter_robustness",
    "rmsprop_divisor",
    "sharpness",
    "spectral_norm",
]
