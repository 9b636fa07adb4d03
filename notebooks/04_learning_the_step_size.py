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
# # Learning the step size: can descent find its own learning rate?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/optax-igr/optax_igr/blob/main/notebooks/04_learning_the_step_size.ipynb)
#
# The learning rate is the number that is searched for most. But the gradients themselves say whether it is right: if
# two gradients in a row point the same way, the step between them was too short; if they point against each other,
# too long. Amid et al (2022) make this a descent of its own: the step sizes are weights, they are positive, and so
# they are learned by exponentiated gradient (notebook 03).
#
# 1. The gain of a coordinate, drawn on a ravine.
# 2. What the scale of the loss and noise do to it.
# 3. One scale for a whole optimizer, begun at rates from 1e-6 to 1e2.
# 4. What happens when the task changes.
#
# You need to know the loop of Optax, and what Adam is.

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

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import optax_igr

plt.style.use("figures.mplstyle")
print("optax_igr", optax_igr.__version__, "on JAX", jax.__version__)

# %% [markdown]
# ## 1. A gain for every coordinate
#
# Give each parameter a positive gain $\nu$, $\theta_t = \theta_{t-1} - \eta\, \nu_t \odot g_{t-1}$. The loss at
# $\theta_t$ is a function of $\nu_t$, with the derivative $\nabla_{\nu} L = -\eta\, g_{t-1} \odot g_t$ by the chain
# rule, and exponentiated gradient on it is
#
# $$\nu_{t+1} = \nu_t \odot \exp(\gamma\, g_{t-1} \odot g_t), \qquad\text{from 1:}\quad
# \log \nu_T = \gamma \sum_t g_{t-1} \odot g_t .$$
#
# Both gradients are there anyway: this costs no further gradient. `scale_by_gain` is this rule, as the first link of
# a chain. A ravine is steep across and flat along it, here with curvatures 1 and 0.01. The rate 1.5 is too long a
# step across (the sign of that gradient alternates) and far too short along.

# %%
curvatures = jnp.array([1.0, 0.01])


def ravine(params):
    return jnp.sum(curvatures * params**2) / 2


def descend(optimizer, params, num_steps, value_fn=ravine):
    def step(carry, _):
        params, state = carry
        grad = jax.grad(value_fn)(params)
        updates, state = optimizer.update(grad, state, params)
        gain = optax.tree.get(state, "log_gain", default=jnp.zeros(2))
        return (optax.apply_updates(params, updates), state), (params, grad, gain)

    return jax.lax.scan(step, (params, optimizer.init(params)), length=num_steps)[1]


start = jnp.array([0.6, 3.0])
product = optax.chain(optax_igr.scale_by_gain(0.1), optax.sgd(1.5))
_, grads, log_gains = descend(product, start, 40)
print("log gain after 40 steps      ", log_gains[-1])
print("0.1 * sum of g[t-1] * g[t]   ", 0.1 * jnp.sum(grads[:-1] * grads[1:], axis=0))

# %% [markdown]
# Seen at work, for two values of $\gamma$, beside the variant that takes the sign of the product:

# %%
optimizers = {
    "descent": optax.sgd(1.5),
    "product, γ = 0.1": product,
    "product, γ = 100": optax.chain(optax_igr.scale_by_gain(100.0), optax.sgd(1.5)),
    "sign, γ = 0.1": optax.chain(optax_igr.scale_by_gain(0.1, signal="sign"), optax.sgd(1.5)),
}
x, y = np.meshgrid(np.linspace(-0.8, 0.8, 100), np.linspace(-0.4, 3.2, 100))
fig, axes = plt.subplots(1, 3, figsize=(11, 3.4))
axes[0].contour(x, y, (x**2 + 0.01 * y**2) / 2, 12, colors="0.85", linewidths=0.8)
for name, optimizer in optimizers.items():
    path, _, log_gains = descend(optimizer, start, 40)
    axes[0].plot(*path.T, "o-", markersize=3, linewidth=1, label=name)
    axes[1].semilogy(jnp.exp(log_gains[:, 1]), label=f"{name}, along")
    axes[1].semilogy(jnp.exp(log_gains[:, 0]), ":", color=axes[1].lines[-1].get_color())
    axes[2].semilogy(jax.vmap(ravine)(path), label=name)
    print(f"{name:17} loss after 40 steps {ravine(path[-1]):.1e}")
axes[0].set(xlabel="across, curvature 1", ylabel="along, curvature 0.01", title="Paths")
axes[1].set(
    xlabel="step", ylabel="gain ν", ylim=(1e-2, 1e2), title="Gains: along (full), across (dotted)"
)
axes[2].set(xlabel="step", ylabel="loss", title="Loss", ylim=(1e-10, 1))
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# With the sign, the gain along the ravine grows by the same factor in every step, and the one across shrinks while
# that gradient alternates. The product is the rule of the derivation, and finds it hard to serve both directions: the
# gradient across is at first 20 times that along, its square 400 times. With $\gamma = 0.1$ nothing happens. With
# $\gamma = 100$ the gain along grows to about 4, but the one across falls below 0.01 in a single step before it comes
# back.
#
# ## 2. Scale and noise
#
# The product has a unit: write the same loss in cents instead of euros, and $g_{t-1} g_t$ is 10,000 times larger,
# even though the rate is made smaller to fit. The sign and the normalised product have none.

# %%
for signal in ("product", "sign", "normalized"):
    print(f"{signal:11}", end="")
    for factor in (0.01, 1.0, 10.0, 100.0):
        optimizer = optax.chain(
            optax_igr.scale_by_gain(0.1, signal=signal), optax.sgd(1.5 / factor)
        )
        path, _, _ = descend(optimizer, start, 40, lambda p, factor=factor: factor * ravine(p))
        print(f"  loss x {factor:g}: {ravine(path[-1]):.0e}", end="")
    print()

# %% [markdown]
# And noise. On gradients of mean zero and standard deviation $\sigma$ the log-gain is a sum of random terms: a random
# walk, with variance $\gamma^2 \sigma^4 T$ for the product and $\gamma^2 T$ for the sign. No coordinate has a trend,
# and still the gains drift apart. A small decay of the log-gain, $\log\nu \leftarrow (1 - \lambda)\log\nu + \dots$,
# makes the sign's variance stationary at $\gamma^2 / (1 - (1 - \lambda)^2)$. We feed pure noise to 4000 coordinates:

# %%
GAIN_RATE, NUM_STEPS, SIGMA, DECAY = 0.02, 1500, 1.2, 0.005
noise = SIGMA * jax.random.normal(jax.random.key(0), (NUM_STEPS, 4000))


@functools.partial(jax.jit, static_argnames=("signal", "decay"))
def spread(signal, decay):
    transform = optax_igr.scale_by_gain(GAIN_RATE, signal=signal, decay=decay)

    def step(state, grad):
        _, state = transform.update(grad, state)
        return state, jnp.std(state.log_gain)

    return jax.lax.scan(step, transform.init(noise[0]), noise)[1]


times = np.arange(NUM_STEPS)
stationary = GAIN_RATE / (1 - (1 - DECAY) ** 2) ** 0.5
fig, axis = plt.subplots(figsize=(5.8, 3.5))
axis.plot(times, spread("product", 0.0), label="product")
axis.plot(times, GAIN_RATE * SIGMA**2 * times**0.5, "k--", linewidth=1, label="theory")
axis.plot(times, spread("sign", 0.0), label="sign")
axis.plot(times, GAIN_RATE * times**0.5, "k--", linewidth=1)
axis.plot(times, spread("sign", DECAY), label=f"sign, decay {DECAY}")
axis.axhline(stationary, color="k", linestyle="--", linewidth=1)
axis.set(xlabel="step", ylabel="standard deviation of log ν", title="Gains on pure noise")
axis.legend()
plt.show()

# %% [markdown]
# The spread is as computed. After $T$ steps of noise a gain of the sign is within a factor of $e^{\pm\gamma\sqrt T}$,
# whatever the noise; that of the product depends on the fourth power of it.
#
# ## 3. One scale for a whole optimizer, from 1e-6 to 1e2
#
# The same idea for any optimizer: let $u$ be its update and learn one factor $s$ for it. The derivative of the loss
# by $\log s$ is $\langle s u_{t-1}, g_t\rangle$; `adapt_scale` takes its cosine, so that each step changes $s$ by at
# most a factor of $e^{\gamma}$:
#
# $$\log s_t = \log s_{t-1} - \gamma\, \frac{\langle u_{t-1}, g_t\rangle}{\|u_{t-1}\|\,\|g_t\|},
# \qquad \theta_{t+1} = \theta_t + s_t u_t .$$
#
# From a rate wrong by a factor $f$ that takes at least $|\ln f|/\gamma$ steps, and from one far too large the damage
# is done first. `first_step="cauchy"` sets $s$ at step 0 to the minimiser of the quadratic model along the update
# (one Hessian-vector product), and `warmup_steps=5` four more times along the way so far. We train a ReLU network of
# three layers on digits around Adam, from nine initial rates.

# %%
pixels, digits = load_digits(return_X_y=True)
images, labels = jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(digits)
SHAPE, BATCH_SIZE, STEPS = (64, 64, 64, 10), 64, 500


def init(key):
    he = jax.nn.initializers.he_normal()
    pairs = itertools.pairwise(SHAPE)
    keys = jax.random.split(key, len(SHAPE) - 1)
    return [
        {"w": he(k, pair), "b": jnp.zeros(pair[1])} for k, pair in zip(keys, pairs, strict=True)
    ]


def loss_fn(params, x, y):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    logits = x @ params[-1]["w"] + params[-1]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


# %% [markdown]
# The training loop takes any optimizer, passes the extra arguments, and reads the learned scale from the state.


# %%
def train(optimizer, key, num_steps, labels_fn=lambda y, count: y):
    def step(carry, count):
        params, state = carry
        batch = jax.random.choice(jax.random.fold_in(key, count), len(labels), (BATCH_SIZE,))
        value_fn = functools.partial(loss_fn, x=images[batch], y=labels_fn(labels[batch], count))
        value, grad = jax.value_and_grad(value_fn)(params)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=value_fn
        )
        scale = jnp.exp(optax.tree.get(state, "log_scale", default=jnp.zeros([])))
        return (optax.apply_updates(params, updates), state), (value, scale)

    params = init(key)
    (params, _), history = jax.lax.scan(
        step, (params, optimizer.init(params)), jnp.arange(num_steps)
    )
    return params, *history


# %%
initial_rates = 10.0 ** np.arange(-6, 3)
makers = {
    "Adam": optax.adam,
    "Adam, cosine decay": lambda rate: optax.adam(optax.cosine_decay_schedule(rate, STEPS)),
    "adapt_scale(Adam)": lambda rate: optax_igr.adapt_scale(optax.adam(rate), 0.03),
    "adapt_scale, first steps measured": lambda rate: optax.chain(
        optax_igr.adapt_scale(
            optax.adam(rate),
            0.8,
            ema=0.995,
            first_step="cauchy",
            warmup_steps=5,
            max_relative_update=0.1,
        ),
        optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, STEPS)),
    ),
}


@functools.partial(jax.jit, static_argnames="name")
def sweep(rates, *, name):
    def one_rate(rate):
        params, _, scales = train(makers[name](rate), jax.random.key(0), STEPS)
        return loss_fn(params, images, labels), rate * scales

    return jax.vmap(one_rate)(rates)


swept = {name: sweep(jnp.asarray(initial_rates), name=name) for name in makers}

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.7))
for (name, (ends, _)), style in zip(swept.items(), ("o-", "D:", "s--", "^-"), strict=True):
    axes[0].loglog(initial_rates, np.nan_to_num(ends, nan=1e3).clip(1e-5, 1e3), style, label=name)
    print(f"{name:34}", *(f"{end:.0e}" for end in ends))
for name, style in (("adapt_scale(Adam)", "--"), ("adapt_scale, first steps measured", "-")):
    for rate_path in swept[name][1][::2]:
        colour = "C2" if name == "adapt_scale(Adam)" else "C3"
        axes[1].semilogy(rate_path, style, color=colour, linewidth=1)
axes[0].set(xlabel="initial rate", ylabel="training loss after 500 steps", title="Where it ends")
axes[1].set(
    xlabel="step", ylabel="initial rate × s (before the decay)", title="The rate that is learned"
)
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# Where the first steps are measured the initial rate no longer matters: all nine end alike, below the best of the
# decayed Adams. Without that, the learned scale helps from below, as far as 500 steps of $e^{0.03}$ reach, and comes
# too late from above: rates of 1 and more have pushed the ReLUs where they are all off before the scale has moved,
# and the loss stays at $\ln 10 \approx 2.3$, that of guessing.
#
# ## 4. When the task changes
#
# A schedule that decays bets that the task stays. Half-way through we permute the labels: what was a 3 is now called
# a 7. The score is the mean loss on the batches *before* they are learned, over the second half; each optimizer has
# the best of four rates, chosen by that score.

# %%
LENGTH = 600
permutation = jnp.asarray(np.random.default_rng(0).permutation(10))
shift_makers = {
    "Adam, constant": optax.adam,
    "Adam, cosine decay": lambda rate: optax.adam(optax.cosine_decay_schedule(rate, LENGTH)),
    "adapt_scale(Adam)": lambda rate: optax_igr.adapt_scale(optax.adam(rate), 0.03),
    "EGDD": lambda rate: optax_igr.egdd(rate, scale_rate=0.01, granularity="tree"),
}


@functools.partial(jax.jit, static_argnames="name")
def with_shift(rates, seeds, *, name):
    def shifted(y, count):
        return jnp.where(count < LENGTH // 2, y, permutation[y])

    def one_run(rate, seed):
        return train(shift_makers[name](rate), jax.random.key(seed), LENGTH, shifted)[1]

    return jax.vmap(jax.vmap(one_run, (None, 0)), (0, None))(rates, seeds)


shift_rates = jnp.array([1e-3, 3e-3, 1e-2, 3e-2])
shift_losses = {
    name: np.asarray(with_shift(shift_rates, jnp.arange(3), name=name)) for name in shift_makers
}

# %%
fig, axis = plt.subplots(figsize=(6.4, 3.7))
for name, losses in shift_losses.items():
    after = np.nan_to_num(losses[:, :, LENGTH // 2 :].mean(2), nan=np.inf)  # rate, seed
    best = np.argmin(after.mean(1))
    smooth = np.convolve(losses[best].mean(0), np.ones(20) / 20, mode="valid")
    axis.semilogy(
        np.arange(len(smooth)) + 19, smooth, label=f"{name}, rate {shift_rates[best]:.3g}"
    )
    spread_of_seeds = f"{after[best].min():.3f} to {after[best].max():.3f} over 3 seeds"
    print(f"{name:20} mean loss after the shift {after[best].mean():.3f} ({spread_of_seeds})")
axis.axvline(LENGTH // 2, color="0.6", linestyle=":")
axis.set(
    xlabel="step",
    ylabel="loss of the next batch (mean of 20)",
    title="The labels are permuted at step 300",
)
axis.legend()
plt.show()

# %% [markdown]
# The schedule that decays loses, as it has hardly any rate left when it needs one. The learned scale and EGDD recover
# without being told of the change. But a **constant** rate of Adam, well chosen, does as well here: over three seeds
# its range lies within that of `adapt_scale`, and below that of EGDD. That adaptation beats every constant rate after
# a shift is not shown.
#
# ## What this does not show
#
# - **Which part does it.** The first five batches each measure a curvature, at a Hessian-vector product each. They set
#   the scale to where it is right at the start; that it stays right is the work of the cosine, here with the way of
#   two hundred steps, since that with one noisy step is small and crosses zero at too small a rate.
# - Without noise every sign agrees, and gains grow to their bound: `egdd` with its defaults diverges on Rosenbrock's
#   function.
# - One network, small data, one seed in section 3 and three in section 4. `adapt_scale` has numbers of its own, 0.8 and
#   0.995 and a cap, the same for every problem that `python -m benchmarks learning-rate` has; they were found on this
#   data set.
#
# ## Bigger
#
# `SHAPE`, `STEPS`, `initial_rates` and the number of seeds are free; all rates and seeds run as one program, and a
# GPU needs no change. `python -m benchmarks learning-rate` repeats section 3 with more optimizers, problems and
# seeds, and with `OPTAX_IGR_DATA` set also on larger data. For MNIST, fetch it by `python -m benchmarks download
# mnist --data-dir data` and take `images` (reshaped to rows) and `labels` from
# `benchmarks.problems.PROBLEMS["mnist"](pathlib.Path(os.environ["OPTAX_IGR_DATA"])).train`, with `SHAPE = (784, 64,
# 64, 10)`.
#
# ## References
#
# - Amid, Anil, Fifty, Warmuth, [Step-size Adaptation Using Exponentiated Gradient
#   Updates](https://arxiv.org/abs/2202.00145), 2022: gain and scale, the shift of the task.
# - Baydin et al, [Online Learning Rate Adaptation with Hypergradient Descent](https://arxiv.org/abs/1703.04782),
#   2018: the same derivative, followed by an additive step.
# - Smee, Roosta, Wright, [First-ish Order Methods](https://arxiv.org/abs/2502.03701), 2025: the Cauchy step.
# - 苏剑林, [指数梯度下降 + 元学习 = 自适应学习率](https://www.kexue.fm/archives/8968), 2022: seed 002 of this
#   project, an essay on the paper of Amid et al. This notebook follows its second half,
#   notebook 03 its first.
