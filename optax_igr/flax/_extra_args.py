"""Whether a transform takes extra arguments."""

from typing import Any

import optax


def takes_extra_args(tx: Any) -> bool:
    """Says whether `tx.update` takes extra arguments."""
    # `optax.MultiSteps` is no GradientTransformation, and takes them.
    return isinstance(tx, optax.GradientTransformationExtraArgs) or not isinstance(
        tx, optax.GradientTransformation
    )
