"""In which direction: Newton-CG, stochastic and multi-batch L-BFGS, and variance reduction."""

from optax_igr.curvature.batches import overlapping_batches as overlapping_batches
from optax_igr.curvature.lbfgs_memory import LBFGSMemory as LBFGSMemory
from optax_igr.curvature.multibatch_lbfgs import MultibatchLBFGSState as MultibatchLBFGSState
from optax_igr.curvature.multibatch_lbfgs import multibatch_lbfgs as multibatch_lbfgs
from optax_igr.curvature.multibatch_lbfgs import (
    scale_by_multibatch_lbfgs as scale_by_multibatch_lbfgs,
)
from optax_igr.curvature.newton_cg import NewtonCGState as NewtonCGState
from optax_igr.curvature.newton_cg import newton_cg as newton_cg
from optax_igr.curvature.newton_cg import scale_by_newton_cg as scale_by_newton_cg
from optax_igr.curvature.stochastic_lbfgs import StochasticLBFGSState as StochasticLBFGSState
from optax_igr.curvature.stochastic_lbfgs import (
    scale_by_stochastic_lbfgs as scale_by_stochastic_lbfgs,
)
from optax_igr.curvature.stochastic_lbfgs import sqn as sqn
from optax_igr.curvature.svrg import SVRGState as SVRGState
from optax_igr.curvature.svrg import slbfgs as slbfgs
from optax_igr.curvature.svrg import svrg as svrg
