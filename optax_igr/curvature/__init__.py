"""In which direction: Newton-CG, stochastic and multi-batch L-BFGS, and variance reduction."""

from optax_igr.curvature._lbfgs_memory import LBFGSMemory
from optax_igr.curvature.multibatch_lbfgs import (
    MultibatchLBFGSState,
    multibatch_lbfgs,
    scale_by_multibatch_lbfgs,
)
from optax_igr.curvature.newton_cg import NewtonCGState, newton_cg, scale_by_newton_cg
from optax_igr.curvature.overlapping_batches import overlapping_batches
from optax_igr.curvature.slbfgs import slbfgs
from optax_igr.curvature.sqn import SQNState, scale_by_sqn, sqn
from optax_igr.curvature.svrg import SVRGState, svrg

__all__ = [
    "LBFGSMemory",
    "MultibatchLBFGSState",
    "NewtonCGState",
    "SQNState",
    "SVRGState",
    "multibatch_lbfgs",
    "newton_cg",
    "overlapping_batches",
    "scale_by_multibatch_lbfgs",
    "scale_by_newton_cg",
    "scale_by_sqn",
    "slbfgs",
    "sqn",
    "svrg",
]
