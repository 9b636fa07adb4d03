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
# # Curvature: how far may a step go, in which direction, and what does it cost to know?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/optax-igr/optax_igr/blob/main/notebooks/05_curvature.ipynb)
#
# A gradient says which way is down, and nothing about how far. The second derivative says how far, and in the end it
# also corrects the direction: that is Newton's method. This notebook follows an essay on gradient descent and Newton's
# method (seed 003 of this project, a Chinese blog post that names no address of its own), draws the figure which the
# essay leaves out, mends a factor of two in its bound, writes the Newton formula at which it stops, and tries the four
# papers it names as further reading.
#
# 1. How long may a step be? 2. What does the bound say about training? 3. Newton's direction.
# 4. Curvature from noisy batches. 5. What a Hessian-vector product costs.

# %%
# In Colab the package is not there yet.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("optax_igr") is None:
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "optax_igr[notebooks]"], check=True)

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import optax_igr
from optax_igr import diagnostics

jax.config.update("jax_enable_x64", True)  # distances from a minimum go far below 1e-7 here
BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#000000"),
)
COLOURS = [
    BLUE,
    ORANGE,
    GREEN,
    PINK,
    YELLOW,
    SKY,
    BLACK,
]  # Okabe and Ito: safe for the colour-blind
plt.rcParams.update({"figure.dpi": 84, "axes.prop_cycle": plt.cycler(color=COLOURS)})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10})

# %% [markdown]
# ## 1. How long may a step be?
#
# Along the negative gradient $g$ the second-order Taylor expansion, with the Hessian $H$, is
#
# $$\varphi(\eta) = L(\theta - \eta g) - L(\theta) \approx -\eta\, g^\top g + \tfrac12 \eta^2\, g^\top H g .$$
#
# The essay asks for $\varphi(\eta) < 0$ and writes $\eta < g^\top g / g^\top H g$. The solution of that inequality is
#
# $$\eta < 2\,\frac{g^\top g}{g^\top H g} = 2\,\eta^*, \qquad \eta^* = \frac{g^\top g}{g^\top H g}.$$
#
# The number in the essay is $\eta^*$, the **minimiser** of the parabola, known as the Cauchy step. The loss still falls
# beyond it, up to twice as far. Two transforms measure this during training: `scale_by_cauchy_step` takes the step
# $\eta^*$, and `limit_by_curvature` computes the ratio $\kappa = \eta / \eta^*$ of a step that is about to be
# taken, and shortens it where $\kappa$ is larger than twice a given fraction.


# %%
def cauchy_step(value_fn, params):
    transform = optax_igr.scale_by_cauchy_step()
    grad = jax.grad(value_fn)(params)
    _, state = transform.update(grad, transform.init(params), params, value_fn=value_fn)
    return optax.tree.get(state, "average_length")


def curvature_ratio(value_fn, params, learning_rate):
    transform = optax.chain(optax.sgd(learning_rate), optax_igr.limit_by_curvature(1.0))
    grad = jax.grad(value_fn)(params)
    _, state = transform.update(grad, transform.init(params), params, value_fn=value_fn, grad=grad)
    return optax.tree.get(state, "curvature_ratio")


def parabola(theta):
    return 2.0 * theta**2


theta = jnp.array(1.0)
best = cauchy_step(parabola, theta)
for multiple in (0.5, 1.0, 1.5, 2.0, 2.2):
    after = parabola(theta - multiple * best * jax.grad(parabola)(theta))
    kappa = curvature_ratio(parabola, theta, multiple * best)
    print(
        f"step {multiple * best:.3f}: ratio {kappa:.2f}, loss {parabola(theta):.2f} -> {after:.2f}"
    )

# %% [markdown]
# On a parabola the picture is complete. A step of $1.5\,\eta^*$, which the essay's bound forbids, still descends; at
# $2\,\eta^*$ it lands at the height where it started; only beyond that does the loss rise. In one dimension
# $\eta^* g = g/H$ is also Newton's step.

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6))
grid = jnp.linspace(-1.5, 1.5, 200)
left.plot(grid, jax.vmap(parabola)(grid), color=BLACK, lw=1)
for multiple, colour in zip((0.5, 1.0, 1.5, 2.0, 2.2), COLOURS, strict=False):
    end = theta - multiple * best * jax.grad(parabola)(theta)
    arrow = {"arrowstyle": "->", "color": colour, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
    left.annotate("", (end, parabola(end)), (theta, parabola(theta)), arrowprops=arrow)
    left.plot(end, parabola(end), "o", color=colour, label=rf"$\eta = {multiple}\,\eta^*$")
left.set(xlabel=r"parameter $\theta$", ylabel=r"loss $L(\theta)$", title="one step from θ = 1")
left.legend(frameon=False, loc="upper center", fontsize=8)

multiples = jnp.linspace(0, 2.5, 100)
grad = jax.grad(parabola)(theta)
right.plot(multiples, parabola(theta - multiples * best * grad) - parabola(theta), color=BLACK)
right.axhline(0, color="0.6", lw=0.8)
right.axvspan(0, 1, color=SKY, alpha=0.35, label="the bound of the essay")
right.axvspan(1, 2, color=YELLOW, alpha=0.35, label="the factor that it lost")
right.set(xlabel=r"step, in units of $\eta^*$", ylabel=r"change of the loss $\varphi$")
right.set_title("down to twice the Cauchy step")
right.legend(frameon=False, fontsize=8)
fig.tight_layout()

# %% [markdown]
# ### Is a network a parabola?
#
# The bound is exact for a quadratic and a statement about Taylor's second order otherwise. So the same is drawn for a
# tanh network on scikit-learn's digits, along its full-batch gradient, fresh and after training.

# %%
pixels, digits = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(digits))[:1792]
x, y = jnp.asarray(pixels[order] / 16), jnp.asarray(digits[order])


def network_loss(params):
    inputs = x.astype(params["hidden"].dtype)
    logits = jnp.tanh(inputs @ params["hidden"]) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


keys = jax.random.split(jax.random.key(0))
network = {
    "hidden": jax.random.normal(keys[0], (64, 32)) / 8,
    "head": jax.random.normal(keys[1], (32, 10)) / 6,
}


# %%
@functools.partial(jax.jit, static_argnames=("optimizer", "value_fn", "num_steps", "observed"))
def minimise(optimizer, value_fn, params, num_steps, observed=()):
    """Runs an optimizer on all data; returns its path, the losses, and numbers from its state."""

    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(value_fn)(params)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=value_fn
        )
        record = {"params": params, "loss": value}
        record |= {name: optax.tree.get(state, name) for name in observed}
        return (optax.apply_updates(params, updates), state), record

    carry = params, optimizer.init(params)
    (params, _), record = jax.lax.scan(step, carry, length=num_steps)
    return params, record


# %%
fig, axes = plt.subplots(1, 3, figsize=(10, 3.2))
params, rate = network, 0.5
for axis, steps in zip(axes, (0, 20, 380), strict=True):
    if steps:
        params, _ = minimise(optax.sgd(rate), network_loss, params, steps)
    best = cauchy_step(network_loss, params)
    value, grad = jax.value_and_grad(network_loss)(params)
    squared = optax.tree.vdot(grad, grad)

    along = jax.jit(
        lambda m, p=params, g=grad, b=best: network_loss(optax.tree.add_scale(p, -m * b, g))
    )
    multiples = jnp.linspace(0, 8, 81)
    change = jax.lax.map(along, multiples) - value
    model = squared * best * (-multiples + multiples**2 / 2)
    axis.plot(multiples, change, label="the loss")
    axis.plot(multiples, model, "--", label="the parabola")
    axis.axhline(0, color="0.6", lw=0.8)
    axis.set(ylim=(1.2 * change.min(), -change.min()), xlabel=r"step, in units of $\eta^*$")
    total = {0: 0, 20: 20, 380: 400}[steps]
    axis.set_title(rf"after {total} steps, $\eta^*$ = {best:.2f}")
    beyond = multiples[(change > 0) & (multiples > 0)]
    crossing = f"{beyond[0]:.2f}" if beyond.size else f"more than {multiples[-1]:.0f}"
    print(f"{total} steps: the loss falls up to {crossing} Cauchy steps (parabola: 2)")
axes[0].set_ylabel("change of the loss")
axes[0].legend(frameon=False)
fig.tight_layout()

# %% [markdown]
# It is not: the loss leaves its parabola before one Cauchy step, and rises more slowly (a cross-entropy grows no faster
# than linearly in its logits). The bound is cautious here. It need not be: nothing in Taylor's second order says on
# which side the loss leaves the model.

# %% [markdown]
# ## 2. What the bound says about training
#
# The bound of one step looks along the gradient of that step. Steps in a row turn towards the direction of largest
# curvature $\lambda_{\max}$, so that on a quadratic the bound of a whole run with a constant rate is its worst case,
#
# $$\eta < \frac{2}{\lambda_{\max}} .$$
#
# `diagnostics.sharpness` finds $\lambda_{\max}$ by Lanczos iteration, a few Hessian-vector products. We take a softmax
# regression with L2 decay, whose loss is convex and has one minimum, start close to that minimum, where the loss is
# nearly a quadratic, and choose rates on both sides of the bound.

# %%
DECAY = 1e-2


def loss_fn(params, x, y):
    logits = x @ params["kernel"] + params["bias"]
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return cross_entropy + DECAY / 2 * sum(jnp.sum(p**2) for p in jax.tree.leaves(params))


def full_loss(params):
    return loss_fn(params, x, y)


zeros = {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}
newton = optax_igr.newton_cg(1.0, damping=0.0, max_steps=200, tolerance=1e-8)
minimum, _ = minimise(newton, full_loss, zeros, 10)
least = full_loss(minimum)
found = diagnostics.sharpness(full_loss, minimum, num_steps=40)
print(
    f"least loss {least:.6f}; sharpness there {found.eigenvalue:.5f} ± {found.error_estimate:.0e}"
)

# %%
key = jax.random.key(1)
start = optax.tree.add_scale(minimum, 1e-3, optax.tree.random_like(key, minimum))
fig, axis = plt.subplots(figsize=(6, 3.4))
for multiple in (1.0, 1.9, 2.01, 2.1):
    rate = multiple / float(found.eigenvalue)
    losses = minimise(optax.sgd(rate), full_loss, start, 300)[1]["loss"]
    axis.semilogy(losses - least, label=rf"{multiple:g} / $\lambda_{{\max}}$")
    print(
        f"rate {multiple:.2f}/λ: from {losses[0] - least:.1e} to {losses[-1] - least:.1e} above the minimum"
    )
axis.set(xlabel="step", ylabel="loss above the least one", title="the bound of a whole run")
axis.legend(frameon=False, ncols=2, title="learning rate")
fig.tight_layout()

# %% [markdown]
# A network has no constant $\lambda_{\max}$, and a rate that was too large at the start may be right later. The
# ratio $\kappa$ is measured at every step, at the price of one Hessian-vector product, and `limit_by_curvature` acts on
# it: with `fraction=0.5` a step is never longer than the minimiser of the parabola, with `fraction=1` never longer than
# the bound. The rate below is ten times the Cauchy step at the start.

# %%
rate = 10 * float(cauchy_step(network_loss, network))
contenders = {
    "plain": optax_igr.limit_by_curvature(1e9),
    "fraction 1": optax_igr.limit_by_curvature(1.0),
    "fraction 0.5": optax_igr.limit_by_curvature(0.5),
}
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
for name, limit in contenders.items():
    optimizer = optax.chain(optax.sgd(rate), limit)
    observed = ("curvature_ratio", "limited_count")
    _, record = minimise(optimizer, network_loss, network, 200, observed)
    losses, limited = record["loss"], record["limited_count"]
    left.semilogy(losses, label=name)
    if name != "plain":
        right.semilogy(jnp.maximum(record["curvature_ratio"], 0.1), color=f"C{len(left.lines) - 1}")
    print(
        f"{name:13s} loss {losses[-1]:.4f}, largest {losses.max():.2f}, steps shortened {limited[-1]} of 200"
    )
left.set(xlabel="step", ylabel="training loss", title=f"learning rate {rate:.1f}")
right.axhline(2, color="0.5", lw=0.8)
right.set(xlabel="step", ylabel=r"$\kappa$ of the step", title="as proposed; 2 is the bound")
left.legend(frameon=False)
fig.tight_layout()

# %% [markdown]
# ## 3. Newton's direction
#
# The essay derives the minimiser of the second-order expansion and stops before the formula. Setting the gradient of
#
# $$L(\theta_0) + (\theta - \theta_0)^\top g + \tfrac12 (\theta - \theta_0)^\top H (\theta - \theta_0)$$
#
# to zero gives
#
# $$\theta = \theta_0 - H^{-1} g .$$
#
# Nobody forms $H$ for a network. `newton_cg` solves $(H + \lambda I)\,d = g$ by conjugate gradients, which need
# products $Hv$ alone, stops early (truncated Newton), and adapts the damping $\lambda$ by how well the parabola
# predicted the decrease. On a quadratic of any condition number one solve is the end:

# %%
curvatures = jnp.logspace(0, 2, 10)


def quadratic(params):
    return jnp.sum(curvatures * (params - 1) ** 2) / 2


newton = optax_igr.newton_cg(1.0, damping=0.0, tolerance=1e-10)
after, record = minimise(newton, quadratic, jnp.zeros(10), 1, ("num_products",))
error = jnp.abs(after - 1).max()
print(
    f"one Newton step: loss {record['loss'][0]:.1f} -> {quadratic(after):.1e}, "
    f"error {error:.1e}, {record['num_products'][0]} products"
)
_, record = minimise(optax.sgd(1 / 100), quadratic, jnp.zeros(10), 500)
print(f"500 gradient steps at 1/λmax: loss {record['loss'][-1]:.1e}")

# %% [markdown]
# Two pictures: paths in a curved valley (Rosenbrock's function), where first-order steps of any length creep along the
# floor while the Newton direction goes through; and the softmax regression of above against the **cost in gradients**:
# a gradient step counts 1, a Newton step $1 + 2k$ for $k$ products.


# %%
def rosenbrock(p):
    return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2


cauchy = optax.chain(optax_igr.scale_by_cauchy_step(), optax.scale(-1.0))
paths = {
    "gradient descent, rate 0.001": minimise(
        optax.sgd(1e-3), rosenbrock, jnp.array([-1.2, 1.0]), 200
    ),
    "Cauchy step": minimise(cauchy, rosenbrock, jnp.array([-1.2, 1.0]), 200),
    "Newton-CG": minimise(optax_igr.newton_cg(1.0), rosenbrock, jnp.array([-1.2, 1.0]), 30),
}
a, b = jnp.meshgrid(jnp.linspace(-1.6, 1.6, 200), jnp.linspace(-3.4, 2.2, 200))
heights = jnp.log10(rosenbrock((a, b)) + 1e-3)
fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.4), sharey=True)
for axis, (name, (end, record)), colour in zip(axes, paths.items(), COLOURS, strict=False):
    axis.contour(a, b, heights, levels=12, colors="0.8", linewidths=0.8)
    axis.plot(*record["params"].T, ".-", color=colour, lw=1, ms=4)
    axis.plot(1, 1, "*", color=BLACK, ms=10)
    axis.set(xlim=(-1.6, 1.6), ylim=(-3.4, 2.2), xlabel=r"$\theta_1$", title=name)
    print(f"{name}: loss {rosenbrock(end):.1e} after {len(record['loss'])} steps")
axes[0].set_ylabel(r"$\theta_2$")
fig.tight_layout()

# %%
observed = ("num_products",)
contenders = {
    "gradient descent, 1/λmax": (optax.sgd(1 / float(found.eigenvalue)), 600, ()),
    "Adam, 0.01": (optax.adam(0.01), 600, ()),
    "Newton-CG, tolerance 0.01": (optax_igr.newton_cg(1.0, max_steps=100), 8, observed),
    "Newton-CG, tolerance 0.3": (optax_igr.newton_cg(1.0, tolerance=0.3), 30, observed),
}
fig, axis = plt.subplots(figsize=(6.5, 3.6))
for name, (optimizer, num_steps, names) in contenders.items():
    _, record = minimise(optimizer, full_loss, zeros, num_steps, names)
    products = record.get("num_products", jnp.zeros(num_steps))
    spent = jnp.cumsum(1 + 2 * products) - (1 + 2 * products)  # before the step of each loss
    gap = jnp.maximum(record["loss"] - least, 1e-16)
    axis.semilogy(spent, gap, label=name)
    reached = spent[gap < 1e-6]
    cost = f"{reached[0]:.0f} gradients" if reached.size else f"not within {spent[-1]:.0f}"
    print(f"{name}: 1e-6 above the minimum after {cost}")
axis.set(xlim=(0, 600), xlabel="cost, in full-batch gradients", ylabel="loss above the least one")
axis.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 0.08))
fig.tight_layout()

# %% [markdown]
# With a loose tolerance a Newton step is cheap and almost as good: the early directions need not be exact. Three limits
# of this picture. The rates of the two baselines were not tuned. The problem is convex and well conditioned. And the
# gradients here are of all data: on minibatches each solve would answer the noise of its batch, which is the next
# section.
#
# ## 4. Curvature from noisy batches
#
# Quasi-Newton methods learn $H^{-1}$ from pairs of a step $s$ and the change $y$ of the gradient along it, for
# $y \approx H s$. A convex loss has $s^\top y > 0$, and a pair with $s^\top y \le 0$ would make the learnt matrix
# indefinite. On minibatches everything hangs on where $y$ comes from:
#
# | source of $y$ | its formula | function |
# |---|---|---|
# | a gradient of each batch | $\nabla L_{S_{t+1}}(\theta_{t+1}) - \nabla L_{S_t}(\theta_t)$ | `optax.scale_by_lbfgs` |
# | the samples that both share | $\nabla L_O(\theta_{t+1}) - \nabla L_O(\theta_t)$ | `multibatch_lbfgs` |
# | a product at averaged iterates | $\nabla^2 L_{S_H}(\bar\theta)\, s$ | `sqn`, `slbfgs` |
#
# (The first is what comes of feeding batches to an optimizer that is made for full gradients.) First the pairs
# themselves, along a run of plain SGD: how far $y$ is from the true $H s$ of all data, and what curvature it reports
# along the step, $s^\top y / s^\top H s$ (1 would be right).

# %%
BATCH, EPOCHS = 32, 15
PER_EPOCH = len(x) // BATCH
rng = np.random.default_rng(0)
shuffled = [rng.permutation(len(x)).reshape(PER_EPOCH, BATCH) for _ in range(EPOCHS)]
shuffled = np.concatenate(shuffled)
windows = optax_igr.overlapping_batches(len(x), BATCH, overlap=0.25)
overlapping = np.stack([next(windows) for _ in range(EPOCHS * PER_EPOCH)])
SHARED = BATCH // 4  # the first samples of a batch are those of the batch before
curvature_batches = np.stack([rng.choice(len(x), 10 * BATCH, replace=False) for _ in shuffled])

grad_fn = jax.grad(loss_fn)


def product_fn(params, vector, *data):
    return jax.jvp(lambda p: grad_fn(p, *data), (params,), (vector,))[1]


# %%
@jax.jit
def sgd_pairs(params, batches, curvature_batches, rate):
    def step(params, indices):
        (now, then), measured_on = indices
        grad = grad_fn(params, x[now], y[now])
        s = optax.tree.scale(-rate, grad)
        later = optax.tree.add(params, s)
        shared = then[:SHARED]
        ends = (grad_fn(p, x[shared], y[shared]) for p in (later, params))
        sources = (
            optax.tree.sub(grad_fn(later, x[then], y[then]), grad),
            optax.tree.sub(*ends),
            product_fn(later, s, x[measured_on], y[measured_on]),
        )
        true = product_fn(later, s, x, y)
        errors = [optax.tree.norm(optax.tree.sub(v, true)) / optax.tree.norm(true) for v in sources]
        curvatures = [optax.tree.vdot(s, v) / optax.tree.vdot(s, true) for v in sources]
        return later, (jnp.stack(errors), jnp.stack(curvatures))

    consecutive = jnp.stack([batches[:-1], batches[1:]], axis=1)
    return jax.lax.scan(step, params, (consecutive, curvature_batches[:-1]))[1]


errors, curvatures = jax.device_get(sgd_pairs(zeros, overlapping, curvature_batches, 0.3))

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
names = ("gradients of two batches", "the shared samples", "Hessian-vector product")
epochs = np.arange(len(errors)) / PER_EPOCH
bins = np.logspace(-1, 2, 61)
for name, error, curvature, colour in zip(
    names, errors.T, curvatures.T, (ORANGE, BLUE, GREEN), strict=True
):
    left.semilogy(epochs, error, ".", ms=3, color=colour, label=name)
    right.hist(curvature, bins=bins, histtype="step", lw=2, color=colour)
    last = slice(-PER_EPOCH, None)
    print(
        f"{name:25s} in the last epoch: median error of y {np.median(error[last]):5.2f}, "
        f"curvature {np.median(curvature[last]):5.2f} of the true one"
    )
left.set(xlabel="epoch", ylabel=r"$\|y - Hs\| \,/\, \|Hs\|$", title="error of the pair")
right.set(xscale="log", xlabel=r"$s^\top y \,/\, s^\top H s$", ylabel="pairs")
right.axvline(1, color="0.5", lw=0.8)
right.set_title("reported curvature over the true one")
left.set_ylim(0.02, 1e3)
left.legend(frameon=False, fontsize=9, markerscale=3, loc="upper right")
fig.tight_layout()

# %% [markdown]
# The noise of two batches swamps $y$. It does not even average out: the step is $s = -\eta g_S$, and the same $g_S$
# stands in $y$, so that noise is read as curvature. A guard against $s^\top y \le 0$ sees nothing of this.
#
# Now the optimizers themselves. `svrg` removes the noise from the gradient, by the full gradient at an anchor once an
# epoch,
#
# $$v = \nabla L_S(\theta) - \nabla L_S(\tilde\theta) + \nabla L(\tilde\theta);$$
#
# `slbfgs` is `svrg` followed by the stochastic L-BFGS of `sqn`. The horizontal axis counts everything that a method
# computes, gradients and (as two) Hessian-vector products, in passes over the data.


# %%
@functools.partial(jax.jit, static_argnames="optimizer")
def train(optimizer, params, batches, curvature_batches):
    def step(carry, indices):
        params, state = carry
        batch, curvature = indices
        shared = batch[:SHARED]

        def value_fn(params):
            return loss_fn(params, x[batch], y[batch])

        value, grad = jax.value_and_grad(value_fn)(params)
        extra_args = {
            "value": value,
            "grad": grad,
            "value_fn": value_fn,
            "full_value_fn": full_loss,
            "overlap_value_fn": lambda p: loss_fn(p, x[shared], y[shared]),
            "curvature_value_fn": lambda p: loss_fn(p, x[curvature], y[curvature]),
        }
        updates, state = optimizer.update(grad, state, params, **extra_args)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, indices):
        carry, _ = jax.lax.scan(step, carry, indices)
        return carry, full_loss(carry[0])

    by_epoch = jax.tree.map(
        lambda b: b.reshape(EPOCHS, PER_EPOCH, -1), (batches, curvature_batches)
    )
    return jax.lax.scan(epoch, (params, optimizer.init(params)), by_epoch)[1]


# %%
def decayed(rate):
    return lambda count: rate / jnp.sqrt(1 + count / PER_EPOCH)


def lbfgs_on_batches(rate):
    return optax.chain(optax.scale_by_lbfgs(), optax.scale_by_learning_rate(rate))


def svrg(rate):
    return optax.chain(optax_igr.svrg(anchor_interval=PER_EPOCH), optax.sgd(rate))


PAIR_INTERVAL = 10
PRODUCTS = (
    2 * 10 / PAIR_INTERVAL
)  # a product on ten batches every ten steps, counted as two gradients
contenders = {  # optimizer, batches, gradients of a batch for each step
    "SGD, rate ∝ 1/√epoch": (optax.sgd(decayed(0.5)), shuffled, 1),
    "L-BFGS fed with batches": (lbfgs_on_batches(0.1), shuffled, 1),
    "multi-batch L-BFGS": (optax_igr.multibatch_lbfgs(0.1), overlapping, 1 + 2 * 0.25),
    "SQN, rate ∝ 1/√epoch": (optax_igr.sqn(decayed(0.1)), shuffled, 1 + PRODUCTS),
    "SVRG": (svrg(1.0), shuffled, 2 + 1),
    "SVRG + SQN (slbfgs)": (
        optax_igr.slbfgs(0.1, anchor_interval=PER_EPOCH),
        shuffled,
        2 + 1 + PRODUCTS,
    ),
}

# %%
fig, axis = plt.subplots(figsize=(7.5, 4.2))
for (name, (optimizer, batches, cost)), colour in zip(contenders.items(), COLOURS, strict=False):
    losses = train(optimizer, zeros, batches, curvature_batches)
    gaps = np.maximum(np.asarray(losses - least), 1e-16)
    passes = cost * np.arange(1, EPOCHS + 1)
    axis.semilogy(passes, gaps, ".-", color=colour, label=name)
    reached = np.flatnonzero(gaps < 1e-8)
    when = (
        f"{reached[0] + 1} epochs, {passes[reached[0]]:.0f} passes"
        if reached.size
        else "not reached"
    )
    print(
        f"{name:24s} {gaps[-1]:.0e} above the minimum after {passes[-1]:4.1f} passes; 1e-8: {when}"
    )
axis.set(xlabel="passes over the data (gradients and products)", ylabel="loss above the least one")
axis.set_ylim(1e-16, 1e3)
axis.legend(frameon=False, fontsize=9, loc="lower left")
fig.tight_layout()

# %% [markdown]
# What the figure shows, and what it does not:
#
# - Where $y$ is a difference between two batches the method diverges. The two consistent sources do not.
# - Curvature alone does not beat noise: SQN and multi-batch L-BFGS end no clearly lower than SGD. With the noise
#   removed from the gradient, a constant rate converges linearly.
# - Curvature on top of that saves epochs, and here no passes: every curvature batch and every anchor is counted.
# - One problem, one seed, and rates from a coarse grid. The loss is strongly convex; on a network there is no such
#   minimum to converge to, and nothing here says that quasi-Newton methods train networks better than Adam.
#
# ## 5. What a Hessian-vector product costs
#
# Pearlmutter's observation is that $Hv$ is the derivative of the gradient in the direction $v$,
#
# $$H v = \left.\frac{d}{dr} \nabla L(\theta + r v)\right|_{r = 0},$$
#
# so it costs about as much as another gradient or two, whatever the number of parameters. It can be had by three orders
# of differentiation, all exact, or by a difference of two gradients. The option `hvp` of the transforms selects one;
# `add_gradient_penalty` with the coefficient 1/2 and no incoming update is a bare $H g$, so it serves as the gauge.

# %%
MODES = ("forward_over_reverse", "reverse_over_forward", "reverse_over_reverse")
MODES += ("forward_difference", "backward_difference", "central_difference")
single = jax.tree.map(lambda p: p.astype(jnp.float32), network)


def gradient_and_product(params, mode=None, radius=None):
    grad = jax.grad(network_loss)(params)
    if mode is None:
        return grad
    transform = optax_igr.add_gradient_penalty(0.5, hvp=mode, radius=radius)
    nothing = optax.tree.zeros_like(params)
    extra_args = {"grad": grad, "value_fn": network_loss}
    product, _ = transform.update(nothing, transform.init(params), params, **extra_args)
    return grad, product


exact = gradient_and_product(network, MODES[0])[1]  # in float64
costs = {}
for mode in (None, *MODES):
    lowered = jax.jit(functools.partial(gradient_and_product, mode=mode)).lower(single)
    compiled = lowered.compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    costs[mode] = compiled.cost_analysis()["flops"], memory
    if mode is not None:
        _, product = compiled(single)
        error = optax.tree.norm(optax.tree.sub(product, exact)) / optax.tree.norm(exact)
        print(f"{mode:22s} relative error in float32 {error:.1e}")

# %% [markdown]
# The compiler's own counts, relative to the gradient alone:

# %%
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.3))
plain_flops, plain_bytes = costs[None]
labels = [mode.replace("_", " ") for mode in MODES]
colours = [BLUE] * 3 + [ORANGE] * 3
left.barh(labels, [costs[mode][0] / plain_flops for mode in MODES], color=colours)
left.set(xlabel="FLOPs of gradient and product\n(a gradient alone is 1)")
middle.barh(labels, [costs[mode][1] / plain_bytes for mode in MODES], color=colours)
middle.set(xlabel="temporary memory\n(a gradient alone is 1)", yticks=[])
for axis in (left, middle):
    axis.invert_yaxis()
    axis.axvline(1, color=BLACK, lw=0.8)

radii = np.logspace(-6, 0, 13)
for mode, colour in (("forward_difference", ORANGE), ("central_difference", PINK)):
    product_at = jax.jit(lambda radius, m=mode: gradient_and_product(single, m, radius)[1])
    error = [optax.tree.norm(optax.tree.sub(product_at(r), exact)) for r in radii]
    right.loglog(
        radii, np.array(error) / optax.tree.norm(exact), color=colour, label=mode.split("_")[0]
    )
right.set(xlabel="radius: length of the perturbation", ylabel="relative error of $Hg$ (float32)")
right.legend(frameon=False, title="difference")
fig.tight_layout()
for mode in (MODES[0], MODES[3], MODES[5]):
    print(f"{mode}: {costs[mode][0] / plain_flops:.2f} gradients")

# %% [markdown]
# The three exact orders compile to the same arithmetic and memory; a one-sided difference needs less of both, and
# loses more than half of the digits. `forward_over_reverse` is the default, since it is exact and needs no tuning;
# through a `jax.custom_vjp` (flash attention) only `reverse_over_reverse` and the differences pass. Two uses of one
# product have been seen above: the length of a step (section 1) and a Newton solve (section 3, where the products at
# one point share the linearisation).
#
# ## Limits
#
# - Every bound here is a statement about the second-order model, and the network above left that model before the end
#   of one Cauchy step.
# - The essay closes with a question: should layers in front have smaller rates than those behind? `layerwise_decay`
#   tries it, in `07_compose_and_train`.
# - Measured on one batch, the Cauchy step and $\kappa$ are biased by the noise of that batch; give an independent
#   `curvature_value_fn`.

# %% [markdown]
# ## Run it bigger
#
# Five seeds, tuned rates and the synthetic problems of the SLBFGS paper, with a9a beside them; the data once:
#
# ```sh
# python -m benchmarks download libsvm --data-dir DATA
# OPTAX_IGR_DATA=DATA python -m benchmarks curvature --seeds 5
# ```
#
# and the cost of every technique on a larger network, on whatever device JAX finds (a GPU too):
# `python -m benchmarks steps`.
#
# ## References
#
# - Seed 003: "Optimisation methods in machine learning" (in Chinese): gradient descent and Newton's method derived from
#   Taylor's series; its step-size bound is mended above.
# - Smee, Roosta, Wright, [First-ish Order Methods: Hessian-aware Scalings of Gradient
#   Descent](https://arxiv.org/abs/2502.03701), 2025
# - Cohen et al, [Gradient Descent on Neural Networks Typically Occurs at the Edge of
#   Stability](https://arxiv.org/abs/2103.00065), 2021
# - Martens, [Deep learning via Hessian-free optimization](https://icml.cc/Conferences/2010/papers/458.pdf), 2010
# - Byrd et al, [A Stochastic Quasi-Newton Method for Large-Scale Optimization](https://arxiv.org/abs/1401.7020), 2016
# - Moritz et al, [A Linearly-Convergent Stochastic L-BFGS Algorithm](https://arxiv.org/abs/1508.02087), 2016
# - Berahas et al, [A Multi-Batch L-BFGS Method for Machine Learning](https://arxiv.org/abs/1605.06049), 2016
# - Pearlmutter, [Fast Exact Multiplication by the Hessian](https://www.bcl.hamilton.ie/~barak/papers/nc-hessian.pdf),
#   1994
