r"""How much curvature an optimizer bears before its steps diverge, and where its series ends.

An optimizer whose update is :math:`-h \sum_k w_k g_{t-k}` oscillates with period two at the edge
of stability: :math:`\theta_t = \bar\theta + (-1)^t \delta`. The update of such a path along a
direction of curvature :math:`\lambda` is :math:`-(-1)^t h\lambda A\,\delta` with the alternating sum
:math:`A = \sum_k (-1)^k w_k`, and it must be :math:`-2 (-1)^t \delta`:

.. math:: \lambda = \frac{2}{h A}

This is :math:`2/h` for gradient descent, :math:`(2+2\beta)/h` for heavy ball,
:math:`(2+2\beta)/((1+2\beta)h)` for Nesterov's momentum; a moving average multiplies by
:math:`1/(1-\beta)`. With a preconditioner :math:`\lambda` is an eigenvalue of :math:`P^{-1} H`.

References:
  Cohen et al, `Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability
  <https://arxiv.org/abs/2103.00065>`_, 2021
  Cohen et al, `Adaptive Gradient Methods at the Edge of Stability
  <https://arxiv.org/abs/2207.14484>`_, 2022
"""

import jax.numpy as jnp

from optax_igr._core.hyperparameters import Scalar


def stability_threshold(momentum: Scalar, nesterov: bool, averaged: bool) -> Scalar:
    r"""Returns :math:`2/A`, the largest stable :math:`h\lambda`, for the weights of past gradients."""
    alternating = 1 / (1 + momentum)
    if nesterov:
        alternating = 1 + momentum * alternating
    if averaged:
        alternating = (1 - momentum) * alternating
    return 2 / alternating


def series_radius(momentum: Scalar, nesterov: bool, averaged: bool) -> Scalar:
    r"""Returns the :math:`h\lambda` up to which the series in the step size converges on a quadratic.

    It is where the steps begin to oscillate: 1, :math:`(1-\sqrt\beta)^2` for heavy ball and
    :math:`((1-\beta)/(1+\beta))^2` for Nesterov's momentum.
    """
    root = (1 - momentum) / (1 + momentum) if nesterov else 1 - jnp.sqrt(momentum)
    return root**2 / (1 - momentum) if averaged else root**2
