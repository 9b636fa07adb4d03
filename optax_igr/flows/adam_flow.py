r"""The flow of Adam and RMSProp, to first order in the learning rate.

With :math:`\|v\|_{1,\epsilon} = \sum_i \sqrt{v_i^2 + \epsilon}` and :math:`g = \nabla L`,

.. math::
  \dot\theta_j = -\frac{g_j + b_j}{\sqrt{g_j^2 + \epsilon}}, \qquad
  b_j = \frac{h}{2} \Big(\frac{1+\beta_1}{1-\beta_1} - \frac{1+\beta_2}{1-\beta_2}
  + \frac{1+\beta_2}{1-\beta_2} \frac{\epsilon}{g_j^2 + \epsilon}\Big)\, \partial_j
  \|g\|_{1,\epsilon}.

At the usual :math:`\beta_2 > \beta_1`, gradients larger than :math:`\sqrt\epsilon` are
anti-penalised.

References:
  Cattaneo, Klusowski, Shigida, `On the Implicit Bias of Adam
  <https://arxiv.org/abs/2309.00079>`_, 2024
"""

import jax
import jax.numpy as jnp

from optax_igr._core import derivatives, hyperparameters, trees
from optax_igr._core.hyperparameters import Scalar
from optax_igr.flows import _leaves


def adam_flow(
    value_fn: derivatives.ValueFn,
    learning_rate: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps_root: Scalar = 1e-8,
    *,
    order: int = 1,
    hvp: derivatives.Mode = "auto",
) -> _leaves.Field:
    r"""The flow that `optax.adam(learning_rate, b1, b2, eps=0, eps_root=eps_root)` follows.

    It holds when the moments have forgotten their start, after a few times :math:`1/(1-\beta_2)`
    steps, and when a gradient entry changes little within that time. RMSProp is `b1=0`.
    `eps_root` stands inside the root: Adam's usual `eps` outside has another first-order term.

    Args:
      value_fn: `params -> scalar`.
      learning_rate: the number `h`; time is the number of steps times `h`.
      b1: decay of the first moment, at least 0 and below 1.
      b2: decay of the second moment, at least 0 and below 1.
      eps_root: what is added to the second moment under the root, above 0.
      order: 1, or 0 for the flow :math:`-g_j / \sqrt{g_j^2 + \epsilon}` without the correction.
      hvp: the mode of the Hessian-vector product: "auto", an exact one, or a difference.

    Returns:
      A field. An integer or boolean leaf has velocity zero.

    Raises:
      ValueError: if an argument is out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optax_igr import flows
      >>> field = flows.adam_flow(lambda x: jnp.sum(x**2) / 2, learning_rate=0.01, eps_root=1e-6)
      >>> print(f"{field(2.0):.4f}")
      3.9500

    References:
      Cattaneo, Klusowski, Shigida, `On the Implicit Bias of Adam
      <https://arxiv.org/abs/2309.00079>`_, 2024
    """
    hyperparameters.check_scalar("adam_flow", "learning_rate", learning_rate)
    hyperparameters.check_scalar("adam_flow", "b1", b1, at_least=0, below=1)
    hyperparameters.check_scalar("adam_flow", "b2", b2, at_least=0, below=1)
    hyperparameters.check_scalar("adam_flow", "eps_root", eps_root, above=0)
    hyperparameters.check_choice("adam_flow", "order", order, (0, 1))
    derivatives.check_mode("adam_flow", hvp)
    first, second = (1 + b1) / (1 - b1), (1 + b2) / (1 - b2)

    def velocity(params, fill):
        def value(p):
            return value_fn(fill(p))

        gradient = derivatives.gradient(value, params)
        size = jax.tree.map(lambda g: jnp.sqrt(jnp.abs(g) ** 2 + eps_root), gradient)
        direction = jax.tree.map(jnp.divide, gradient, size)
        if order == 0:
            return trees.scale(-1, direction)
        # The gradient of the smoothed 1-norm of g is H (g / size).
        norm_gradient = derivatives.hessian_vector_product(
            value, params, direction, mode=hvp, name="adam_flow"
        )

        def leaf(d, s, n):
            bias = learning_rate / 2 * (first - second + second * eps_root / s**2) * n
            return (-d - bias / s).astype(d.dtype)

        return jax.tree.map(leaf, direction, size, norm_gradient)

    return _leaves.on_whole_tree("adam_flow", velocity)
