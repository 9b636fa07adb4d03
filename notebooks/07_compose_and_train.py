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
# # Compose and train: can techniques that ask for different things share one optimizer?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/optax-igr/optax_igr/blob/main/notebooks/07_compose_and_train.ipynb)
#
# A gradient penalty wants a second evaluation of the loss, a decay of spectral norms wants to know what each weight
# is as an operator, weights on a simplex want another geometry, a cap on the step wants the final update. This
# notebook chains four techniques of four families into a Flax NNX model and into a Linen model and answers:
#
# 1. In which order do they stand, and what must the training loop know? 2. What can be read from their state?
# 3. Does a checkpoint hold all of it? 4. What does each link change, and cost?
# 5. Should layers in front learn more slowly (the question that closes seed 003)? 6. What changes on a GPU?

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
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import linen, nnx
from sklearn.datasets import load_digits

import optax_igr
import optax_igr.flax
from optax_igr import diagnostics

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
plt.rcParams.update({"figure.dpi": 84, "axes.prop_cycle": plt.cycler(color=COLOURS)})  # Okabe, Ito
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10})

pixels, digits = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(digits))
images = jnp.asarray(pixels[order].reshape(-1, 8, 8, 1) / 16, jnp.float32)
labels = jnp.asarray(digits[order])
train, test = ((images[part], labels[part]) for part in (slice(500), slice(500, None)))

# %% [markdown]
# ## 1. A chain for an NNX model
#
# The model has everything that makes extra evaluations of a loss delicate: BatchNorm, whose statistics must move
# once a step, and dropout, whose mask must be that of the gradient. It also has three weights $w$ on the simplex,
# which mix activation functions: $\sum_i w_i\, a_i(h)$.

# %%
ACTIVATIONS = {"tanh": jnp.tanh, "gelu": nnx.gelu, "sin": jnp.sin}


class Network(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.mixture = nnx.Param(jnp.full(3, 1 / 3))
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images):
        hidden = self.norm(self.conv(images))
        activated = jnp.stack([activation(hidden) for activation in ACTIVATIONS.values()])
        hidden = jnp.tensordot(self.mixture[...], activated, axes=1)
        hidden = nnx.avg_pool(hidden, (2, 2), strides=(2, 2))
        return self.head(self.dropout(hidden.reshape(hidden.shape[0], -1)))


def loss_fn(model, images, labels):
    logits = model(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# %% [markdown]
# The order of a chain is part of its meaning:
#
# | place | link | what it does |
# |---|---|---|
# | first, where the updates are the gradient | `monitor_drift` | measures, changes nothing |
# | before momentum, in the loss | `add_gradient_penalty(μ)` | adds $\nabla\, \mu \lVert g \rVert^2 = 2 \mu H g$ |
# | the same | `add_schatten_decay(μ, gram_steps=2)` | adds $\nabla \frac{\mu}{2} \lVert W \rVert_{S_8}^2$ |
# | the optimizer | `optax.sgd` with momentum | |
# | after the learning rate | `limit_by_curvature(1)` | shortens $u$ where $u^\top H u > -2 u^\top g$ |
# | on other parameters | `exponentiated_gradient`, simplex | $w_i \leftarrow w_i e^{-\gamma g_i} / Z$ |
#
# `optax.partition` gives the mixture its own optimizer. Optax's partitions and masks put placeholders in the place
# of the parameters that another link owns; `mask_compatible_extra_args=True` makes them do so in `grad` too.


# %%
def make(seed):
    model = Network(nnx.Rngs(seed))
    operator = optax_igr.flax.operators(model, images[:1])
    weights = optax.chain(
        optax_igr.add_gradient_penalty(0.02),
        optax_igr.add_schatten_decay(1e-3, gram_steps=2, operator=operator),
        optax.sgd(0.2, momentum=0.9),
        optax_igr.limit_by_curvature(1.0),
    )
    simplex = optax_igr.exponentiated_gradient(1.0, domain="simplex")

    def group(path, leaf):
        return "simplex" if "mixture" in jax.tree_util.keystr(path) else "weights"

    parts = optax.partition(
        {"weights": weights, "simplex": simplex},
        functools.partial(jax.tree_util.tree_map_with_path, group),
        mask_compatible_extra_args=True,
    )
    tx = optax.chain(diagnostics.monitor_drift(), parts)
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, images, labels):
    return optax_igr.flax.train_step(model, optimizer, loss_fn, images, labels)


# %% [markdown]
# The loop knows nothing of what is in the chain: `train_step` hands `value`, `grad` and `value_fn` to it.
#
# ## 2. What the state tells
#
# Measurements live in the state of the links, under names, and `optax.tree.get(state, name)` finds them wherever
# they stand. Reading one waits for the device, so we read every fifth step.

# %%
MEASURED = ("relative_drift", "curvature_ratio", "schatten_norms", "limited_count")


def batches(seed, num_steps, batch_size=64):
    rng = np.random.default_rng(seed)
    return [rng.choice(len(train[1]), batch_size, replace=False) for _ in range(num_steps)]


model, optimizer = make(seed=0)
history = []
for index, batch in enumerate(batches(0, 120)):
    loss = step(model, optimizer, train[0][batch], train[1][batch])
    if index % 5 == 0:
        state = nnx.as_pure(optimizer.opt_state)
        row = {name: jax.device_get(optax.tree.get(state, name)) for name in MEASURED}
        history.append({"step": index, "loss": float(loss), "mixture": model.mixture[...], **row})

# %%
fig, axes = plt.subplots(1, 4, figsize=(13, 3.1))
steps = [row["step"] for row in history]
axes[0].semilogy(steps, [row["loss"] for row in history])
axes[0].set(title="the loss of the batch", ylabel="cross-entropy")
axes[1].plot(steps, [row["curvature_ratio"] for row in history], label=r"$\kappa$ of the step")
axes[1].plot(steps[1:], [row["relative_drift"] for row in history[1:]], label="relative drift")
axes[1].axhline(2, color="0.6", lw=0.8)
axes[1].set(title="how far; 2 is the descent bound", ylabel="ratio", ylim=(0, 3.2))
for name in ("conv", "head"):
    norms = [row["schatten_norms"][name]["kernel"] for row in history]
    axes[2].plot(steps, norms, label=name)
axes[2].set(title="bounds of the spectral norms", ylabel=r"$\|W\|_{S_8}$", ylim=(0, None))
for index, name in enumerate(ACTIVATIONS):
    axes[3].plot(steps, [row["mixture"][index] for row in history], label=name)
axes[3].set(title="the mixture, on the simplex", ylabel="weight", ylim=(0, 1))
for axis in axes:
    axis.set_xlabel("step")
for axis in axes[1:]:
    axis.legend(frameon=False, fontsize=9)
fig.tight_layout()
last = history[-1]
print(
    f"steps shortened: {last['limited_count']} of {last['step'] + 1}; sum of the mixture {last['mixture'].sum():.6f}"
)


# %% [markdown]
# The mixture stays on the simplex to rounding. The norms of the two weights grow at first and flatten where decay
# and data balance. The ratio $\kappa$ and the drift are those of single batches here, so a good part of both is
# noise of sampling (`monitor_drift(interval=k)` averages over $k$ steps).


# %%
def accuracy(model):
    model.eval()
    correct = jnp.argmax(model(test[0]), axis=-1) == test[1]
    model.train()
    return jnp.mean(correct)


print(f"test accuracy {accuracy(model):.1%} after {len(steps) * 5} steps on {len(train[1])} images")

# %% [markdown]
# ## 3. Checkpoints
#
# A checkpoint must hold the model, its running statistics and random counters, and the state of every link. All of
# it is one `nnx.state`; Orbax restores it into a model that was made anew, from another seed. Then both go on, and
# must agree to the last bit.

# %%
with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(f"{folder}/120", nnx.state((model, optimizer)))
    checkpointer.wait_until_finished()
    restored = make(seed=1)
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, nnx.state(restored))
    nnx.update(restored, checkpointer.restore(f"{folder}/120", shapes))

for batch in batches(1, 10):
    for pair in ((model, optimizer), restored):
        step(*pair, train[0][batch], train[1][batch])
equal = jax.tree.map(lambda a, b: bool((a == b).all()), *map(nnx.state, (model, restored[0])))
print("equal after ten more steps:", jax.tree.all(equal))

# %% [markdown]
# ## 4. What each link changes: a Linen model, link by link
#
# In Linen the parameters are a plain tree, so seeds train side by side under `jax.vmap`. `optax_igr.flax.TrainState`
# is Flax's own with an `apply_gradients` that takes extra arguments. Four links, each alone and all together:


# %%
class MLP(linen.Module):
    widths: tuple[int, ...] = (64, 64, 10)

    @linen.compact
    def __call__(self, inputs):
        inputs = inputs.reshape(inputs.shape[0], -1)
        for index, width in enumerate(self.widths):
            inputs = linen.Dense(width, name=f"layer_{index}")(inputs)
            inputs = linen.tanh(inputs) if index + 1 < len(self.widths) else inputs
        return inputs


def depth_fn(path):
    return next(int(key.key[-1]) for key in path if str(key.key).startswith("layer_"))


mlp = MLP()
operator = optax_igr.flax.operators(mlp, images[:1])
first = {
    "gradient penalty": optax_igr.add_gradient_penalty(0.05),
    "Schatten decay": optax_igr.add_schatten_decay(5e-3, gram_steps=2, operator=operator),
}
last = {
    "layer-wise rates": optax_igr.layerwise_decay(0.7, depth_fn, num_layers=3),
    "curvature cap": optax_igr.limit_by_curvature(1.0),
}


# %%
def compose(names):
    before = [link for name, link in first.items() if name in names]
    after = [link for name, link in last.items() if name in names]
    return optax.chain(*before, optax.sgd(0.2, momentum=0.9), *after)


def train_step(state, batch):
    def value_fn(params):
        logits = state.apply_fn({"params": params}, train[0][batch])
        return optax.softmax_cross_entropy_with_integer_labels(logits, train[1][batch]).mean()

    value, grads = jax.value_and_grad(value_fn)(state.params)
    extra_args = {"value": value, "grad": grads, "value_fn": value_fn}
    return state.apply_gradients(grads=grads, extra_args=extra_args), value


def initial_state(tx, key):
    params = mlp.init(key, images[:1])["params"]
    return optax_igr.flax.TrainState.create(apply_fn=mlp.apply, params=params, tx=tx)


# %%
SEEDS, STEPS = 5, 250
keys = jax.random.split(jax.random.key(0), SEEDS)
order = np.stack([batches(seed, STEPS) for seed in range(SEEDS)], axis=1)  # [step, seed, sample]


def run(names):
    """Trains every seed; returns the parameters, and the compiler's cost of a step."""
    states = jax.vmap(functools.partial(initial_state, compose(names)))(keys)
    compiled = jax.jit(jax.vmap(train_step)).lower(states, order[0]).compile()
    for batch in order:
        states, _ = compiled(states, batch)
    return states.params, compiled.cost_analysis()["flops"]


# %%
@jax.jit
@jax.vmap
def measure(params):
    def loss(params, images, labels):
        logits = mlp.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    correct = jnp.argmax(mlp.apply({"params": params}, test[0]), axis=-1) == test[1]
    norms = [diagnostics.spectral_norm(layer["kernel"]) for layer in params.values()]
    gradient = optax.tree.norm(jax.grad(loss)(params, *train)) / loss(params, *train)
    return 100 * jnp.mean(correct), gradient, functools.reduce(jnp.multiply, norms)


MEASURES = ("test accuracy, %", "gradient norm / training loss", "product of spectral norms")
everything = (*first, *last)
rows = {"none": (), **{name: (name,) for name in everything}, "all four": everything}
results, costs = {}, {}
for name, names in rows.items():
    params, costs[name] = run(names)
    results[name] = np.array(measure(params))  # [measure, seed]

# %%
fig, axes = plt.subplots(1, 4, figsize=(13, 3.1), sharey=True)
positions = np.arange(len(rows))
for index, (axis, title) in enumerate(zip(axes, MEASURES, strict=False)):
    for position, values in enumerate(results.values()):
        axis.plot(values[index], np.full(SEEDS, position), ".", color="0.6")
        axis.plot(values[index].mean(), position, "D", color=COLOURS[0])
    axis.set_xlabel(title)
axes[3].barh(positions, [costs[name] / costs["none"] for name in rows], color=COLOURS[0])
axes[3].set_xlabel("FLOPs of a step; plain is 1")
axes[0].set(yticks=positions, yticklabels=rows)
axes[0].invert_yaxis()
fig.tight_layout()
print(f"{'':17s}", "  ".join(f"{title:>29s}" for title in MEASURES))
for name, values in results.items():
    paired = values - results["none"]  # by seed: the same initial weights and batches
    half = 2.78 * paired.std(axis=1, ddof=1) / SEEDS**0.5
    cells = [f"{d:+21.2f} ± {h:5.2f}" for d, h in zip(paired.mean(axis=1), half, strict=True)]
    print(f"{name:17s}", "  ".join(cells), f"  FLOPs {costs[name] / costs['none']:.2f}")

# %% [markdown]
# The table is the mean difference to the plain optimizer, paired by seed, with a 95 % interval (five seeds); an
# interval that contains zero shows no difference. What can be said: the decay lowers the product of the norms, alone
# and in company with the others, and so do the smaller rates in front. The penalty alone raises it, and the accuracy
# a little. Most other differences are within the spread of the seeds. The costs add up: each of the two
# Hessian-vector products is about 1.7 gradients; the Schatten decay is a few products of weight matrices whatever
# the batch, and so large here because a batch of 64 is as small as the matrices.
#
# ### Masks
#
# A penalty that leaves the biases alone has its own `mask`, which treats them as constants. The general tool,
# `optax.masked`, works too where `value_fn` can take parameters with holes: `optax_igr.fill_masked` makes it so in
# plain JAX and in Linen (the `value_fn` of the NNX adapter already can).


# %%
def value_fn(params):
    logits = mlp.apply({"params": params}, train[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, train[1]).mean()


params = mlp.init(keys[0], images[:1])["params"]
kernels = jax.tree.map(lambda p: p.ndim > 1, params)
own = optax_igr.add_gradient_penalty(0.05, mask=kernels)
general = optax.masked(optax_igr.add_gradient_penalty(0.05), kernels)
grad = jax.grad(value_fn)(params)
by_own, _ = own.update(grad, own.init(params), params, value_fn=value_fn)
filled = optax_igr.fill_masked(value_fn, params)
by_general, _ = general.update(grad, general.init(params), params, value_fn=filled)
difference = jax.tree.map(lambda a, b: float(abs(a - b).max()), by_own, by_general)
print("largest difference of the two ways:", max(jax.tree.leaves(difference)))
unmoved = by_own["layer_0"]["bias"] - grad["layer_0"]["bias"]
print("change of a bias's update:", float(abs(unmoved).max()))

# %% [markdown]
# ## 5. Should layers in front learn more slowly?
#
# Seed 003 closes with the question: "why has every layer of a network the same learning rate; should it not be small
# in front and large behind?" `layerwise_decay` multiplies the update of layer $d$ of $D$ by $\delta^{D - 1 - d}$:
# for $\delta < 1$ layers in front learn more slowly, for $\delta > 1$ faster. A change of $\delta$ also changes the
# mean rate, so every $\delta$ is tried at every rate, and each is judged at its own best.

# %%
deep = MLP(widths=(32, 32, 32, 32, 32, 10))
DECAYS = jnp.array([0.5, 0.7, 1.0, 1.4, 2.0])
RATES = jnp.array([0.05, 0.1, 0.2, 0.5, 1.0, 2.0])
layers = jax.eval_shape(deep.init, keys[0], images[:1])["params"]
print(optax_igr.factor_table(optax_igr.layerwise_decay(0.5, depth_fn, 6), layers))


def train_deep(decay, rate, seed):
    def value_fn(params, batch):
        logits = deep.apply({"params": params}, train[0][batch])
        return optax.softmax_cross_entropy_with_integer_labels(logits, train[1][batch]).mean()

    def step(carry, batch):
        params, state = carry
        updates, state = optimizer.update(jax.grad(value_fn)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    optimizer = optax.chain(optax.sgd(rate), optax_igr.layerwise_decay(decay, depth_fn, 6))
    params = deep.init(jax.random.key(seed), images[:1])["params"]
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), order[:200, 0])
    return value_fn(params, jnp.arange(len(train[1])))


# %%
grid = jax.vmap(train_deep, in_axes=(None, None, 0))
grid = jax.vmap(jax.vmap(grid, in_axes=(None, 0, None)), in_axes=(0, None, None))
losses = np.asarray(jax.jit(grid)(DECAYS, RATES, jnp.arange(3)))  # [decay, rate, seed]
losses = np.where(np.isfinite(losses), losses, np.inf)

fig, axis = plt.subplots(figsize=(6.5, 3.6))
for decay, by_rate, colour in zip(DECAYS, losses, COLOURS, strict=False):
    axis.loglog(
        RATES, np.median(by_rate, axis=1), "o-", color=colour, label=rf"$\delta$ = {decay:.1f}"
    )
    best = np.median(by_rate, axis=1).argmin()
    seeds = ", ".join(f"{loss:.3f}" for loss in by_rate[best])
    print(f"δ = {decay:.1f}: best rate {RATES[best]:.2f}, training loss of the seeds {seeds}")
axis.set(xlabel="learning rate of the last layer", ylabel="training loss after 200 steps")
axis.legend(frameon=False, fontsize=9)
fig.tight_layout()

# %% [markdown]
# The curves have one shape, shifted sideways: a larger $\delta$ wants a smaller rate. At their own best rates they
# end alike, to within what the seeds (printed) differ by. So on this network, from scratch, nothing speaks for the
# rule of the essay, nor against it: the factor moves the best rate and gains nothing. Where front layers are to move
# less because they are *pretrained*, $\delta < 1$ is common practice ([ELECTRA](https://arxiv.org/abs/2003.10555));
# that was not tried here.
#
# ## 6. What changes on a GPU
#
# The code does not: JAX puts arrays and compiled steps on the first accelerator that it finds. This notebook was
# executed on the device printed below. What one should know elsewhere:
#
# - **Precision of differences.** The default radius of `hvp="forward_difference"` is made for float32 rounding.
#   Where matrix products round more coarsely (TF32, on recent GPUs by default) take an exact mode, a larger
#   `radius`, or `jax.default_matmul_precision("float32")`.
# - **Waiting.** Steps are queued without waiting; reading a measurement (`float(...)`, `device_get`) waits. Read
#   every so many steps, as above.
# - **Memory.** An exact Hessian-vector product keeps the activations of two passes; `optax_igr.microbatched` bounds
#   them. States are counted in copies of the parameters in the README's table. Donate model and state to the step
#   (`jax.jit(step, donate_argnums=...)`): no state of the library shares a buffer with the parameters.
# - **bfloat16 weights.** Updates come in the dtype of the parameters, sums and measurements in float32 (the momentum
#   of `optax.sgd` is Optax's own, and bfloat16 unless `accumulator_dtype` says otherwise). No run is needed to see
#   that:

# %%
print("executed on", jax.devices()[0].platform, jax.devices()[0].device_kind)
state = initial_state(compose(everything), keys[0])
narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), state.params)
state = state.replace(params=narrow, opt_state=state.tx.init(narrow))
after, _ = jax.eval_shape(train_step, state, order[0, 0])
print("parameters:", {str(leaf.dtype) for leaf in jax.tree.leaves(after.params)})
for name in ("schatten_norms", "curvature_ratio", "trace"):
    leaves = jax.tree.leaves(optax.tree.get(after.opt_state, name))
    print(f"{name}:", {str(leaf.dtype) for leaf in leaves})

# %% [markdown]
# ## Limits
#
# - Five seeds on 500 images of 8 × 8 pixels. The strengths are one guess each, not tuned, and links that were tuned
#   alone may want other strengths in company.
# - Composing is easy to write, which does not make it sensible: every Hessian-vector product is paid for, and two
#   links that act on one quantity (here the decay and the smaller rates in front, both on the norms) hide each
#   other.
# - Only the order of links that was named above is right: a penalty after momentum, or a cap before the learning
#   rate, runs without an error and means something else.
#
# ## Run it bigger
#
# On MNIST with five seeds, each technique with its own grid of rates, and the composition with your own model by the
# recipe above (on a GPU, where there is one):
#
# ```sh
# python -m benchmarks download mnist --data-dir DATA
# OPTAX_IGR_DATA=DATA python -m benchmarks penalties --seeds 5
# OPTAX_IGR_DATA=DATA python -m benchmarks layerwise --seeds 5
# ```
#
# ## References
#
# - [Flax NNX](https://flax.readthedocs.io/en/stable/nnx_basics.html),
#   [Orbax](https://orbax.readthedocs.io), [Optax: combining optimizers](https://optax.readthedocs.io)
# - Seed 003: "Optimisation methods in machine learning" (in Chinese), its closing question
# - Barrett, Dherin, [Implicit Gradient Regularization](https://arxiv.org/abs/2009.11162), 2021 (the penalty)
# - Delattre et al, [Efficient Bound of Lipschitz Constant by Gram Iteration](https://arxiv.org/abs/2305.16173), 2023
# - Kivinen, Warmuth, [Exponentiated Gradient versus Gradient Descent](https://doi.org/10.1006/inco.1996.2612), 1997
# - Howard, Ruder, [Universal Language Model Fine-tuning](https://arxiv.org/abs/1801.06146), 2018 (layer-wise rates)
