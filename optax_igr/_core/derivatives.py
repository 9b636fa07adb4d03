r"""Gradients, Hessian-vector and Gauss-Newton-vector products of a function of a pytree.

Three exact modes and three differences (see `differences`) compute :math:`Hv`; all cost about one more gradient or two:

.. math::
  \text{forward\_over\_reverse: } \partial_v (\nabla L) \qquad
  \text{reverse\_over\_forward: } \nabla (\partial_v L) \qquad
  \text{reverse\_over\_reverse: } \nabla \langle \nabla L, v \rangle

The mode `auto` takes the first of the exact modes that JAX can differentiate the loss by, and else a central
difference. The order is that of the cost. A step with the gradient and one product took, as a multiple of the
gradient (JAX 0.10 and 0.12 on two CPU cores, medians of interleaved runs):

==================== ============ ============ ===========
mode                 MLP          convolutions transformer
==================== ============ ============ ===========
forward_over_reverse 2.13 to 2.18 2.39 to 2.48 2.93 to 3.14
reverse_over_forward 2.05 to 2.23 2.28 to 2.44 3.23 to 3.43
reverse_over_reverse 2.08 to 2.42 7.60 to 8.50 3.17 to 3.33
==================== ============ ============ ===========

The first two tie; the first also takes a `jax.custom_vjp` function, where its rule is JAX code.

A complex parameter counts as the pair of its real and imaginary parts. `jax.grad` returns the conjugate
of the direction of ascent; what this module returns is the direction of ascent, as Optax expects.

References:
  Pearlmutter, `Fast Exact Multiplication by the Hessian
  <https://www.bcl.hamilton.ie/~barak/papers/nc-hessian.pdf>`_, 1994
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax

from optax_igr._core import (
    differences,
    differentiability,
    exact_products,
    hyperparameters,
    trees,
)
from optax_igr._core.exact_products import ValueFn as ValueFn
from optax_igr._core.exact_products import gradient as gradient
from optax_igr._core.hyperparameters import Scalar
from optax_igr._core.trees import Tree

LinearMap = Callable[[Tree], Tree]

ExactMode = Literal["forward_over_reverse", "reverse_over_forward", "reverse_over_reverse"]
DifferenceMode = Literal["forward_difference", "backward_difference", "central_difference"]
Mode = Literal["auto", ExactMode, DifferenceMode]

EXACT_MODES: tuple[ExactMode, ...] = get_args(ExactMode)
DIFFERENCE_MODES: tuple[DifferenceMode, ...] = get_args(DifferenceMode)
MODES: tuple[Mode, ...] = ("auto", *EXACT_MODES, *DIFFERENCE_MODES)

# What `auto` takes where no mode is exact: of the differences the one with the smallest error.
LAST_RESORT: DifferenceMode = "central_difference"


def check_mode(name: str, mode: str, radius: Any = None) -> None:
    """Raises a `ValueError` that names `hvp` or `radius` and what was expected."""
    hyperparameters.check_choice(name, "hvp", mode, MODES)
    if radius is None:
        return
    if mode in EXACT_MODES:
        raise ValueError(
            f"{name}: `radius` is the length of a difference's perturbation; hvp={mode!r} is exact "
            f"and takes none. Choose hvp from {', '.join(DIFFERENCE_MODES)}, or 'auto', which uses it "
            "where no mode is exact."
        )
    hyperparameters.check_scalar_or_schedule(name, "radius", radius, above=0)


def hessian_vector_product(
    value_fn: ValueFn,
    params: Tree,
    vector: Tree,
    *,
    mode: Mode = "auto",
    radius: Scalar | None = None,
    gradient_at_params: Tree | None = None,
    name: str = "hessian_vector_product",
) -> Tree:
    r"""Returns :math:`H v` for the Hessian of `value_fn` at `params`.

    Args:
      value_fn: `params -> scalar`.
      params: floating or complex leaves.
      vector: a tree like `params`.
      mode: one of `MODES`.
      radius: the length of a difference's perturbation; None takes `differences.default_radius`.
      gradient_at_params: the gradient, where it is known; saves a one-sided difference its base.
      name: the public name of the caller, for errors and warnings.

    Returns:
      A tree like `params`. A difference takes both its gradients in float32 where a leaf is narrower,
      and returns float32 there: in bfloat16 the two would differ by rounding alone. What the loss itself computes
      in bfloat16 stays so, and a warning says what that costs.

    Raises:
      ValueError: where JAX cannot differentiate `value_fn` by the exact mode that was asked for.
    """
    failures: dict[str, Exception] = {}
    for exact_mode in _exact_modes(mode):
        like_params = trees.cast_like(vector, params)
        try:
            product = differentiability.traced(
                lambda p, v, m=exact_mode: exact_products.PRODUCTS[m](
                    exact_products.scalar(value_fn), p, v
                ),
                params,
                like_params,
            )
        except Exception as error:
            _note_failure(failures, exact_mode, error, value_fn, params)
            continue
        _announce(name, exact_mode, failures)
        return product(params, like_params)
    return differences.difference(
        exact_products.scalar(value_fn),
        exact_products.gradient_fn_of(value_fn),
        params,
        vector,
        mode=_difference_mode(name, mode, failures),
        radius=radius,
        gradient_at_params=gradient_at_params,
        name=name,
    )


def hessian_operator(
    value_fn: ValueFn,
    params: Tree,
    *,
    mode: Mode = "auto",
    radius: Scalar | None = None,
    gradient: Tree | None = None,
    name: str = "hessian_operator",
) -> LinearMap:
    r"""Returns :math:`v \mapsto Hv` for many products at one point; its argument may be wider than `params`.

    What does not depend on the vector is computed once: `forward_over_reverse` linearizes the gradient and
    `reverse_over_reverse` keeps its backward pass, so that each product costs 2 gradients instead of 2.7; a
    one-sided difference keeps its base.

    Args:
      value_fn: `params -> scalar`.
      params: floating or complex leaves.
      mode: one of `MODES`.
      radius: the length of a difference's perturbation; None takes `differences.default_radius`.
      gradient: the one at `params`, where it is known; saves a one-sided difference its base.
      name: the public name of the caller, for errors and warnings.

    Returns:
      A function from a tree like `params` to one, as :func:`hessian_vector_product` returns it.

    Raises:
      ValueError: where JAX cannot differentiate `value_fn` by the exact mode that was asked for.
    """
    failures: dict[str, Exception] = {}
    for exact_mode in _exact_modes(mode):
        for make in exact_products.OPERATORS[exact_mode]:
            try:
                product = differentiability.traced(
                    make(exact_products.scalar(value_fn), params), params
                )
            except Exception as error:
                _note_failure(failures, exact_mode, error, value_fn, params)
                continue
            failures.pop(exact_mode, None)
            _announce(name, exact_mode, failures)
            return lambda vector, product=product: product(trees.cast_like(vector, params))
    difference_mode = _difference_mode(name, mode, failures)
    wide, gradient_fn, base = trees.widen(params), exact_products.gradient_fn_of(value_fn), gradient
    if difference_mode != "central_difference" and (base is None or trees.is_narrow(params)):
        base = gradient_fn(wide)
    return lambda vector: differences.difference(
        exact_products.scalar(value_fn),
        gradient_fn,
        wide,
        vector,
        mode=difference_mode,
        radius=radius,
        gradient_at_params=base,
        name=name,
    )


def gauss_newton_vector_product(
    outputs_fn: Callable[[Tree], Tree],
    output_loss_fn: ValueFn,
    params: Tree,
    vector: Tree,
    *,
    name: str = "gauss_newton_vector_product",
) -> Tree:
    r"""Returns :math:`J^\top H_\ell J v` for outputs with Jacobian J and an output loss with Hessian H.

    References:
      Schraudolph, `Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent
      <https://doi.org/10.1162/08997660260028683>`_, 2002
    """
    return gauss_newton_operator(outputs_fn, output_loss_fn, params, name=name)(vector)


def gauss_newton_operator(
    outputs_fn: Callable[[Tree], Tree],
    output_loss_fn: ValueFn,
    params: Tree,
    *,
    name: str = "gauss_newton_operator",
) -> LinearMap:
    r"""Returns :math:`v \mapsto J^\top H_\ell J v` for many products at one point.

    A model without a forward derivative (a `jax.custom_vjp` function) takes :math:`Jv` as the transpose of its
    backward pass.

    Raises:
      ValueError: where JAX can compute neither.
    """
    outputs, transpose = jax.vjp(outputs_fn, params)
    failures: dict[str, Exception] = {}
    jacobian_product = None
    for kind, make in exact_products.JACOBIAN_PRODUCTS.items():
        try:
            jacobian_product = differentiability.traced(make(outputs_fn, params), params)
            break
        except Exception as error:
            failures[kind] = error
    if jacobian_product is None:
        raise ValueError(
            f"{name}: a Gauss-Newton product takes J v, and JAX cannot differentiate `outputs_fn` by "
            f"{differentiability.reasons(failures)}. Use the Hessian, whose products have other modes."
        )
    output_product = hessian_operator(output_loss_fn, outputs, name=name)

    def product(vector):
        curved = output_product(jacobian_product(trees.cast_like(vector, params)))
        curved = trees.cast_like(curved, outputs)
        return exact_products.conjugate(transpose(exact_products.conjugate(curved))[0])

    return product


def _exact_modes(mode: Mode) -> tuple[str, ...]:
    if mode in DIFFERENCE_MODES:
        return ()
    return EXACT_MODES if mode == "auto" else (mode,)


def _note_failure(failures, mode, error, value_fn, params):
    if not failures:
        # A loss that has no gradient either is at fault itself, and raises its own error here.
        gradient(value_fn, params)
    failures[mode] = error


def _announce(name: str, mode: str, failures: dict[str, Exception]) -> None:
    # The first two modes cost the same: there is nothing to say.
    if mode == "reverse_over_reverse" and failures:
        differentiability.announce(name, mode, failures, "It is exact, and can cost more.")


def _difference_mode(name: str, mode: Mode, failures: dict[str, Exception]) -> str:
    """Returns the difference that was asked for, or that `auto` falls back on; raises for an exact mode."""
    if mode in DIFFERENCE_MODES:
        return mode
    if mode == "auto":
        note = "It is not exact: see `differences.default_radius` for its accuracy."
        differentiability.announce(name, LAST_RESORT, failures, note)
        return LAST_RESORT
    raise ValueError(
        f"{name}: hvp={mode!r} cannot differentiate `value_fn`: "
        f"{differentiability.reason(failures[mode])}. Use hvp='auto', which takes the exact mode that the loss "
        "allows (a `jax.custom_vjp` function has no 'reverse_over_forward', one whose rule has no forward "
        "derivative may have 'reverse_over_reverse') and else a difference, which takes gradients alone."
    ) from failures[mode]
