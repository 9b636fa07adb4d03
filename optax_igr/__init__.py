"""Gradient transformations for JAX and Optax: what is minimized, in which geometry, how far, and in which direction.

Four rooms hold the transforms, and every one of their functions is a name of this module: `penalties`, `geometry`,
`step_size` and `curvature`. Four more are modules of their own, imported when they are first asked for:

- :mod:`optax_igr.flows`: the continuous path that an optimizer follows.
- :mod:`optax_igr.diagnostics`: what training did to a model.
- :mod:`optax_igr.operators`: a weight as a linear operator, its norms and their bounds.
- :mod:`optax_igr.flax`: adapters for Flax. It alone needs Flax.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from optax_igr._core.accumulated import accumulated
from optax_igr._core.value_functions import (
    fill_masked,
    mean_over,
    microbatched,
)
from optax_igr.curvature import (
    multibatch_lbfgs,
    newton_cg,
    overlapping_batches,
    scale_by_multibatch_lbfgs,
    scale_by_newton_cg,
    scale_by_sqn,
    slbfgs,
    sqn,
    svrg,
)
from optax_igr.geometry import (
    eg_plus_minus,
    exponentiate,
    exponentiate_hypentropy,
    exponentiate_signed,
    exponentiate_simplex,
    exponentiated_gradient,
    keep_params_in,
    projection_simplex_kl,
    projection_spectral_ball,
)
from optax_igr.operators import conv_operator, matrix_operator
from optax_igr.penalties import (
    add_gradient_penalty,
    add_igr,
    add_microbatch_gradient_penalty,
    add_schatten_decay,
    add_spectral_decay,
    cancel_igr,
    extrapolated_gradient_penalty,
    extrapolation_eval_params,
    hold_igr,
    igr_coefficient,
    modified_loss,
)
from optax_igr.step_size import (
    adapt_scale,
    egdd,
    factor_table,
    layerwise_decay,
    limit_by_curvature,
    scale_by_cauchy_step,
    scale_by_gain,
    scale_by_path,
)

if TYPE_CHECKING:
    # For type checkers and editors, which do not follow `__getattr__`.
    from optax_igr import diagnostics, flax, flows, operators

__version__ = importlib.metadata.version("optax_igr")

_MODULES = ("diagnostics", "flax", "flows", "operators")

__all__ = [
    "__version__",
    "accumulated",
    "adapt_scale",
    "add_gradient_penalty",
    "add_igr",
    "add_microbatch_gradient_penalty",
    "add_schatten_decay",
    "add_spectral_decay",
    "cancel_igr",
    "conv_operator",
    "diagnostics",
    "eg_plus_minus",
    "egdd",
    "exponentiate",
    "exponentiate_hypentropy",
    "exponentiate_signed",
    "exponentiate_simplex",
    "exponentiated_gradient",
    "extrapolated_gradient_penalty",
    "extrapolation_eval_params",
    "factor_table",
    "fill_masked",
    "flax",
    "flows",
    "hold_igr",
    "igr_coefficient",
    "keep_params_in",
    "layerwise_decay",
    "limit_by_curvature",
    "matrix_operator",
    "mean_over",
    "microbatched",
    "modified_loss",
    "multibatch_lbfgs",
    "newton_cg",
    "operators",
    "overlapping_batches",
    "projection_simplex_kl",
    "projection_spectral_ball",
    "scale_by_cauchy_step",
    "scale_by_gain",
    "scale_by_multibatch_lbfgs",
    "scale_by_newton_cg",
    "scale_by_path",
    "scale_by_sqn",
    "slbfgs",
    "sqn",
    "svrg",
]


def __getattr__(name: str) -> Any:
    # Imported at the first use: `flax` needs a package that the toolkit itself does not, and the others take time.
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
