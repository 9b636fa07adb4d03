"""In which direction: Newton-CG, stochastic and multi-batch L-BFGS, and variance reduction."""

from optax_igr.curvature.batches import overlapping_batches
from optax_igr.curvature.lbfgs_memory import LBFGSMemory
from optax_igr.curvature.multibatch_lbfgs import (
    MultibatchLBFGSState,
    multibatch_lbfgs,
    scale_by_multibatch_lbfgs,
)
from optax_igr.curvature.newton_cg import NewtonCGState, newton_cg, scale_by_newton_cg
from optax_igr.curvature.stochastic_lbfgs import (
    StochasticLBFGSState,
    scale_by_stochastic_lbfgs,
    sqn,
)
from optax_igr.curvature.svrg import SVRGState, slbfgs, svrg

__all__ = [
    "LBFGSMemory",
    "MultibatchLBFGSState",
    "NewtonCGState",
    "SVRGState",
    "StochasticLBFGSState",
    "multibatch_lbfgs",
    "newton_cg",
    "overlapping_batches",
    "scale_by_multibatch_lbfgs",
    "scale_by_newton_cg",
    "scale_by_stochastic_lbfgs",
    "slbfgs",
    "sqn",
    "svrg",
]
