# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Backward error analysis: which path do the steps lie on, and to what order?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/optax-igr/optax_igr/blob/main/notebooks/02_backward_error_analysis.ipynb)
#
# The usual question about a numerical method is: how far are its steps from the solution of $\dot y = f(y)$? Backward
# error analysis asks it the other way round: **of which other equation are the steps the exact solution?** For
# gradient descent the first correction of $f = -\nabla L$ is implicit gradient regularisation (notebook 01). Here we
# take the whole series,
#
# 1. compute it as code, order by order, and check each order by its slope,
# 2. do the same for momentum and for Adam, whose corrections have other constants and even another sign,
# 3. see that minibatches follow one flow or another depending on how they are drawn,
# 4. find where the series ends: at steps with $h\lambda = 1$, and at networks with kinks,
# 5. and follow the steps past that, to the edge of stability.
#
# You need to know `jax.grad`, and what a Taylor series is.

# %%
# In Colab the package and the style of the figures are not there yet.
import importlib.util
import subprocess
import sys
import urllib.request

if importlib.util.find_spec("optax_igr") is None:
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "optax_igr[notebooks]"], check=True)
    raw = "https://raw.githubusercontent.com/optax-igr/optax_igr/main/notebooks"
    urllib.request.urlretrieve(f"{raw}/figures.mplstyle", "figures.mplstyle")

# %%
import functools
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import optax_igr
from optax_igr import flows

jax.config.update("jax_enable_x64", True)  # errors of order six are below float32's rounding
plt.style.use("figures.mplstyle")
print("optax_igr", optax_igr.__version__, "on JAX", jax.__version__)

# %% [markdown]
# ## 1. The Bernoulli series, as code
#
# Let $y(t)$ pass through all iterates, $y(t + h) = y(t) + h f(y(t))$. A shift in time is the exponential of the
# derivative, $y(t + h) = e^{h\,d/dt}\,y(t)$ (that *is* Taylor's series), so $(e^{h\,d/dt} - 1)\,y = h f(y)$, and,
# divided,
#
# $$\dot y = \frac{h\,d/dt}{e^{h\,d/dt} - 1}\, f(y) = \sum_{k} \frac{B_k h^k}{k!}\,\frac{d^k}{dt^k} f(y)
# = f - \frac h2 \dot f + \frac{h^2}{12} \ddot f - \frac{h^4}{720} f^{(4)} + \dots$$
#
# with the Bernoulli numbers $B_k$. The time derivatives on the right are again along $y$, whose velocity is what we
# are looking for; put in order by powers of $h$, the recursion closes. `flows.modified_flow(field, h, order)` is this
# recursion, for any smooth field and any pytree. Three fields of which the series is known:
#
# - a clock beside a power, $(\dot t, \dot y) = (1, t^k)$: only the $k$-th derivative is left at $t = 0$, and the
#   coefficient of $h^k$ is $B_k$ itself;
# - growth, $\dot y = y$: the steps are $(1+h)^n$, so the field is $\log(1+h)/h\; y$ with coefficients $(-1)^k/(k+1)$;
# - $\dot y = y^2$, with $1, -1, \frac32, -\frac83, \frac{31}{6}, \dots$ (Hairer, Lubich and Wanner, chapter IX).


# %%
def coefficients(field, at, orders=7):
    sums = [flows.modified_flow(field, 1.0, order)(at) for order in range(orders)]
    return [Fraction(float(c)).limit_denominator(1000) for c in np.diff(sums, prepend=0.0)]


def bernoulli(k):
    def clock_and_power(z):
        return jnp.ones_like(z[0]), z[0] ** k

    _, velocity = flows.modified_flow(clock_and_power, 1.0, order=k)((0.0, 0.0))
    return Fraction(float(velocity)).limit_denominator(1000)


print("B_k      ", *(f"{bernoulli(k)!s:>7}" for k in range(7)))
print("growth   ", *(f"{c!s:>7}" for c in coefficients(lambda y: y, 1.0)))
print("y' = y^2 ", *(f"{c!s:>7}" for c in coefficients(lambda y: y**2, 1.0, orders=5)))

# %% [markdown]
# A field that is truncated after $h^n$ must agree with one step to $O(h^{n+2})$. A wrong coefficient of $h^k$ would
# leave an error of order $h^{k+1}$, and would show as a wrong slope. Gradient descent on the model of notebook 01
# with two weights, $E = \frac12(0.6 - ab)^2$:


# %%
def two_weights(params):
    a, b = params
    return (0.6 - a * b) ** 2 / 2


def descent(value_fn):
    return lambda params, h: jax.tree.map(
        lambda p, g: p - h * g, params, jax.grad(value_fn)(params)
    )


start, sizes = jnp.array([1.4, 1.1]), [0.04, 0.02, 0.01, 0.005]
field = flows.gradient_flow(two_weights)
fig, axis = plt.subplots(figsize=(5.6, 3.8))
for order, marker in enumerate("os^Dv"):
    found = flows.convergence_order(
        descent(two_weights), lambda h, n=order: flows.modified_flow(field, h, n), start, sizes
    )
    label = f"order {order}: slope {found.slope:.2f}"
    axis.loglog(found.step_sizes, found.errors, marker + "-", label=label)
axis.set(xlabel="step size h", ylabel="distance of one step from the flow")
axis.set_title("One step of gradient descent against five flows")
axis.set_xticks(sizes, labels=map(str, sizes))
axis.minorticks_off()
axis.legend(bbox_to_anchor=(1, 1), loc="upper left")
plt.show()

# %% [markdown]
# ## 2. Momentum and Adam
#
# An optimizer with a memory follows a flow as well, once the memory has forgotten its start. For steps $-h \sum_k
# w_k\, g_{t-k}$ the gradients are old ones, from higher up on the path, and this adds to the correction:
#
# $$\dot\theta = -S\,\nabla\big(L + c\,\|\nabla L\|^2\big), \qquad S = \textstyle\sum_k w_k,\qquad
# c = \frac{hS}{4}\,\Big(1 + 2\,\frac{\sum_k k\,w_k}{\sum_k w_k}\Big) .$$
#
# Heavy ball with $\beta$ has $c = \frac h4 \frac{1+\beta}{(1-\beta)^2}$. At the same effective rate $h/(1-\beta)$,
# momentum thus regularises more:

# %%
print("   β    c at the effective rate 0.1, heavy ball and Nesterov")
for momentum in (0.0, 0.5, 0.9, 0.99):
    rate = 0.1 * (1 - momentum)
    kinds = (
        optax_igr.igr_coefficient(rate, momentum=momentum, nesterov=nesterov)
        for nesterov in (False, True)
    )
    print(f"{momentum:5.2f}", *(f"{c:8.4f}" for c in kinds))

# %% [markdown]
# Adam divides by the root of the averaged squares. The correction is then about the **1-norm** of the gradient, and
# its sign depends on the two memories (Cattaneo et al, 2024), with $\|v\|_{1,\epsilon} = \sum_i \sqrt{v_i^2 +
# \epsilon}$:
#
# $$\dot\theta_j = -\frac{g_j + b_j}{\sqrt{g_j^2 + \epsilon}}, \quad
# b_j = \frac h2 \Big[ \frac{1+\beta_1}{1-\beta_1} - \frac{1+\beta_2}{1-\beta_2}
# + \frac{1+\beta_2}{1-\beta_2}\,\frac{\epsilon}{g_j^2 + \epsilon} \Big]\, \partial_j \|\nabla L\|_{1,\epsilon} .$$
#
# With the usual $\beta_1 = 0.9$, $\beta_2 = 0.999$ and $g_j^2 \gg \epsilon$ the bracket is $19 - 1999 < 0$: Adam is
# drawn **towards** steep places, to this order. We let each optimizer of Optax run on a small tanh network until its
# memory has settled, and compare the next stretch with its flow, without and with the correction. The slope must rise
# from 1 to 2.


# %%
def tanh_problem(width=6, num_images=64):
    pixels, digits = load_digits(return_X_y=True)
    x, y = pixels[:num_images] / 16, digits[:num_images]
    rng = np.random.default_rng(0)
    start = {"hidden": rng.normal(size=(64, width)) / 8, "head": rng.normal(size=(width, 10)) / 2}

    def value_fn(params):
        logits = jnp.tanh(x @ params["hidden"]) @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return value_fn, jax.tree.map(jnp.asarray, start)


digits_loss, digits_start = tanh_problem()


def run(optimizer, num_steps, params):
    def step(_, carry):
        params, state = carry
        updates, state = optimizer.update(jax.grad(digits_loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, num_steps, step, (params, optimizer.init(params)))


# %%
BETA, B1, B2, EPS = 0.6, 0.6, 0.8, 1e-3
rates = np.array([0.02, 0.01, 0.005, 0.0025])
heavy_ball = functools.partial(flows.optimizer_flow, digits_loss, momentum=BETA)
optimizers = {
    "heavy ball, β = 0.6": (lambda h: optax.sgd(h, momentum=BETA), heavy_ball),
    "Adam, β = 0.6, 0.8, ε = 1e-3 in the root": (
        lambda h: optax.adam(h, b1=B1, b2=B2, eps=0.0, eps_root=EPS),
        lambda h, order: flows.adam_flow(digits_loss, h, B1, B2, EPS, order=order),
    ),
}


@functools.partial(jax.jit, static_argnames=("name", "order"))
def distance(h, settling, num_steps, *, name, order):
    make, flow = optimizers[name]
    joined, _ = run(make(h), settling, digits_start)
    stepped, _ = run(make(h), settling + num_steps, digits_start)
    flowed = flows.integrate(flow(h, order=order), joined, h * num_steps, rtol=1e-9, atol=1e-9)
    return optax.tree.norm(optax.tree.sub(stepped, flowed))


# %%
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.5), sharey=True)
for axis, name in zip(axes, optimizers, strict=True):
    for order, style, what in ((0, "o-", "without"), (1, "s--", "with")):
        errors = [
            distance(h, round(1.2 / h), round(0.6 / h), name=name, order=order) for h in rates
        ]
        slope = np.polyfit(np.log(rates), np.log(errors), 1)[0]
        axis.loglog(rates, errors, style, label=f"{what} correction: slope {slope:.2f}")
    axis.set(title=name, xlabel="learning rate h")
    axis.set_xticks(rates, labels=map(str, rates))
    axis.minorticks_off()
    axis.legend(loc="upper left")
axes[0].set_ylabel("distance of steps and flow after time 0.6")
axes[0].set_ylim(top=0.2)
plt.show()

# %% [markdown]
# ## 3. How the batches are drawn
#
# The loss is a mean of $M$ batch losses $L_b$, and an epoch takes $M$ steps. In the mean over the order of the
# batches,
#
# - **shuffled** (each batch once an epoch) follows $L + \frac h4 \frac1M \sum_b \|\nabla L_b\|^2$ (Smith et al,
#   2021),
# - **with replacement** follows $L + \frac h4 \|\nabla L\|^2$, as the full batch does: the mean over the draws is
#   taken step by step.
#
# Three batches on a line are few enough to take the mean over *all* 6 orders and all 27 sequences, so that no noise
# is left. The wrong flow has slope 2 for an epoch, the right one 3.

# %%
batch_losses = [
    lambda x: jnp.sin(x) + x**2 / 2,
    lambda x: jnp.cos(2 * x) / 2,
    lambda x: (x - 1) ** 2,
]
NUM_BATCHES = len(batch_losses)


def mean_epoch(sequences):
    def epoch(x, duration):
        ends = []
        for sequence in sequences:
            end = x
            for batch in sequence:
                end = end - duration / NUM_BATCHES * jax.grad(batch_losses[batch])(end)
            ends.append(end)
        return sum(ends) / len(ends)

    return epoch


epochs = {
    "shuffled": mean_epoch(list(itertools.permutations(range(NUM_BATCHES)))),
    "with_replacement": mean_epoch(list(itertools.product(range(NUM_BATCHES), repeat=NUM_BATCHES))),
}

# %%
durations = [0.08, 0.04, 0.02, 0.01]
fig, axes = plt.subplots(1, 2, figsize=(8, 3.3), sharey=True)
for axis, (drawn, epoch) in zip(axes, epochs.items(), strict=True):
    for flow, style in zip(epochs, ("o-", "s--"), strict=True):
        found = flows.convergence_order(
            epoch,
            lambda t, flow=flow: flows.minibatch_flow(batch_losses, t / NUM_BATCHES, sampling=flow),
            jnp.array(0.3),
            durations,
        )
        label = f"flow of {flow.replace('_', ' ')}: slope {found.slope:.2f}"
        axis.loglog(found.step_sizes, found.errors, style, label=label)
    axis.set(title=f"batches drawn {drawn.replace('_', ' ')}", xlabel="length of the epoch, h M")
    axis.set_xticks(durations, labels=map(str, durations))
    axis.minorticks_off()
    axis.legend()
axes[0].set(ylabel="distance of the mean epoch from the flow", ylim=(None, 2e-3))
plt.show()

# %% [markdown]
# ## 4. Where the series ends
#
# On a parabola $L = \lambda x^2/2$ a step multiplies $x$ by $1 - h\lambda$, and the flow of order $n$ by
# $\exp\big(-\sum_{k=0}^{n} \frac{(h\lambda)^{k+1}}{k+1}\big)$: the series of $\log(1 - h\lambda)$, which converges
# for $h\lambda < 1$ alone. Beyond, the step lands on the other side of the minimum. No real flow on a line can do
# that, however many orders it has, because it would have to pass through the minimum, where it stands still.
# `principal_flow` sums the whole series; beyond 1 it is complex, with $\log(-1) = i\pi$, and turns around the minimum
# in the complex plane.


# %%
def parabola(x):
    return x**2 / 2


steps = np.linspace(0.02, 2.3, 115)
modified = {
    order: [np.exp(h * flows.modified_flow(lambda x: -x, h, order)(1.0)) for h in steps]
    for order in range(5)
}
principal = [
    np.exp(h * complex(flows.principal_flow(parabola, h, branch="complex")(1.0))).real
    for h in steps
]

fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.6))
for order, values in modified.items():
    axes[0].plot(steps, values, label=f"flow of order {order}")
    axes[1].semilogy(steps, np.abs(values - (1 - steps)), label=f"flow of order {order}")
axes[0].plot(steps, 1 - steps, "k--", label="gradient descent, 1 − hλ")
axes[0].plot(steps[::6], principal[::6], "k.", label="principal flow, real part")
axes[0].set(ylabel="factor on x in one step", title="One step on a parabola")
axes[1].set(
    ylabel="distance of flow and step",
    ylim=(1e-7, 3),
    title="Beyond 1 an error stays, whatever the order",
)
for axis in axes:
    axis.axvline(1, color="0.6", linestyle=":")
    axis.set_xlabel("step size × curvature, hλ")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
plt.show()

# %% [markdown]
# `diagnostics.implicit_regularization` and `diagnostics.monitor_drift` tell during training where you are:
# `series_is_valid` and `scaled_curvature` measure $h\lambda$ along the gradient. Real training often lives beyond 1,
# at $h\lambda_{max} \approx 2$, the edge of stability (Cohen et al, 2021): there this theory says nothing about the
# steepest direction.
#
# ## 5. Why ReLU has no order
#
# The series asks for derivatives. A ReLU network is made of smooth pieces with kinks between them, where the gradient
# jumps. The correction is right within each piece. But a step that crosses a kink goes on with the gradient from
# before it, and ends $O(h)$ from every one of these flows. A share $O(h)$ of all steps crosses one, so the **mean**
# error of a step is $O(h^2)$, and no correction mends that. The smallest network with a kink has one weight, one ReLU
# and some weight decay,
#
# $$L(\theta) = \frac{\theta^2}{2} + 0.6\,\mathrm{relu}(\theta - 0.5) ,$$
#
# and its smooth twin has a softplus instead. We take one step from each of many starts on the right of the kink.


# %%
def one_unit(theta, activation):
    return theta**2 / 2 + 0.6 * activation(theta - 0.5)


def softplus(x):
    return jax.nn.softplus(10 * x) / 10


@functools.partial(jax.jit, static_argnames="activation")
def step_errors(starts, h, correction, *, activation):
    value_fn = functools.partial(one_unit, activation=activation)
    field = flows.modified_flow(flows.gradient_flow(value_fn), correction)  # at 0, gradient flow

    def error(theta):
        flowed = flows.integrate(field, theta, h, rtol=1e-10, atol=1e-10)
        return jnp.abs(descent(value_fn)(theta, h) - flowed)

    return jax.lax.map(error, starts)


# %%
starts, sizes = np.linspace(0.5, 1.1, 300), np.array([0.08, 0.04, 0.02, 0.01])
fig, axes = plt.subplots(1, 3, figsize=(11, 3.4))
for axis, activation in zip(axes[1:], (softplus, jax.nn.relu), strict=True):
    for uses, style, what in ((0, "o-", "without"), (1, "s--", "with")):
        errors = [step_errors(starts, h, uses * h, activation=activation) for h in sizes]
        means = np.mean(errors, axis=1)
        slope = np.polyfit(np.log(sizes), np.log(means), 1)[0]
        axis.loglog(sizes, means, style, label=f"{what} correction: slope {slope:.2f}")
    axes[0].semilogy(starts, errors[0], label=f"{activation.__name__}, with correction")
    axis.set(title=activation.__name__, xlabel="step size h", ylabel="mean error of a step")
    axis.set_xticks(sizes, labels=map(str, sizes))
    axis.minorticks_off()
    axis.legend()
axes[0].set(title="A step of 0.08", xlabel="start, weight θ", ylabel="error of the step")
axes[0].legend()
plt.show()

# %% [markdown]
# Away from the kink both networks have errors that the correction makes small. A ReLU step that crosses the kink ends
# up to two orders of magnitude further off, and the mean error keeps slope 2 (nearly: the correction still helps in
# the smooth parts, whose share grows as $h$ falls). Networks with ReLU follow the modified flow only roughly: it is
# the trend of many small pieces, not a path with an order.
#
# ## 6. Past the edge of the series: central flow and edge flow
#
# Real networks train beyond $h\lambda = 1$: their largest curvature rises to $2/h$ and stays there, the **edge of
# stability**. Gradient descent then alternates about an average, $\theta_t = c + (-1)^t \rho u$, and the oscillation
# pushes the average to where the loss is flatter. Two parameters show it: a parabola along $x$ whose curvature $y$
# the loss pushes up,
#
# $$L(x, y) = \tfrac12\, y\, x^2 + 0.01\, (y - 2.4)^2.$$
#
# Gradient flow runs to $y = 2.4$. `flows.edge_flow` follows center, direction and magnitude of
# the oscillation. `flows.central_flow` averages over its bursts and follows the mean: it keeps $y$ at $2/h$, with an
# oscillation whose variance is $X = -2\,\langle S', R' \rangle / \|S'\|^2 = -2 R'(y)$, here .016 at $y = 2$.

# %%
h, count = 1.0, 400


def rising_valley(params):
    x, y = params
    return y * x**2 / 2 + 0.01 * (y - 2.4) ** 2


start = jnp.array([0.01, 1.7])
_, iterates = jax.lax.scan(
    lambda p, _: (p - h * jax.grad(rising_valley)(p), p), start, length=count
)
central = flows.central_flow(rising_valley, h, num_directions=1)
_, central_info, central_path = central.trajectory(start, count, observe=lambda p: p)
edge = flows.edge_flow(rising_valley, h, initial_magnitude=0.01)
_, edge_info, edge_path = edge.trajectory(start.at[0].set(0.0), count, observe=lambda p: p)
plain = flows.central_flow(rising_valley, h, num_directions=1, correction=False, threshold=1e9)
_, _, plain_path = plain.trajectory(start, count, observe=lambda p: p)

# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 3.4))
axes[0].plot(h * iterates[:, 1] / 2, label="gradient descent")
axes[0].plot(h * plain_path[:, 1] / 2, ":", label="gradient flow")
axes[0].plot(h * central_path[:, 1] / 2, label="central flow")
axes[0].plot(h * edge_path[:, 1] / 2, "k--", lw=1, label="edge flow")
axes[0].set(title="Sharpness", xlabel="step", ylabel="h λ / 2")
axes[1].semilogy(jnp.abs(iterates[:, 0]), label="gradient descent, |x|")
axes[1].semilogy(jnp.sqrt(central_info.covariance_eigenvalues[:, 0]), label="central flow, √X")
axes[1].semilogy(edge_info.magnitude, "k--", lw=1, label="edge flow, ρ")
axes[1].set(title="Oscillation", xlabel="step", ylabel="size", ylim=(1e-6, 2))
for axis in axes:
    axis.legend()
plt.show()

late = slice(count // 2, count)
predicted = float(central_info.covariance_eigenvalues[-1, 0])
print(f"mean of x² over the second half: {float(jnp.mean(iterates[late, 0] ** 2)):.3f} measured, ")
print(f"{predicted:.3f} by central flow, {-2 * 0.02 * (2 - 2.4):.3f} in closed form")
print(f"mean sharpness there: {float(jnp.mean(iterates[late, 1])) * h / 2:.3f} (2/h is 1)")
np.testing.assert_allclose(central_path[-1, 1], 2 / h, rtol=1e-6)
np.testing.assert_allclose(edge_path[:40, 1], iterates[:40, 1], rtol=1e-6)

# %% [markdown]
# `optax_igr.diagnostics.monitor_sharpness_ratio(optimizer, h)` says which of the three regimes a training is in, for
# one Hessian-vector product every ten steps. On networks, and for Adam and RMSProp, `python -m benchmarks edge`
# draws the same figure.
#
# ## What this does not show
#
# - The series is **asymptotic**. On a parabola it converges for $h\lambda < 1$; for other losses, more orders may be
#   worse, at any $h$.
# - The flows of momentum and Adam hold after their memory has settled, and while a gradient entry changes little
#   within it. The memories here are short, 2.5 and 5 steps, so that the flow can be seen within few steps; with
#   Adam's usual 1000 steps of memory it describes long, slow stretches of a training only.
# - Adam's correction is for $\epsilon$ **inside** the root, `optax.adam(eps=0, eps_root=...)`.
# - Minibatch flows are statements about a mean. Single runs spread around it by $O(\sqrt h)$, which is more.
#
# ## Bigger
#
# `tanh_problem(width=128, num_images=1797)` takes all digits; the slopes stay, the seconds grow. Order 5 costs 42
# gradients an evaluation (`flows.flow_from_step` needs six steps for it and no derivative, of any optimizer). `python
# -m benchmarks flows` draws the figures of this notebook with a larger network and the drift over a training. For
# MNIST fetch it by `python -m benchmarks download mnist --data-dir data` and take `x, y` from
# `benchmarks.problems.PROBLEMS["mnist"](pathlib.Path(os.environ["OPTAX_IGR_DATA"])).train`. A GPU needs no change;
# float64 is slow on most of them.
#
# ## References
#
# - Hairer, Lubich, Wanner, [Geometric Numerical Integration](https://doi.org/10.1007/3-540-30666-8), 2006, chapter
#   IX: backward error analysis.
# - Barrett, Dherin, [Implicit Gradient Regularization](https://arxiv.org/abs/2009.11162), 2021: its first order, for
#   descent.
# - Ghosh et al, [Implicit regularization in Heavy-ball momentum](https://arxiv.org/abs/2302.00849), 2023: momentum.
# - Cattaneo, Klusowski, Shigida, [On the Implicit Bias of Adam](https://arxiv.org/abs/2309.00079), 2024: Adam.
# - Smith et al, [On the Origin of Implicit Regularization in Stochastic Gradient
#   Descent](https://arxiv.org/abs/2101.12176), 2021: shuffled batches.
# - Rosca et al, [On a continuous time model of gradient descent](https://arxiv.org/abs/2302.01952), 2023: the
#   principal flow.
# - Cohen et al, [Gradient Descent on Neural Networks Typically Occurs at the Edge of
#   Stability](https://arxiv.org/abs/2103.00065), 2021.
# - Cohen et al, [Understanding Optimization in Deep Learning with Central
#   Flows](https://arxiv.org/abs/2410.24206), 2025.
# - Marion, [Edge Flow](https://arxiv.org/abs/2606.18080), 2026.
# - The operator series of section 1 is the one of seeds 000 and 001 of this project, two Chinese notes on the paper
#   of Barrett and Dherin that name no address of their own; they stop after its first term.
