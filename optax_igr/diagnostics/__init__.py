"""What training did to a model: implicit regularisation, sharpness, Lipschitz bounds and robustness.

Every function here runs under `jax.jit`, and those that take long accept `progress(done, total)`, which is
called from the host while they run. Inside a chain, `optax.tree.get` finds what a transform measured:
`spectral_norms` of :func:`optax_igr.add_spectral_decay` and `schatten_norms` of :func:`optax_igr.add_schatten_decay`.
"""

from optax_igr.diagnostics.adversarial import InputRobustness as InputRobustness
from optax_igr.diagnostics.adversarial import input_robustness as input_robustness
from optax_igr.diagnostics.hessian import Sharpness as Sharpness
from optax_igr.diagnostics.hessian import sharpness as sharpness
from optax_igr.diagnostics.implicit import (
    ImplicitRegularization as ImplicitRegularization,
)
from optax_igr.diagnostics.implicit import (
    implicit_regularization as implicit_regularization,
)
from optax_igr.diagnostics.lipschitz import LipschitzBounds as LipschitzBounds
from optax_igr.diagnostics.lipschitz import lipschitz_bounds as lipschitz_bounds
from optax_igr.diagnostics.monitor_drift import MonitorDriftState as MonitorDriftState
from optax_igr.diagnostics.monitor_drift import monitor_drift as monitor_drift
from optax_igr.diagnostics.parameter_noise import ParameterRobustness as ParameterRobustness
from optax_igr.diagnostics.parameter_noise import parameter_robustness as parameter_robustness
from optax_igr.operators import spectral_norm as spectral_norm
