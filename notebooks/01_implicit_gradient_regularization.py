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
# # Implicit gradient regularisation: what does gradient descent minimise?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/optax-igr/optax_igr/blob/main/notebooks/01_implicit_gradient_regularization.ipynb)
#
# The obvious answer is "the loss $L$". It holds only for infinitely small steps. With a step of finite length
# $\gamma$ the iterates of gradient descent follow, to the next order, the gradient flow of **another** function,
#
# $$\tilde L(\theta) = L(\theta) + \frac{\gamma}{4}\,\|\nabla L(\theta)\|^2 ,$$
#
# which also punishes steep places. Nobody wrote this penalty into the program: it is *implicit*, and it grows with
# the learning rate. Barrett and Dherin (2021) found it and predicted what it does to a trained network. This notebook
#
# 1. goes from a Taylor series to $\tilde L$ and checks the formula by its order,
# 2. draws the smallest model in which the effect can be seen, with two weights,
# 3. measures the four predictions on a network that reads digits, beside a penalty that **is** written down,
# 4. and shows what becomes of the penalty when the learning rate decays.
#
# You need to know `jax.grad` and what gradient descent is.

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

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import optax_igr
from optax_igr import diagnostics, flows

jax.config.update("jax_enable_x64", True)  # small steps have errors below float32's rounding
plt.style.use("figures.mplstyle")
print("optax_igr", optax_igr.__version__, "on JAX", jax.__version__)

# %% [markdown]
# ## 1. From the Taylor series to the modified loss
#
# Suppose that a smooth path $\theta(t)$ passes through all iterates, $\theta(t + \gamma) = \theta(t) - \gamma g$ with
# $g = \nabla L(\theta(t))$. Its Taylor series is
#
# $$\theta(t + \gamma) = \theta + \gamma\,\dot\theta + \frac{\gamma^2}{2}\,\ddot\theta + \dots
# \quad\Longrightarrow\quad \dot\theta = -g - \frac{\gamma}{2}\,\ddot\theta + O(\gamma^2) .$$
#
# To lowest order $\dot\theta = -g$, and so $\ddot\theta = -H\dot\theta = H g$ with the Hessian $H$. Hence
#
# $$\dot\theta = -g - \frac{\gamma}{2} H g + O(\gamma^2)
# = -\nabla\Big(L + \frac{\gamma}{4}\|\nabla L\|^2\Big) + O(\gamma^2),
# \qquad\text{because}\quad \nabla \|\nabla L\|^2 = 2 H g .$$
#
# `modified_loss` is this function, and `add_igr` adds the term $\frac{\gamma}{2} H g$ to the gradient in a chain of
# Optax. Here is a model with two weights, the product $ab$ of which is to be 0.6:


# %%
def value_fn(params):
    a, b = params
    return (0.6 - a * b) ** 2 / 2


start, step_size = jnp.array([2.8, 3.5]), 0.025
gradient = jax.grad(value_fn)(start)
of_modified_loss = jax.grad(optax_igr.modified_loss(value_fn, step_size))(start)

transform = optax_igr.add_igr(step_size)
by_transform, _ = transform.update(gradient, transform.init(start), start, value_fn=value_fn)

print("gradient of the loss         ", gradient)
print("gradient of the modified loss", of_modified_loss)
print("the same from add_igr        ", by_transform)

# %% [markdown]
# Is it the right term? A wrong constant would still look plausible in a picture; the **order** of the error tells.
# One step must differ from the gradient flow of $L$ by $O(\gamma^2)$, and from the flow of $\tilde L$ by
# $O(\gamma^3)$: ten times smaller steps make these errors 100 and 1000 times smaller. `flows.modified_flow` is the
# velocity field, `flows.convergence_order` integrates it and measures the slope.


# %%
def one_step(params, h):
    return params - h * jax.grad(value_fn)(params)


fields = {
    "gradient flow of the loss": lambda h: flows.gradient_flow(value_fn),
    "flow of the modified loss": lambda h: flows.modified_flow(flows.gradient_flow(value_fn), h),
}
sizes = [0.004, 0.002, 0.001, 0.0005]
fig, axis = plt.subplots(figsize=(5.2, 3.4))
for (name, field), marker in zip(fields.items(), "os", strict=True):
    found = flows.convergence_order(one_step, field, start, sizes)
    axis.loglog(
        found.step_sizes, found.errors, marker + "-", label=f"{name}: slope {found.slope:.2f}"
    )
axis.set(xlabel="step size γ", ylabel="distance of one step from the flow")
axis.set_title("One step of gradient descent at (2.8, 3.5)")
axis.set_xticks(sizes, labels=map(str, sizes))
axis.minorticks_off()
axis.legend()
plt.show()

# %% [markdown]
# Slope 2 without the correction and 3 with it. (`02_backward_error_analysis` goes on to higher orders, to momentum
# and to Adam.)
#
# ## 2. Two weights, drawn
#
# The minima of $E = \frac12 (0.6 - ab)^2$ are a curve, $ab = 0.6$: which of them does a path find? Gradient flow
# keeps $a^2 - b^2$ and ends where that leads. The penalty $\|\nabla E\|^2 = (0.6 - ab)^2 (a^2 + b^2)$ prefers small
# weights, so descent with large steps must end nearer to the minimum of least norm, $a = b = \sqrt{0.6}$, the cross
# in the figure.


# %%
def descend(transform, num_steps):
    def step(carry, _):
        params, state = carry
        grad = jax.grad(value_fn)(params)
        updates, state = transform.update(grad, state, params, value_fn=value_fn)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    _, path = jax.lax.scan(step, (start, transform.init(start)), length=num_steps)
    return np.concatenate([start[None], path])


def follow(field, duration=6.0):
    times = np.concatenate([[0], np.geomspace(1e-3, duration, 100)])
    return np.asarray(flows.integrate(field, start, duration, save_at=times))


gradient_flow = flows.gradient_flow(value_fn)
paths = {
    "gradient flow": follow(gradient_flow),
    "descent, γ = 0.001": descend(optax.sgd(0.001), 6000),
    "descent, γ = 0.025": descend(optax.sgd(0.025), 240),
    "flow of the modified loss, γ = 0.025": follow(flows.modified_flow(gradient_flow, 0.025)),
    "... and of the next order": follow(flows.modified_flow(gradient_flow, 0.025, order=2)),
    "explicit penalty 0.5 ‖∇E‖²": descend(
        optax.chain(optax_igr.add_gradient_penalty(0.5), optax.sgd(1e-4)), 60_000
    ),
}

# %%
a, b = np.meshgrid(np.linspace(0.02, 3.2, 300), np.linspace(0.02, 3.8, 300))
levels = [0.02, 0.2, 1, 4, 12, 30]
styles = ["-", "--", "o", "-", "-.", ":"]

fig, axes = plt.subplots(1, 2, figsize=(9.6, 4.5))
for axis in axes:
    axis.contour(a, b, (0.6 - a * b) ** 2 / 2, levels, colors="0.8", linewidths=0.8)
    axis.plot(a[0], 0.6 / a[0], color="0.35", linewidth=1)
    axis.plot(0.6**0.5, 0.6**0.5, "kx", markersize=8)
    for (name, path), style in zip(paths.items(), styles, strict=True):
        axis.plot(path[:, 0], path[:, 1], style, label=name, markersize=4)
    axis.set(xlabel="weight a", ylabel="weight b")
axes[0].set(
    xlim=(0, 3.2), ylim=(0, 3.8), title="All paths, with the level sets of E and its minima"
)
axes[1].set(xlim=(0.275, 0.325), ylim=(1.9, 2.2), title="Where they end, enlarged")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()
for name, path in paths.items():
    print(f"{name:38} ends at squared norm {np.sum(path[-1] ** 2):.4f}")
print(f"{'(the least that a minimum can have)':38} {'':20} {1.2:.4f}")

# %% [markdown]
# Descent with $\gamma = 0.001$ lies on gradient flow. With $\gamma = 0.025$ it jumps, and ends at smaller weights:
# the flow of the modified loss explains most of that difference, and that of the next order most of the rest. The
# explicit penalty of 0.5 goes much further.
#
# So far the sizes agree. Is the implicit term also the *reason*? `cancel_igr` subtracts it from each step.

# %%
rates = np.array([0.003, 0.006, 0.0125, 0.025, 0.0375])


def end_norms(transform_of_rate):
    ends = (descend(transform_of_rate(h), round(6 / h))[-1] for h in rates)
    return np.array([np.sum(end**2) for end in ends])


@jax.jit
def end_of_flow(h):
    return flows.integrate(flows.modified_flow(gradient_flow, h), start, 6.0)


norms = {
    "gradient descent": end_norms(optax.sgd),
    "flow of the modified loss": [jnp.sum(end_of_flow(h) ** 2) for h in rates],
    "descent with cancel_igr": end_norms(
        lambda h: optax.chain(optax_igr.cancel_igr(h), optax.sgd(h))
    ),
}
limit = np.sum(paths["gradient flow"][-1] ** 2)
fig, axis = plt.subplots(figsize=(5.6, 3.5))
for (name, values), style in zip(norms.items(), ["o-", "s--", "^-"], strict=True):
    axis.plot(rates, values, style, label=name)
axis.axhline(limit, color="0.5", linestyle=":", label="gradient flow")
axis.set(xlabel="learning rate γ", ylabel="squared norm at the end, a² + b²", xlim=(0, 0.04))
axis.set_title("Larger steps find smaller weights")
axis.legend()
plt.show()
for name in ("gradient descent", "descent with cancel_igr"):
    print(f"{name:24} off gradient flow by", np.round(norms[name] - limit, 4), "at", rates)

# %% [markdown]
# With the term cancelled, the small rates end where gradient flow ends. What is left of the difference is of the next
# order: it falls four- to fivefold when the rate is halved, where that of plain descent halves. At the largest rates
# the next order is no longer small, and `cancel_igr` goes too far.
#
# ## 3. Four predictions, on digits
#
# Barrett and Dherin predict that a larger coefficient $c$ of $\|\nabla L\|^2$ leads to
#
# 1. a smaller gradient norm, 2. flatter minima, 3. a higher test accuracy, 4. robustness to noise on the parameters.
#
# The coefficient is $c = \gamma/4$ for a large rate $\gamma$, and $c = \gamma_0/4 + \mu$ for a small rate $\gamma_0$
# with an explicit penalty $\mu \|\nabla L\|^2$. **If the theory is right, both ways to the same $c$ lead to similar
# networks.**
#
# With minibatches the steps follow $L + c\,\frac1M\sum_b \|\nabla L_b\|^2$ (Smith et al, 2021): the variance of the
# batch gradients joins the penalty. It stays large where the data contradict each other, so one training label in ten
# is replaced by a random one here (and none at the end of the section). All runs take the same time, rate $\times$
# steps. Then all cool down at the same small rate without penalty, so that no noisy last step is compared with a
# quiet one.

# %%
WIDTH, SEEDS, NUM_TRAIN, BATCH_SIZE = 64, 5, 600, 30
DURATION, COOL_RATE, COOL_EPOCHS = 96.0, 0.05, 20
BATCHES = NUM_TRAIN // BATCH_SIZE

pixels, digits = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(digits))
images, labels = jnp.asarray(pixels[order] / 16, jnp.float32), jnp.asarray(digits[order])
train_images, clean_labels = images[:NUM_TRAIN], labels[:NUM_TRAIN]
test_images, test_labels = images[NUM_TRAIN:], labels[NUM_TRAIN:]
random = np.random.default_rng(1)
is_random = random.random(NUM_TRAIN) < 0.1
train_labels = jnp.where(is_random, random.integers(0, 10, NUM_TRAIN), clean_labels)


def init(key):
    keys, lecun = jax.random.split(key), jax.nn.initializers.lecun_normal(dtype=jnp.float32)
    hidden = lecun(keys[0], (images.shape[1], WIDTH))
    return {
        "hidden": hidden,
        "bias": jnp.zeros_like(hidden[0]),
        "head": lecun(keys[1], (WIDTH, 10)),
    }


def loss_fn(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits_fn(params, x), y).mean()


def logits_fn(params, x):
    return jnp.tanh(x @ params["hidden"] + params["bias"]) @ params["head"]


# %% [markdown]
# One epoch visits every batch once, in random order. The loop is the usual one of Optax, with `value_fn` as an extra
# argument for the penalty; `jax.vmap` runs all seeds at once.


# %%
def epoch(optimizer, carry, key, labels):
    batches = jax.random.permutation(key, NUM_TRAIN).reshape(BATCHES, BATCH_SIZE)

    def step(carry, batch):
        params, state = carry
        value_fn = functools.partial(loss_fn, x=train_images[batch], y=labels[batch])
        grad = jax.grad(value_fn)(params)
        updates, state = optimizer.update(grad, state, params, value_fn=value_fn, grad=grad)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, carry, batches)[0]


@jax.jit
def train(rate, coefficient, num_epochs, labels):
    def until_cool_down(value, afterwards):
        return lambda count: jnp.where(count < num_epochs * BATCHES, value, afterwards)

    penalty = optax_igr.add_gradient_penalty(until_cool_down(coefficient, 0.0))
    optimizer = optax.chain(penalty, optax.sgd(until_cool_down(rate, COOL_RATE)))

    def one_seed(key):
        params, keys = init(key), jax.random.split(key, 1000)
        return jax.lax.fori_loop(
            0,
            num_epochs + COOL_EPOCHS,
            lambda i, carry: epoch(optimizer, carry, keys[i], labels),
            (params, optimizer.init(params)),
        )[0]

    return jax.vmap(one_seed)(jax.random.split(jax.random.key(0), SEEDS))


# %%
rates = np.array([0.1, 0.2, 0.4, 0.8])
settings = {
    "large rate": [(h, 0.0) for h in rates],
    "rate 0.1 and explicit penalty": [(0.1, (h - 0.1) / 4) for h in rates],
}
trained = [
    train(h, mu, round(DURATION / h / BATCHES), train_labels)
    for pairs in settings.values()
    for h, mu in pairs
]
trained = jax.tree.map(lambda *x: jnp.stack(x).reshape(2, len(rates), *x[0].shape), *trained)

# %% [markdown]
# Four measurements, one for each prediction. The last two come from `optax_igr.diagnostics`: the largest eigenvalue
# of the Hessian by Lanczos' method, and the accuracy when every parameter is multiplied by $1 + s\,\varepsilon$ with
# $\varepsilon \sim N(0, 1)$.


# %%
def mean_batch_norm(params):
    batches = (x.reshape(BATCHES, BATCH_SIZE, *x.shape[1:]) for x in (train_images, train_labels))
    grads = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0, 0))(params, *batches)
    return optax.tree.norm(grads, squared=True) / BATCHES


def largest_eigenvalue(params):
    full_loss = functools.partial(loss_fn, x=train_images, y=train_labels)
    return diagnostics.sharpness(full_loss, params, num_steps=15).eigenvalue


def test_accuracy(params):
    return 100 * jnp.mean(jnp.argmax(logits_fn(params, test_images), -1) == test_labels)


def noisy_accuracy(params):
    key, scales = jax.random.key(1), [0.75]
    return diagnostics.parameter_robustness(test_accuracy, params, key, scales, draws=20).mean[0]


measures = {
    "mean over batches of ‖∇L_b‖²": mean_batch_norm,
    "largest eigenvalue of the Hessian": largest_eigenvalue,
    "test accuracy [%]": test_accuracy,
    "test accuracy at noise s = 0.75 [%]": noisy_accuracy,
}


@jax.jit(static_argnames="measure")
def of_all(trained, measure):  # over the two ways, the settings and the seeds
    return jax.vmap(jax.vmap(jax.vmap(measure)))(trained)


measured = {name: np.asarray(of_all(trained, measure)) for name, measure in measures.items()}

# %%
STUDENT = 2.776  # the 97.5 % quantile for five seeds

fig, axes = plt.subplots(1, 4, figsize=(11.5, 3.3))
for axis, (name, values) in zip(axes, measured.items(), strict=True):
    print(name)
    for (way, means), style in zip(zip(settings, values, strict=True), ["o-", "s--"], strict=True):
        gain = means - values[0, :1]  # paired by seed with the smallest rate
        bar = STUDENT * gain.std(1, ddof=1) / SEEDS**0.5
        axis.errorbar(rates / 4, means.mean(1), bar, fmt=style, capsize=3, label=way)
        change = f"{means.mean(1)[0]:.3f} -> {means.mean(1)[-1]:.3f}"
        print(f"  {way:30} {change}, change {gain.mean(1)[-1]:+.3f} ± {bar[-1]:.3f}")
    axis.set(ylabel=name, xlabel="coefficient c of ‖∇L‖²", xlim=(0, 0.22))
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
plt.show()

# %% [markdown]
# All four predictions hold, and the two ways nearly agree: descent at eight times the rate behaves like descent at
# the small rate with the penalty $\mu = (0.8 - 0.1)/4$ written into it. The bars are 95 % intervals of the difference
# from the smallest rate, paired by seed. At the largest rate the implicit effect on gradient and curvature is the
# stronger of the two: the terms beyond $\gamma/4$ count there.
#
# The same with correct labels, where there is less for the penalty to act on:

# %%
for pairs, way in zip(settings.values(), settings, strict=True):
    ends = [train(h, mu, round(DURATION / h / BATCHES), clean_labels) for h, mu in pairs[::3]]
    small, large = (np.asarray(jax.vmap(test_accuracy)(p)) for p in ends)
    bar = STUDENT * (large - small).std(ddof=1) / SEEDS**0.5
    gain = f"{(large - small).mean():+.2f} ± {bar:.2f} points"
    print(f"{way:30} accuracy {small.mean():.2f} -> {large.mean():.2f} %, change {gain}")

# %% [markdown]
# ## 4. When the learning rate decays
#
# Rates are usually lowered at the end of training, and $c = \gamma_t/4$ falls with them. `igr_coefficient` says how
# large it is at each step. `hold_igr` adds, step by step, what the schedule has taken away, so that the sum stays at
# the level of a reference rate:
#
# $$u \leftarrow u + \nabla\Big(\big(c(\gamma_{\mathrm{ref}}) - c(\gamma_t)\big)\,\|\nabla L\|^2\Big)$$

# %%
HIGH, LOW, HIGH_EPOCHS, LOW_EPOCHS = 0.4, 0.05, 6, 48
schedule = optax.piecewise_constant_schedule(HIGH, {HIGH_EPOCHS * BATCHES: LOW / HIGH})
optimizers = {
    "rate decays": optax.sgd(schedule),
    "rate decays, with hold_igr": optax.chain(
        optax_igr.hold_igr(HIGH, schedule), optax.sgd(schedule)
    ),
}


@jax.jit(static_argnames="name")
def history(name, key):
    def one_epoch(carry, key):
        carry = epoch(optimizers[name], carry, key, train_labels)
        return carry, (mean_batch_norm(carry[0]), test_accuracy(carry[0]))

    params, keys = init(key), jax.random.split(key, HIGH_EPOCHS + LOW_EPOCHS)
    return jax.lax.scan(one_epoch, (params, optimizers[name].init(params)), keys)[1]


seeds = jax.random.split(jax.random.key(0), SEEDS)
histories = {
    name: jax.vmap(lambda key, name=name: history(name, key))(seeds) for name in optimizers
}

# %%
counts = BATCHES * np.arange(1, HIGH_EPOCHS + LOW_EPOCHS + 1) - 1
times = np.cumsum(BATCHES * np.asarray(schedule(counts)))
implicit = np.asarray(optax_igr.igr_coefficient(schedule)(counts))

fig, axes = plt.subplots(1, 2, figsize=(9, 3.4))
axes[0].plot(times, implicit, label="rate decays", drawstyle="steps-pre")
axes[0].plot(times, np.full_like(times, HIGH / 4), "--", label="rate decays, with hold_igr")
axes[0].set(ylabel="coefficient c of ‖∇L‖²", ylim=(0, None), title="What is applied")
for (name, (norms, _)), style in zip(histories.items(), ["-", "--"], strict=True):
    axes[1].plot(times, norms.mean(0), style, label=name)
axes[1].set(ylabel="mean over batches of ‖∇L_b‖²", title="What it does")
axes[1].legend()
for axis in axes:
    axis.set_xlabel("time, learning rate × steps")
plt.show()

for what, values in zip(
    ("‖∇L_b‖²", "accuracy"), zip(*histories.values(), strict=True), strict=True
):
    plain, held = (np.asarray(v)[:, -1] for v in values)
    bar = STUDENT * (held - plain).std(ddof=1) / SEEDS**0.5
    change = f"change {(held - plain).mean():+.3f} ± {bar:.3f}"
    print(f"{what:9} at the end {plain.mean():.3f}, with hold_igr {held.mean():.3f}, {change}")

# %% [markdown]
# Up to time 48 the two are one run at the large rate, whose noise keeps the gradient large. When the rate falls, the
# iterate comes to rest at once. From there on the gradients of the batches grow again at the small rate, and stay
# where they are with `hold_igr`.
#
# ## What this does not show
#
# - **Smooth networks only.** A step across the kink of a ReLU leaves every one of these flows; notebook 02 measures
#   it.
# - **Small effects.** Tenths of a point of accuracy, on 600 images with wrong labels among them. The rate that is
#   best for accuracy is a matter of the problem; nothing here says that a larger one is always better. Beyond $\gamma
#   = 2/\lambda_{max}$ descent leaves the theory, and then diverges.
# - **The last iterate of a large rate is noisy.** Without the cool-down its gradient is larger, not smaller: section
#   4, left of time 48.
# - **The size of the model** is the other half of the first prediction (in the paper's notation $\tilde L = L +
#   \lambda R_{IG}$ with $\lambda = \gamma m/4$ and $R_{IG} = \|\nabla L\|^2/m$ for $m$ parameters). It is not varied
#   here: change `WIDTH`.
# - Five seeds, one network, one data set, one split.
#
# ## Bigger
#
# `SEEDS = 20` (and `STUDENT = 2.093`), `WIDTH = 400` narrow the bars; on a GPU nothing else changes. For MNIST, fetch
# it by `python -m benchmarks download mnist --data-dir data`, set `OPTAX_IGR_DATA=data`, and replace the line
# that defines `images` and `labels`, with `NUM_TRAIN = 9_000`, by
#
# ```python
# import os
# import pathlib
#
# from benchmarks.problems import PROBLEMS
#
# train = PROBLEMS["mnist"](pathlib.Path(os.environ["OPTAX_IGR_DATA"])).train
# images, labels = train["image"].reshape(60_000, -1), train["label"]
# ```
#
# With `OPTAX_IGR_DATA` set, `python -m benchmarks` compares the penalties on MNIST with intervals and a report.
#
# ## References
#
# - Barrett, Dherin, [Implicit Gradient Regularization](https://arxiv.org/abs/2009.11162), 2021: the modified loss,
#   the two weights, the four predictions.
# - Smith et al, [On the Origin of Implicit Regularization in Stochastic Gradient
#   Descent](https://arxiv.org/abs/2101.12176), 2021: minibatches.
# - Miyagawa, [Toward Equation of Motion for Deep Neural Networks](https://arxiv.org/abs/2210.15898), 2022:
#   cancelling.
# - The notebook follows two Chinese notes on the first paper, seeds 000 and 001 of this
#   project. The second is a blog post by 郑之杰 of 2020-12-25; neither names an address of its
#   own.
