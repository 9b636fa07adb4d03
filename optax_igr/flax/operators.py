"""What each weight of a Flax model is as an operator: a matrix or a convolution.

The modules know it: a convolution's operator depends on the shape of its input, which one abstract evaluation of the
model shows.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen, nnx

from optax_igr.flax import _linen_operators, _nnx_operators
from optax_igr.flax._module_operators import Unknown, by_axes


def operators(
    model: nnx.Module | linen.Module, *inputs: Any, **kwargs: Any
) -> Callable[[Any, jax.Array], Any]:
    """Derives from the modules of a model what each of its weights is as an operator.

    Known from their modules are the kernels of `Linear`, `Dense`, `LinearGeneral` and `DenseGeneral` (attention,
    LSTM and GRU cells are made of them), `Einsum` by its equation, `Embed`, `LoRA`, `Conv` and `ConvTranspose`. The
    shape of the input of a convolution comes from one abstract evaluation of the model. A stack of layers, by
    `nn.scan`, `nn.vmap`, `nnx.scan` or `nnx.vmap`, is a stack of separate operators. Biases, also those of two axes,
    and scales are left alone. Any other parameter of two axes counts as a matrix.

    NNX does not say where the axis of a stack is. It is the leading one, unless the shape contradicts.

    Args:
      model: an NNX module, or a Linen one.
      *inputs: of the model, arrays or `jax.ShapeDtypeStruct`; an NNX model without convolutions needs none.
      **kwargs: further arguments of its call. One that is no array, such as `train=False`, stays as it is.

    Returns:
      A function `(path, leaf) -> operator or None` for the argument `operator` of
      :func:`optax_igr.add_schatten_decay`, :func:`optax_igr.add_spectral_decay`,
      :func:`optax_igr.projection_spectral_ball` and :func:`optax_igr.diagnostics.lipschitz_bounds`. It raises a
      `ValueError` that names the leaf and the way out for a kernel of more axes from another module, and for an
      equation that is no plain product.

    Raises:
      ValueError: for a convolution that has no operator here (input dilation, a mask, reflection), or which
        `inputs` do not reach, or reach in two sizes.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_igr.flax
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Conv(1, 4, (3, 3), padding="CIRCULAR", rngs=rngs), nnx.relu)
      >>> operator = optax_igr.flax.operators(model, jnp.ones([1, 8, 8, 1]))
      >>> decay = optax_igr.add_schatten_decay(1e-3, gram_steps=2, operator=operator)
      >>> optimizer = nnx.Optimizer(model, optax.chain(decay, optax.adam(1e-3)), wrt=nnx.Param)
    """
    if isinstance(model, linen.Module):
        table = _linen_operators.table(model, inputs, kwargs)
    else:
        table = _nnx_operators.table(model, inputs, kwargs)

    def operator(path: Any, leaf: jax.Array) -> Any:
        keys = tuple(_key(entry) for entry in path)
        # The leaf of a variable stands under it; Linen's collection stands above.
        keys = keys[:-1] if keys[-1:] == ("value",) and keys not in table else keys
        keys = keys[1:] if keys[:1] == ("params",) and keys not in table else keys
        found = table[keys] if keys in table else by_axes(keys[-1] if keys else "", leaf.ndim)
        if isinstance(found, Unknown):
            raise ValueError(
                f"operators: nothing is known of the parameter {jax.tree_util.keystr(path)} of shape "
                f"{list(leaf.shape)}: {found.reason}. Wrap this function by one that returns its operator (one of "
                f"optax_igr.operators, or None), or leave it out by `mask`."
            )
        return found

    return operator


def _key(entry: Any) -> Any:
    for name in ("key", "idx", "name"):
        if hasattr(entry, name):
            return getattr(entry, name)
    return None
