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
from optax_igr.operators import spectral_norm

__all__ = [
    "ImplicitRegularization",
    "InputRobustness",
    "LipschitzBounds",
    "MonitorDriftState",
    "ParameterRobustness",
    "Sharpness",
    "implicit_regularization",
    "input_robustness",
    "lipschitz_bounds",
    "monitor_drift",
    "parameter_robustness",
    "sharpness",
    "spectral_norm",
]
