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
# # Exponentiated gradient: what if a step multiplies instead of adding?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/optax-igr/optax_igr/blob/main/notebooks/03_exponentiated_gradient.ipynb)
#
# Gradient descent adds to the weights, and so makes no difference between a weight of 1000 and one of 0.001, and none
# between a step within the positive numbers and one out of them. Exponentiated gradient multiplies,
#
# $$w \leftarrow w \odot e^{-\eta\, \nabla L(w)} .$$
#
# Positive weights stay positive, and a rate is a *relative* change. When does that help? This notebook
#
# 1. derives the step and draws it beside descent with clipping,
# 2. draws both geometries on the simplex, as a triangle of three experts, and measures the regret of prediction with
#    expert advice,
# 3. learns from data in which few inputs matter, with weights of either sign,
# 4. and puts the exponential at the end of other chains: a multiplicative Adam takes digits apart.
#
# You need to know `jax.grad` and the loop of Optax.

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

plt.style.use("figures.mplstyle")
print("optax_igr", optax_igr.__version__, "on JAX", jax.__version__)


def descend(optimizer, value_fn, params, num_steps):
    def step(carry, _):
        params, state = carry
        grad = jax.grad(value_fn)(params)
        updates, state = optimizer.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), params

    (params, _), path = jax.lax.scan(step, (params, optimizer.init(params)), length=num_steps)
    return jnp.concatenate([path, params[None]])


# %% [markdown]
# ## 1. Positive weights
#
# Write $w = e^\varphi$: then $\varphi$ is free, and gradient descent in it is $\varphi \leftarrow \varphi - \eta\, w
# \odot \nabla L(w)$. The seed of this notebook drops the factor $w$ from the chain rule as "not essential" and
# arrives at $\varphi \leftarrow \varphi - \eta \nabla L(w)$, which is exponentiated gradient. It is more than a
# shortcut. The step without the factor is the exact answer to another question: it minimises
#
# $$\eta\,\langle \nabla L(w), w' \rangle + \mathrm{KL}(w' \,|\, w) \quad\text{where descent minimises}\quad
# \eta\,\langle \nabla L(w), w' \rangle + \tfrac12 \|w' - w\|^2 ,$$
#
# with the Kullback-Leibler divergence as the distance that is right for positive numbers. And the dropped factor does
# harm: it makes small weights nearly immobile. In Optax the exponential is the **last link of a chain**,
# `exponentiate`, which turns an additive update $u$ into $w \odot (e^u - 1)$:

# %%
target = jnp.array([2.0, 0.05])


def positive_loss(w):
    return jnp.sum((w - target) ** 2) / 2


start, rate = jnp.array([0.02, 1.5]), 0.2
exponentiated = optax.chain(optax.scale_by_learning_rate(rate), optax_igr.exponentiate())
clipped = optax.chain(
    optax.sgd(rate), optax_igr.keep_params_in(optax.projections.projection_non_negative)
)
paths = {
    "descent, clipped at 0": descend(clipped, positive_loss, start, 60),
    "exponentiated gradient": descend(exponentiated, positive_loss, start, 60),
    "descent on log w": jnp.exp(
        descend(optax.sgd(rate), lambda phi: positive_loss(jnp.exp(phi)), jnp.log(start), 60)
    ),
}
first, second = paths["exponentiated gradient"][:2]
print("change of log w in the first step", jnp.log(second) - jnp.log(first))
print("-rate * gradient                 ", -rate * jax.grad(positive_loss)(start))

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.2, 3.6))
for (name, path), style in zip(paths.items(), ("o-", "s-", "^-"), strict=True):
    axes[0].plot(*path.T, style, label=name, markersize=4)
    axes[1].semilogy(jax.vmap(positive_loss)(path), label=name)
axes[0].plot(*target, "k*", markersize=12)
axes[0].set(xlabel="weight w₁", ylabel="weight w₂", title="Paths of 60 steps (star: the minimum)")
axes[1].set(xlabel="step", ylabel="loss", title="The loss on the way")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()
for name, path in paths.items():
    print(f"{name:24} loss {positive_loss(path[-1]):.1e} after 60 steps")

# %% [markdown]
# This loss is equally round everywhere, nothing in it is relative, and plain descent wins: it goes straight to the
# minimum. Exponentiated gradient goes around, is never outside, and is slow towards a weight as small as 0.05, as its
# steps shrink with the weight. Descent on $\log w$ shows what the dropped factor does: the weight that begins at 0.02
# hardly moves in 60 steps.
#
# ## 2. The simplex: three experts
#
# Weights that are positive **and** sum to one are a mixture. `exponentiate_simplex` multiplies and normalises,
#
# $$w_i \leftarrow \frac{w_i\, e^{-\eta g_i}}{\sum_j w_j\, e^{-\eta g_j}} ,$$
#
# where descent has to be projected back, here by Optax's `projection_simplex`. Each corner of the triangle is an
# expert, the loss is linear, $\langle c, w\rangle$ with the experts' losses $c = (0, 0.5, 1)$, and grey lines are
# mixtures of equal loss.

# %%
costs, rate = jnp.array([0.0, 0.5, 1.0]), 0.15
euclidean = optax.chain(
    optax.sgd(rate), optax_igr.keep_params_in(optax.projections.projection_simplex)
)
multiplicative = optax.chain(optax.scale_by_learning_rate(rate), optax_igr.exponentiate_simplex())
corners = np.array([[0.5, 3**0.5 / 2], [0, 0], [1, 0]])  # of experts 1, 2 and 3
starts = [(1 / 3, 1 / 3, 1 / 3), (0.02, 0.03, 0.95), (0.02, 0.93, 0.05)]

fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.9))
titles = ("Euclidean: descent, projected", "Kullback-Leibler: exponentiated")
for axis, optimizer, title in zip(axes, (euclidean, multiplicative), titles, strict=True):
    axis.fill(*corners.T, facecolor="none", edgecolor="k")
    for level in np.arange(0.1, 1, 0.1):
        ends = [(1 - level, 0, level)]
        ends += [
            (1 - 2 * level, 2 * level, 0) if level < 0.5 else (0, 2 - 2 * level, 2 * level - 1)
        ]
        axis.plot(*(np.array(ends) @ corners).T, color="0.85", linewidth=0.9)
    for begin in starts:
        path = descend(optimizer, lambda w: costs @ w, jnp.array(begin), 40)
        axis.plot(*(np.asarray(path) @ corners).T, "o-", markersize=3.5)
    for corner, cost, k in zip(corners, costs, (1, 2, 3), strict=True):
        offset = (0, 8) if k == 1 else (0, -16)
        axis.annotate(
            f"expert {k}, loss {cost:g}", corner, offset, textcoords="offset points", ha="center"
        )
    axis.set(aspect="equal", title=title, xlim=(-0.2, 1.2), ylim=(-0.12, 1.0))
    axis.axis("off")
plt.show()

# %% [markdown]
# Descent crosses the lines at right angles until it meets an edge, and slides along it with weights that are exactly
# zero. Exponentiated gradient never touches an edge. Each step multiplies the *ratio* of two weights by the same
# factor, so a weight that begins near zero (green: expert 1 at 0.02) needs many steps to show.
#
# **What is it good for?** Prediction with expert advice: every day the player mixes $N$ experts, then learns their
# losses in $[0, 1]$, whatever they are. With $\eta = \sqrt{8 \ln N / T}$ the loss after $T$ days exceeds that of the
# best expert by at most $\sqrt{T \ln N / 2}$. The number of experts enters by its logarithm. Here, of 1000 experts
# one is a little better than the others (it errs in 40 % of the days, they in 50 %), and the Euclidean player takes
# the best of nine rates in hindsight:

# %%
NUM_EXPERTS, DAYS = 1000, 2000
random = np.random.default_rng(0)
probabilities = np.where(np.arange(NUM_EXPERTS) == 0, 0.4, 0.5)
losses = jnp.asarray(random.random((DAYS, NUM_EXPERTS)) < probabilities, jnp.float32)
best = jnp.cumsum(losses, axis=0)[:, 0]


@functools.partial(jax.jit, static_argnames="make")
def regret(make, rate):
    optimizer = make(rate)

    def day(carry, loss):
        weights, state = carry
        updates, state = optimizer.update(loss, state, weights)
        return (optax.apply_updates(weights, updates), state), loss @ weights

    weights = jnp.ones(NUM_EXPERTS) / NUM_EXPERTS
    _, incurred = jax.lax.scan(day, (weights, optimizer.init(weights)), losses)
    return jnp.cumsum(incurred) - best


def hedge(rate):
    return optax.chain(optax.scale_by_learning_rate(rate), optax_igr.exponentiate_simplex())


def projected(rate):
    return optax.chain(
        optax.sgd(rate), optax_igr.keep_params_in(optax.projections.projection_simplex)
    )


# %%
theory = (8 * np.log(NUM_EXPERTS) / DAYS) ** 0.5
bound = (DAYS * np.log(NUM_EXPERTS) / 2) ** 0.5
projected_regrets = {rate: regret(projected, rate) for rate in 2.0 ** np.arange(-14, -5)}
best_rate = min(projected_regrets, key=lambda rate: projected_regrets[rate][-1])
curves = {
    "exponentiated, at the rate of theory": regret(hedge, theory),
    f"projected descent, best rate {best_rate:.4f}": projected_regrets[best_rate],
}
fig, axis = plt.subplots(figsize=(5.8, 3.5))
for (name, curve), style in zip(curves.items(), ("-", "--"), strict=True):
    axis.plot(curve, style, label=f"{name}: {curve[-1]:.0f} at the end")
axis.axhline(bound, color="0.5", linestyle=":", label=f"the bound for exponentiated: {bound:.0f}")
axis.set(xlabel="day", ylabel="loss beyond that of the best expert", ylim=(0, 200))
axis.set_title("1000 experts, one of them a little better")
axis.legend()
plt.show()
uniform = float(jnp.sum(jnp.mean(losses, axis=1)) - best[-1])
print(f"the uniform mixture: {uniform:.0f}; projected descent at nine rates:", end=" ")
print(*(f"{curve[-1]:.0f}" for curve in projected_regrets.values()))

# %% [markdown]
# After about 400 days the multiplicative player has found the expert, and its loss is below the bound. The Euclidean
# one stays close to the uniform mixture at all nine rates: 1000 noisy losses move it more than the one that matters.
#
# ## 3. Few inputs that matter, and weights of either sign
#
# EG± writes $w = w_+ - w_-$ as the difference of two positive vectors that share one simplex of size $U$, so it
# searches the ball $\|w\|_1 \le U$. `exponentiate_hypentropy` does without the second copy: $w \leftarrow \beta
# \sinh(\operatorname{arcsinh}(w/\beta)
# - \eta g)$ is additive for $|w| \ll \beta$ and multiplicative for $|w| \gg \beta$. The task: inputs are $\pm 0.1$ at
#   random, **three** of $N$ make the output, each of 600 examples is seen once, and the score is the sum of the
#   square losses on the way, with the best of 14 rates for each.


# %%
def sparse_examples(num_inputs, num_examples=600):
    x = np.random.default_rng(num_inputs).choice([-0.1, 0.1], (num_examples, num_inputs))
    relevant = np.zeros(num_inputs)
    relevant[:3] = 10, -10, 10
    return jnp.asarray(x, jnp.float32), jnp.asarray(x @ relevant, jnp.float32)


def online(optimizer, examples):
    def example(carry, xy):
        weights, state = carry
        value, grad = jax.value_and_grad(lambda w: (xy[0] @ w - xy[1]) ** 2)(weights)
        updates, state = optimizer.update(grad, state, weights)
        return (optax.apply_updates(weights, updates), state), value

    weights = jnp.zeros(examples[0].shape[1])
    (weights, _), values = jax.lax.scan(example, (weights, optimizer.init(weights)), examples)
    return weights, jnp.sum(values)


games = {
    "gradient descent": optax.sgd,
    "Adam": optax.adam,
    "EG±, U = 30": lambda rate: optax_igr.eg_plus_minus(rate, total=30.0),
    "hypentropy, β = 0.1": lambda rate: optax_igr.exponentiated_gradient(
        rate, domain="hypentropy", beta=0.1
    ),
}

# %%
all_inputs, rates = (30, 100, 300, 1000), jnp.asarray(2.0 ** np.arange(-8, 6))
found = {}
for num_inputs in all_inputs:
    examples = sparse_examples(num_inputs)
    for name, make in games.items():
        play = jax.jit(jax.vmap(lambda rate, make=make: online(make(rate), examples)))  # noqa: B023
        weights, scores = play(rates)
        best = np.nanargmin(scores)
        found[name, num_inputs] = weights[best], float(scores[best]), float(rates[best])

fig, axes = plt.subplots(1, 2, figsize=(9.4, 3.5))
for name, marker in zip(games, "os^D", strict=True):
    scores = [found[name, n][1] for n in all_inputs]
    axes[0].loglog(all_inputs, scores, marker + "-", label=name)
    axes[1].plot(found[name, 300][0][:40], marker, label=name, markersize=4, alpha=0.8)
    print(f"{name:20}", *(f"N = {n}: {s:.0f}" for n, s in zip(all_inputs, scores, strict=True)))
axes[0].set(
    xlabel="number of inputs N", ylabel="sum of 600 square losses", title="Best rate of each"
)
axes[1].set(
    xlabel="input (the first 40 of 300)", ylabel="weight after 600 examples", title="Weights"
)
axes[0].legend()
plt.show()

# %% [markdown]
# With more inputs EG± hardly gets worse, where the loss of descent and Adam grows with $N$. The weights say why:
# descent spreads what it has learned over all inputs that happened to agree. Hypentropy lies between; it is not told
# the norm $U$ of the solution. Where *all* inputs matter a little, the comparison turns round; the bounds of Kivinen
# and Warmuth (1997) are for both cases.
#
# ## 4. The last link of any chain
#
# `exponentiate` takes the update of *any* chain as its exponent: after `scale_by_adam` it is a multiplicative Adam.
# As a use for positive weights, take images apart into parts: find positive $W$ and $H$ with $V \approx W H$ for the
# digits' pixels $V$ (Lee and Seung, 1999). Beside it the same Adam with its steps clipped at zero.

# %%
pixels = jnp.asarray(load_digits().data[:600] / 16, jnp.float32)
PARTS, STEPS = 16, 400


def factor_loss(params):
    return jnp.mean((params["codes"] @ params["parts"] - pixels) ** 2)


def factor_init(key):
    keys = jax.random.split(key)
    shapes = {"codes": (len(pixels), PARTS), "parts": (PARTS, pixels.shape[1])}
    return {
        name: jax.random.uniform(k, shape, minval=0.05, maxval=0.35)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


chains = {
    "Adam, exponentiated": lambda rate: optax.chain(
        optax.scale_by_adam(), optax.scale_by_learning_rate(rate), optax_igr.exponentiate()
    ),
    "Adam, clipped at 0": lambda rate: optax.chain(
        optax.adam(rate), optax_igr.keep_params_in(optax.projections.projection_non_negative)
    ),
}


# %%
@functools.partial(jax.jit, static_argnames="name")
def factorise(rate, *, name):
    optimizer, params = chains[name](rate), factor_init(jax.random.key(0))

    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(factor_loss)(params)
        updates, state = optimizer.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, _), values = jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS)
    return params, values


fig, axis = plt.subplots(figsize=(5.4, 3.4))
factors = {}
for name, style in zip(chains, ("-", "--"), strict=True):
    runs = {rate: factorise(rate, name=name) for rate in (0.003, 0.01, 0.03, 0.1, 0.3)}
    rate = min(runs, key=lambda rate, runs=runs: runs[rate][1][-1])
    factors[name], values = runs[rate]
    axis.loglog(
        np.arange(1, STEPS + 1), values, style, label=f"{name}, rate {rate}: {values[-1]:.5f}"
    )
    print(f"{name:20}", *(f"rate {r}: {v[-1]:.5f}" for r, (_, v) in runs.items()))
axis.set(xlabel="step", ylabel="mean square error", title="Digits as sums of 16 positive parts")
axis.legend()
plt.show()

# %%
fig = plt.figure(figsize=(10, 2.3))
for row, (name, params) in zip(fig.subfigures(2, 1), factors.items(), strict=True):
    row.suptitle(f"parts found by {name}", fontsize=10)
    for axis, part in zip(row.subplots(1, PARTS), params["parts"], strict=True):
        axis.imshow(part.reshape(8, 8), cmap="gray_r")
        axis.axis("off")
    zeros = [float(jnp.mean(x == 0)) for x in jax.tree.leaves(params)]
    print(f"{name:20} least entry {min(map(jnp.min, jax.tree.leaves(params))):.1e},", end=" ")
    print(f"exact zeros: {zeros[0]:.1%} of the codes, {zeros[1]:.1%} of the parts")
plt.show()

# %% [markdown]
# Both find strokes. In this task the exponential is not the better choice: clipping ends at the smaller error, and
# its exact zeros are welcome in parts. Exponentiated weights are never zero, which is what one wants of a variance, a
# rate, or anything of which a logarithm is taken later.
#
# The exponential must be the **last** link. What follows it is additive again and can leave the positive numbers;
# decay, for instance, belongs inside the exponent, where `exponentiated_gradient(..., weight_decay=...)` has it. And
# weights in bfloat16 cannot follow small factors: half a unit in the last place of a weight is about 2e-3.
# `log_state=True` keeps the logarithms in float32 in the state.

# %%
push = {"w": jnp.array([1.0, 2.0])}
for name, optimizer in {
    "decay after the exponential ": optax.chain(
        optax.sgd(3.0), optax_igr.exponentiate(), optax.add_decayed_weights(-0.1)
    ),
    "decay inside the exponential": optax_igr.exponentiated_gradient(3.0, weight_decay=0.1),
}.items():
    params = {"w": jnp.array([1.0, 1.0])}
    updates, _ = optimizer.update(push, optimizer.init(params), params)
    print(name, optax.apply_updates(params, updates)["w"])

for log_state in (False, True):
    optimizer = optax_igr.exponentiated_gradient(1e-3, log_state=log_state)
    weight = jnp.array([1.0], jnp.bfloat16)
    state = optimizer.init(weight)
    for _ in range(200):
        updates, state = optimizer.update(jnp.array([1.0], jnp.bfloat16), state, weight)
        weight = optax.apply_updates(weight, updates)
    print(f"bfloat16 after 200 factors exp(-0.001), {log_state=}: {float(weight[0]):.4f}")
print(f"exact: {np.exp(-0.2):.4f}")

# %% [markdown]
# ## What this does not show
#
# - **Zero absorbs.** A weight at zero stays there: `exponentiate` refuses a leaf of zeros, and `floor` or
#   `fixed_share` keep weights away from it; biases that start at zero belong to `exponentiate_hypentropy` or, by
#   `optax.partition`, to another optimizer.
# - The tasks of sections 2 and 3 are made for this geometry: few experts, few inputs. Section 4 is not, and shows it.
#   On the public data set w8a, EG± was sparser than descent and had the larger error (2.64 against 1.74 %, measured
#   by `python -m benchmarks geometry`).
# - The rate is relative: a good rate of descent says nothing about that of exponentiated gradient.
#
# ## Bigger
#
# `NUM_EXPERTS`, `DAYS`, `all_inputs` and `PARTS` are free; a GPU needs no change. `python -m benchmarks geometry`
# repeats section 3 with several seeds, and with `OPTAX_IGR_DATA` set (`python -m benchmarks download libsvm
# --data-dir data`) on a9a and w8a; `python -m benchmarks hedge` repeats the experts. For parts of MNIST take
# `benchmarks.problems.PROBLEMS["mnist"](pathlib.Path(os.environ["OPTAX_IGR_DATA"])).train["image"]`, reshaped to
# rows, as `pixels`.
#
# ## References
#
# - Kivinen, Warmuth, [Exponentiated Gradient versus Gradient Descent for Linear
#   Predictors](https://doi.org/10.1006/inco.1996.2612), 1997: EG, EG±, the bounds.
# - Ghai, Hazan, Singer, [Exponentiated Gradient Meets Gradient Descent](https://arxiv.org/abs/1902.01903), 2020:
#   hypentropy.
# - Freund, Schapire, [A Decision-Theoretic Generalization of On-Line
#   Learning](https://doi.org/10.1006/jcss.1997.1504), 1997: experts.
# - Amid et al, [Step-size Adaptation Using Exponentiated Gradient Updates](https://arxiv.org/abs/2202.00145), 2022.
# - Lee, Seung, [Learning the parts of objects by non-negative matrix factorization](https://doi.org/10.1038/44565),
#   1999.
# - 苏剑林, [指数梯度下降 + 元学习 = 自适应学习率](https://www.kexue.fm/archives/8968), 2022: seed 002 of this
#   project, an essay on the paper of Amid et al. This notebook follows its first half,
#   notebook 04 its second.
