"""The quadratic model of Newton-CG: its options, the loss that it stands for, and products with its curvature."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import optax
from jax.typing import ArrayLike

from optax_igr._core import derivatives, hyperparameters
from optax_igr._core.hyperparameters import Scalar

Curvature = Literal["hessian", "gauss_newton"]
CURVATURES: tuple[Curvature, ...] = get_args(Curvature)


class NewtonOptions(NamedTuple):
    """How a direction is solved for and judged."""

    damping: Scalar
    max_steps: int
    tolerance: optax.ScalarOrSchedule
    curvature: Curvature
    hvp: derivatives.Mode
    radius: optax.ScalarOrSchedule | None
    warm_start: bool
    max_backtracking_steps: int | jax.Array

    def checked(self, name: str) -> "NewtonOptions":
        """Returns the options with schedules that stay in range; raises a `ValueError` that names a bad one."""
        hyperparameters.check_scalar(name, "damping", self.damping, at_least=0)
        hyperparameters.check_positive_integer(name, "max_steps", self.max_steps)
        hyperparameters.check_choice(name, "curvature", self.curvature, CURVATURES)
        derivatives.check_mode(name, self.hvp, self.radius)
        # `optax.inject_hyperparams` makes an array of every number that it is not told to leave alone.
        if not isinstance(self.max_backtracking_steps, jax.Array):
            hyperparameters.check_integer(
                name, "max_backtracking_steps", self.max_backtracking_steps, at_least=0
            )
        return self._replace(
            damping=hyperparameters.checked(name, "damping", self.damping, at_least=0),
            tolerance=hyperparameters.checked(name, "tolerance", self.tolerance, at_least=0),
        )


def loss_and_product(
    name: str,
    options: NewtonOptions,
    count: ArrayLike,
    params: Any,
    *,
    value_fn: Any = None,
    curvature_value_fn: Any = None,
    outputs_fn: Any = None,
    output_loss_fn: Any = None,
    **unused,
) -> tuple[derivatives.ValueFn, derivatives.LinearMap]:
    """Returns the loss that judges a step, and the products with the curvature."""
    del unused
    if options.curvature == "gauss_newton":
        loss_fn = value_fn or (lambda p: output_loss_fn(outputs_fn(p)))
        return loss_fn, derivatives.gauss_newton_operator(
            outputs_fn, output_loss_fn, params, name=name
        )
    return value_fn, derivatives.hessian_operator(
        curvature_value_fn or value_fn,
        params,
        mode=options.hvp,
        radius=hyperparameters.optional_value_at(options.radius, count),
        name=name,
    )
