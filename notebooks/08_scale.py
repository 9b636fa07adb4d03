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
# # Scale: what is sharded, what is reduced, and how does the cost grow?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/optax-igr/optax_igr/blob/main/notebooks/08_scale.ipynb)
#
# On many devices a training step is judged by three numbers: what every device must hold, what devices must tell
# each other, and how much arithmetic there is for a model of a given size. Techniques that look alike in a paper
# differ in all three. This notebook compiles one step of each family of `optax_igr` for eight devices, which JAX
# simulates on any CPU, and reads the numbers off the compiled programs; nothing is timed.
#
# 1. Data parallel: the batch is split, the weights are copies. What does a technique reduce beyond the gradient?
# 2. Tensor parallel: the weights are split. Does the state follow them, and what does a technique gather?
# 3. Is the result the same? 4. How do FLOPs and state grow with the model? 5. `shard_map`: who takes the mean?

# %%
# In Colab the package is not there yet.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("optax_igr") is None:
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "optax_igr[notebooks]"], check=True)

# %%
import os

os.environ["JAX_NUM_CPU_DEVICES"] = "8"  # read when JAX is imported

import functools
import re

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits

import optax_igr
from optax_igr import diagnostics

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
plt.rcParams.update({"figure.dpi": 84, "axes.prop_cycle": plt.cycler(color=COLOURS)})  # Okabe, Ito
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10})
print(len(jax.devices()), "devices:", jax.devices()[0].device_kind)

# %% [markdown]
# ## The step
#
# A tanh network 64-W-W-10 on scikit-learn's digits. On the explicit mesh of section 2 JAX asks how the result of a
# product of two split matrices is to be laid out; `out_sharding` answers (all devices sum their parts, and each gets
# the sum). On one device and on the automatic mesh of section 1 there is nothing to answer.

# %%
pixels, digits = load_digits(return_X_y=True)
x, y = jnp.asarray(pixels[:512] / 16, jnp.float32), jnp.asarray(digits[:512])


def init(width):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"first": (64, width), "middle": (width, width), "head": (width, 10)}
    return {
        name: jax.random.normal(key, shape) / shape[0] ** 0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def loss_fn(params, x, y, out_sharding=None):
    hidden = jnp.tanh(x @ params["first"])
    hidden = jnp.tanh(jnp.matmul(hidden, params["middle"], out_sharding=out_sharding))
    logits = hidden @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


# %%
def make_step(optimizer, out_sharding=None):
    def step(params, state, x, y):
        def value_fn(params):
            return loss_fn(params, x, y, out_sharding)

        value, grad = jax.value_and_grad(value_fn)(params)
        extra_args = dict.fromkeys(("value_fn", "full_value_fn", "curvature_value_fn"), value_fn)
        updates, state = optimizer.update(grad, state, params, value=value, grad=grad, **extra_args)
        return optax.apply_updates(params, updates), state, value

    return step


# %% [markdown]
# One technique of each family, each around plain SGD unless it is an optimizer itself. (Real training gives a larger
# batch as `curvature_value_fn` and all data as `full_value_fn`; here they are one batch, so that costs compare.)


# %%
def before_sgd(transform):
    return optax.chain(transform, optax.sgd(0.1))


def after_sgd(transform):
    return optax.chain(optax.sgd(0.1), transform)


TECHNIQUES = {
    "SGD": optax.sgd(0.1),
    "gradient penalty, exact": before_sgd(optax_igr.add_gradient_penalty(0.01)),
    "gradient penalty, difference": before_sgd(
        optax_igr.add_gradient_penalty(0.01, hvp="forward_difference")
    ),
    "Schatten decay, t = 2": before_sgd(optax_igr.add_schatten_decay(1e-3, gram_steps=2)),
    "spectral decay": before_sgd(optax_igr.add_spectral_decay(1e-3)),
    "hypentropy geometry": after_sgd(optax_igr.exponentiate_hypentropy()),
    "gains and scale (egdd)": optax_igr.egdd(0.1),
    "curvature cap": after_sgd(optax_igr.limit_by_curvature()),
    "Newton-CG": optax_igr.newton_cg(1.0, max_steps=5, damping=0.0, warm_start=False),
    "SQN": optax_igr.sqn(0.1, memory_size=10, form="gram"),
    "SVRG": before_sgd(optax_igr.svrg(anchor_interval=10)),
    "drift monitor": before_sgd(diagnostics.monitor_drift()),
}

# %% [markdown]
# ## 1. Data parallel: the batch is split
#
# Every device holds all weights and an eighth of the batch. The gradient of the mean loss is a mean over devices:
# XLA inserts an `all-reduce`. Everything that is computed from weights and gradients alone then happens on every
# device, with no further word. What evaluates the loss again must reduce again.
#
# The compiled program is text; we count its collectives and the numbers that each produces.

# %%
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def collectives(compiled):
    """Counts the collectives of a compiled step, and the numbers that they hand out."""
    text = compiled.as_text()
    # The body of a loop stands in the text once; where XLA knows how often it runs, it says so.
    loops = re.findall(r'body=%([\w.\-]+).*?known_trip_count":\{"n":"(\d+)"', text)
    trips = {body: int(count) for body, count in loops}
    count = size = 0
    times = 1
    for line in text.splitlines():
        if line.startswith("%"):  # a computation begins
            times = trips.get(line[1:].split(" ")[0], 1)
        elif line.startswith("ENTRY"):
            times = 1
        if call := re.search(rf"= (.*) ({KINDS})(-start)?\(", line):
            shapes = re.findall(r"\w\[([\d,]*)\]", call[1])
            count += times
            size += times * sum(int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes)
    return count, size


# %%
def place(tree, mesh, spec):
    return jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec)), tree)


WIDTH = 128
params = init(WIDTH)
num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
data_mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
data_parallel, data_counts = {}, {}
for name, optimizer in TECHNIQUES.items():
    start = place((params, optimizer.init(params)), data_mesh, P())
    batch = place((x, y), data_mesh, P("batch"))
    compiled = jax.jit(make_step(optimizer)).lower(*start, *batch).compile()
    data_parallel[name] = (compiled, start, batch)
    data_counts[name] = count, size = collectives(compiled)
    print(f"{name:30s} {count} collectives, {size / num_params:.2f} numbers for each parameter")

# %% [markdown]
# SGD reduces the gradient and the loss, all in one: one number for each parameter. Whatever only looks at weights
# and gradients (geometry, gains, the decays, the monitor) adds nothing at all. A second evaluation of the loss adds
# a second reduction: one more gradient for a difference; for an exact Hessian-vector product somewhat more, since it
# is a sum of several matrix products, which XLA reduces apart. A curvature cap needs the same product, SQN does at
# every tenth step (the count has it at each), SVRG has a gradient at its anchor, and a full one when that moves.
# Newton-CG runs its products in a loop of unknown length: its row counts one turn.
#
# ## 2. Tensor parallel: the weights are split
#
# Now every device holds an eighth of the hidden units: columns of the first weight, rows of the second. The mesh is
# *explicit*: the layout is a part of the type of every array, so that it can be asked for (`jax.typeof`) and is kept
# under `jit`.

# %%
model_mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Explicit,))
LAYOUT = {"first": P(None, "model"), "middle": P("model", None), "head": P()}


def on_model_mesh(params):
    shardings = {name: NamedSharding(model_mesh, LAYOUT[name]) for name in params}
    return jax.device_put(params, shardings)


with jax.set_mesh(model_mesh):
    sharded = on_model_mesh(params)
    print("weights:    ", {name: str(jax.typeof(w)) for name, w in sharded.items()})
    state = optax_igr.sqn(0.1, memory_size=10).init(sharded)
    steps = optax.tree.get(state, "steps")
    print("SQN's pairs:", {name: str(jax.typeof(w)) for name, w in steps.items()})


# %%
def compile_on_model_mesh(optimizer):
    with jax.set_mesh(model_mesh):
        start = sharded, optimizer.init(sharded)
        batch = place((x, y), model_mesh, P())
        return jax.jit(make_step(optimizer, P())).lower(*start, *batch).compile(), start, batch


model_parallel, model_counts, held = {}, {}, {}
for name, optimizer in TECHNIQUES.items():
    model_parallel[name] = compiled, start, _ = compile_on_model_mesh(optimizer)
    model_counts[name] = collectives(compiled)
    leaves = [leaf for leaf in jax.tree.leaves(start[1]) if hasattr(leaf, "addressable_shards")]
    whole = sum(leaf.nbytes for leaf in leaves)
    on_one = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    held[name] = whole / (4 * num_params), on_one / (4 * num_params)

# %%
fig, axes = plt.subplots(1, 3, figsize=(12.5, 4.6), sharey=True)
positions = np.arange(len(TECHNIQUES))
for index, (label, counts) in enumerate(
    {"batch split": data_counts, "weights split": model_counts}.items()
):
    bars = np.array([counts[name] for name in TECHNIQUES], float)
    bars[:, 1] /= num_params
    for axis, values in zip(axes, bars.T, strict=False):
        axis.barh(
            positions + 0.4 * index - 0.2, values, height=0.38, color=COLOURS[index], label=label
        )
whole, on_one = np.array([held[name] for name in TECHNIQUES]).T
axes[2].barh(positions - 0.2, whole, height=0.38, color="0.7", label="all devices together")
axes[2].barh(
    positions + 0.2, on_one, height=0.38, color=COLOURS[1], label="one device, weights split"
)
axes[0].set(xlabel="collectives in a step", yticks=positions, yticklabels=TECHNIQUES)
axes[1].set(xlabel="numbers handed out, per parameter")
axes[2].set(xlabel="state, in copies of the parameters", xscale="symlog")
axes[2].set_xticks([0, 1, 2, 4, 10, 20], ["0", "1", "2", "4", "10", "20"])
axes[2].minorticks_off()
axes[0].invert_yaxis()
for axis in axes[::2]:
    axis.legend(frameon=False, fontsize=9)
fig.tight_layout()

# %% [markdown]
# With the weights split, already SGD reduces activations (the product with the second weight), and every further
# pass through the network does so again; how many numbers that is depends on batch and width, not on the parameters.
# New are the norms and inner products over the whole model (a curvature cap, the monitor, the gains, Newton-CG in
# every turn): small reductions of a few numbers, each of which waits. A decay of a spectral norm needs the product
# of a weight with itself across the split: the Schatten decay gathers, the spectral decay reduces vectors.
#
# SQN holds 22 copies of the parameters (ten pairs and two averages), and they are split like the parameters (right;
# the small head is not split here, which is why one device holds more than an eighth). Its row is that of the option
# `form="gram"`. The textbook's recursion, the default, asks for inner products one after the other, two for each
# pair of the memory: that many collectives, each waiting for the one before.

# %%
compiled, *_ = compile_on_model_mesh(optax_igr.sqn(0.1, memory_size=10, form="two_loop"))
print("SQN, Gram form: ", model_counts["SQN"][0], "collectives")
print("SQN, two loops: ", collectives(compiled)[0], "collectives")

# %% [markdown]
# ## 3. Is the result the same?
#
# The same three steps from the same weights, on both meshes: the largest difference of a weight, against the largest
# change of a weight in training. Sums in another order differ in the last digits.


# %%
def after_steps(compiled, start, batch, num_steps=3):
    params, state = start
    for _ in range(num_steps):
        params, state, _ = compiled(params, state, *batch)
    return jax.device_get(params)


def largest(a, b):
    return max(float(abs(a[name] - b[name]).max()) for name in a)


for name in TECHNIQUES:
    split, whole = after_steps(*model_parallel[name]), after_steps(*data_parallel[name])
    relative = largest(split, whole) / largest(whole, jax.device_get(params))
    print(f"{name:30s} {relative:.0e}")

# %% [markdown]
# ## 4. How do FLOPs and state grow with the model?
#
# One device, a batch of 512, the width of the network from 64 to 1024, and FLOPs relative to SGD:

# %%
GROWTH = {
    "gradient penalty, exact": TECHNIQUES["gradient penalty, exact"],
    "Schatten decay, t = 2": TECHNIQUES["Schatten decay, t = 2"],
    "spectral decay": TECHNIQUES["spectral decay"],
    "gains and scale (egdd)": TECHNIQUES["gains and scale (egdd)"],
    "Newton-CG, one product": TECHNIQUES["Newton-CG"],
}
WIDTHS = (64, 256, 1024)


def flops(optimizer, width):
    params = jax.eval_shape(lambda: init(width))
    state = jax.eval_shape(optimizer.init, params)
    compiled = jax.jit(make_step(optimizer)).lower(params, state, x, y).compile()
    return compiled.cost_analysis()["flops"]


plain = [flops(TECHNIQUES["SGD"], width) for width in WIDTHS]
ratios = {
    name: [flops(optimizer, width) / base for width, base in zip(WIDTHS, plain, strict=True)]
    for name, optimizer in GROWTH.items()
}

# %%
fig, axis = plt.subplots(figsize=(7, 3.8))
for (name, values), colour in zip(ratios.items(), COLOURS, strict=False):
    axis.plot(WIDTHS, values, "o-", color=colour, label=name)
    print(
        f"{name:30s}", "  ".join(f"W = {w}: {v:.2f}" for w, v in zip(WIDTHS, values, strict=True))
    )
axis.axhline(1, color="0.6", lw=0.8)
axis.set(
    xscale="log",
    xlabel="width W of the network",
    ylabel="FLOPs of a step; SGD is 1",
    ylim=(0.8, None),
)
axis.set_xticks(WIDTHS, WIDTHS)
axis.minorticks_off()
axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
fig.tight_layout()

# %% [markdown]
# - What evaluates the loss again costs a fixed number of gradients, a little more where the first layer weighs less
#   (no one differentiates with respect to the inputs). A loop counts once: the row of Newton-CG is per product.
# - What is done to every weight (gains, moments, geometry) is negligible beside a batch of 512, and more so the
#   wider the network: the gradient multiplies each weight by every sample.
# - The Schatten decay is the exception: it multiplies weights with weights, $2t$ products of $W \times W$ matrices,
#   against a batch of $B$ samples. Its share grows like $W / B$. Refresh it every $k$ steps (`refresh_interval=k`),
#   or take the spectral decay, which multiplies a weight with one vector.
#
# ## 5. `shard_map`: who takes the mean?
#
# Under `jit` a mean over the batch is a mean over all devices. Inside `jax.shard_map` each device sees its own part,
# and the gradient for a weight that all devices share is *summed* over them. A penalty is not linear in the loss, so
# forgetting the mean does worse than scale the step: with eight devices the gradient is eight times too large, and
# its penalty, quadratic in the loss, 64 times. The rule is: `value_fn` returns the mean over **all** devices.


# %%
def sizes(params, value_fn):
    """Returns the norms of the gradient and of what the penalty adds to it."""
    penalty = optax_igr.add_gradient_penalty(0.5)
    grad = jax.grad(value_fn)(params)
    updates, _ = penalty.update(grad, penalty.init(params), params, value_fn=value_fn)
    return optax.tree.norm(grad), optax.tree.norm(optax.tree.sub(updates, grad))


def sizes_on_mesh(over_devices):
    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=data_mesh, in_specs=(P(), P("batch"), P("batch")), out_specs=P()
    )
    def parts(params, x, y):
        return sizes(params, lambda params: over_devices(loss_fn(params, x, y)))

    return parts(place(params, data_mesh, P()), *place((x, y), data_mesh, P("batch")))


right = sizes(params, lambda params: loss_fn(params, x, y))
means = {"with pmean": lambda loss: jax.lax.pmean(loss, "batch"), "without": lambda loss: loss}
for label, over_devices in means.items():
    found = sizes_on_mesh(over_devices)
    gradient, added = (a / b for a, b in zip(found, right, strict=True))
    print(f"{label:10s}: gradient {gradient:.3f} times, penalty {added:.3f} times the right one")

# %% [markdown]
# ## Limits
#
# - The collectives are those that XLA chose for eight simulated CPU devices. A GPU or TPU compiler splits and
#   overlaps them in other ways; what must be reduced stays.
# - FLOPs are the compiler's count. They are no times: products of a weight with a vector, and passes over the state,
#   are bound by memory.
# - A branch that is taken at some steps (an anchor, a pair, a refresh) is counted at each.
# - Several processes on several hosts compile the same programs; the test suite runs two (`tests/multiprocess`).
#
# ## Run it bigger
#
# `JAX_NUM_CPU_DEVICES=64` in the first cell and other meshes are a change of one line; on a machine with
# accelerators leave that variable out, and JAX counts those. The cost of every technique on a network of three
# million weights, with times: `python -m benchmarks steps`. For data, MNIST: `python -m benchmarks download mnist
# --data-dir DATA`, then `OPTAX_IGR_DATA=DATA python -m benchmarks penalties --seeds 5`.
#
# ## References
#
# - [JAX: distributed arrays and automatic
#   parallelization](https://docs.jax.dev/en/latest/notebooks/Distributed_arrays_and_automatic_parallelization.html),
#   [explicit sharding](https://docs.jax.dev/en/latest/notebooks/explicit-sharding.html)
# - Shoeybi et al, [Megatron-LM](https://arxiv.org/abs/1909.08053), 2019 (splitting two weights in a row)
# - Chen, Wang, Zhou, [Large-scale L-BFGS using
#   MapReduce](https://papers.nips.cc/paper/2014/hash/e49b8b4053df9505e1f48c3a701c0682-Abstract.html), 2014 (the Gram
#   form)
# - Byrd et al, [A Stochastic Quasi-Newton Method](https://arxiv.org/abs/1401.7020), 2016; Johnson, Zhang,
#   [SVRG](https://papers.nips.cc/paper/2013/hash/ac1dd209cbcc5e5d1c6e28598e8cbbe8-Abstract.html), 2013
# - No seed of the project speaks of scale; the techniques are those of the seeds 001 to 004.
