"""The program of a step grows with the number of leaves, not with its square."""

import jax

from tests import problems
from tests.contract import every_transform, params_of, training_step

LEAVES = (10, 20, 40)


def num_lines(entry, num_leaves):
    """Returns the lines of a lowered step: what XLA is given to compile."""
    optimizer = entry.optimizer()
    shapes = {f"w{index}": (2, 8) for index in range(num_leaves)}
    params = jax.eval_shape(lambda: params_of(entry, shapes))
    # The loss reads the leaves one by one, so that its own program is linear.
    step = training_step(entry, optimizer, problems.coupled(params))
    state = jax.eval_shape(optimizer.init, params)
    return len(jax.jit(step).lower(params, state).as_text().splitlines())


@every_transform
def test_the_program_is_linear_in_the_number_of_leaves(entry):
    least, middle, most = (num_lines(entry, num_leaves) for num_leaves in LEAVES)
    # Twice as many further leaves: twice as many further lines, where a square would have four times as many.
    assert most - middle <= 2.1 * (middle - least), (least, middle, most)
