"""Batches that share a part of their samples with the next one, for multi-batch L-BFGS."""

from collections.abc import Iterator

import numpy as np

from optax_igr._core import hyperparameters


def overlapping_batches(
    num_samples: int, batch_size: int, overlap: float, *, seed: int = 0
) -> Iterator[np.ndarray]:
    r"""Draws batches without end, each of which shares a fraction of its samples with the one before.

    .. math:: S_t = O_{t-1} \cup N_t \cup O_t, \qquad S_t \cap S_{t+1} = O_t

    Within an epoch the batches are windows on one permutation. The next one is drawn anew, but for the samples that its
    first batch shares with the last one; what is left of an epoch and fills no batch is dropped.

    Args:
      num_samples: the size of the data set.
      batch_size: the size of a batch.
      overlap: the fraction of a batch in :math:`O_t`, in (0, 1/2], so that no sample is in three batches in a row.
      seed: of the permutations.

    Returns:
      An iterator over arrays of indices, [batch_size]. The first `round(overlap * batch_size)` of each are those that
      it shares with the batch before, and the last as many those that it shares with the next.

    Raises:
      ValueError: for an argument out of range.

    Examples:
      >>> import optax_igr
      >>> batches = optax_igr.overlapping_batches(num_samples=100, batch_size=4, overlap=0.25)
      >>> first, second = next(batches), next(batches)
      >>> print(first[-1] == second[0], len({*first, *second}))
      True 7

    References:
      Berahas, Nocedal, Takáč, `A Multi-Batch L-BFGS Method for Machine Learning
      <https://arxiv.org/abs/1605.06049>`_, 2016, section 2.2
    """
    name = "overlapping_batches"
    hyperparameters.check_positive_integer(name, "num_samples", num_samples)
    hyperparameters.check_positive_integer(name, "batch_size", batch_size)
    hyperparameters.check_scalar(name, "overlap", overlap, above=0)
    num_shared = round(overlap * batch_size)
    if not 1 <= num_shared <= batch_size / 2:
        raise ValueError(
            f"{name}: `overlap` must be in (0, 1/2] and at least one sample; {overlap!r} of "
            f"batch_size={batch_size} is {num_shared} samples."
        )
    if num_samples < 2 * batch_size:
        raise ValueError(
            f"{name}: `batch_size` must be at most half of num_samples={num_samples}, "
            f"got {batch_size}."
        )
    return _overlapping_batches(num_samples, batch_size, num_shared, seed)


def _overlapping_batches(num_samples, batch_size, num_shared, seed):
    rng = np.random.default_rng(seed)
    stride = batch_size - num_shared
    starts = range(0, num_samples - batch_size + 1, stride)
    order = rng.permutation(num_samples)
    while True:
        for start in starts:
            batch = order[start : start + batch_size]
            yield batch
        # The first batch of the next epoch shares with the last one O_t alone, as any two consecutive batches do.
        shared, rest = batch[stride:], batch[:stride]
        unseen = rng.permutation(np.setdiff1d(order, batch))
        later = rng.permutation(np.concatenate([unseen[stride:], rest]))
        order = np.concatenate([shared, unseen[:stride], later])
