"""The extra arguments of `update`: the one list of their meanings, and the error when one is missing.

Optax, its line searches, `optax.lbfgs` and `optimistix` agree on the name `value_fn`, so a chain that
contains them and this library's transforms takes one set of keywords.
"""

from typing import Any

MEANINGS = {
    "value_fn": "`params -> scalar`, the loss of this step",
    "value": "the loss at `params`",
    "grad": "the raw gradient of the loss at `params`",
    "curvature_value_fn": "`params -> scalar`, the loss on the batch that curvature is measured on",
    "overlap_value_fn": "`params -> scalar`, the loss on the samples shared with the previous batch",
    "full_value_fn": "`params -> scalar`, the loss on the whole data set",
    "microbatch_value_fn": "`(params, index) -> scalar`, the loss of one micro-batch",
    "outputs_fn": "`params -> outputs` of the model",
    "output_loss_fn": "`outputs -> scalar`; composed with `outputs_fn` it is `value_fn`",
}


def require(transform: str, **arguments: Any) -> None:
    """Raises a `ValueError` that names `transform` and the first of `arguments` that is None.

    Args:
      transform: the public name of the transform that needs the arguments.
      **arguments: extra arguments by name; `params` may be among them.
    """
    for name, argument in arguments.items():
        if argument is not None:
            continue
        if name == "params":
            raise ValueError(
                f"{transform} needs the current parameters: call `update(updates, state, params)`."
            )
        raise ValueError(
            f"{transform} needs the extra argument `{name}` ({MEANINGS[name]}): "
            f"call `update(updates, state, params, {name}=...)`."
        )
