"""How far the step goes: learned by exponentiated gradients, bounded by curvature, set per layer."""

from optax_igr.step_size.gain import ScaleByGainState as ScaleByGainState
from optax_igr.step_size.gain import scale_by_gain as scale_by_gain
