"""The methods of the curvature room as their papers write them: dense matrices, NumPy, no ring buffer."""

import jax
import jax.numpy as jnp
import numpy as np


def inverse_hessian(pairs):
    """The BFGS matrix H of a list of pairs (s, y), oldest first, from γI of the newest."""
    size = len(pairs[-1][0])
    s, y = pairs[-1]
    matrix = s @ y / (y @ y) * np.eye(size)
    for s, y in pairs:
        rho = 1 / (y @ s)
        left = np.eye(size) - rho * np.outer(s, y)
        matrix = left @ matrix @ left.T + rho * np.outer(s, s)
    return matrix


def powell(pairs, s, y, c):
    """Powell's damped y, against B of the pairs so far."""
    if not pairs:
        return y
    curved = np.linalg.inv(inverse_hessian(pairs)) @ s
    if s @ y >= c * s @ curved:
        return y
    theta = (1 - c) * (s @ curved) / (s @ curved - s @ y)
    return theta * y + (1 - theta) * curved


def spd(size, condition, seed=0):
    """A symmetric matrix with eigenvalues from 1 to `condition`."""
    rng = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return vectors @ np.diag(np.geomspace(1, condition, size)) @ vectors.T


def logistic_regression(num_samples, size, seed=0):
    """A strongly convex loss that is not quadratic: (w, indices) -> mean loss of those samples."""
    rng = np.random.default_rng(seed)
    inputs = jnp.asarray(rng.normal(size=(num_samples, size)) * np.geomspace(1, 3, size))
    labels = jnp.asarray(np.sign(rng.normal(size=num_samples) + inputs @ rng.normal(size=size)))

    def loss_fn(w, indices):
        margins = labels[indices] * jnp.sum(inputs[indices] * w[None], axis=1)
        return jnp.mean(jnp.logaddexp(0, -margins)) + 0.01 * jnp.sum(w**2)

    return loss_fn


def derivatives(loss_fn):
    """Returns the compiled gradient and the compiled dense Hessian."""
    return jax.jit(jax.grad(loss_fn)), jax.jit(jax.hessian(loss_fn))
