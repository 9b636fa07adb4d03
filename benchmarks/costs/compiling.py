"""What the compiler says of a program: FLOPs and memory, exact, and how long it took."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax


class Compiled(NamedTuple):
    """A compiled program.

    Attributes:
      call: runs it.
      flops: of one call; the body of a loop and both branches of a conditional count once.
      memory: bytes of temporaries and outputs.
      temporaries: bytes of temporaries alone.
      accessed: bytes that the kernels read and write.
      seconds: of tracing and compilation.
    """

    call: Any
    flops: float
    memory: float
    temporaries: float
    accessed: float
    seconds: float


def compiled(
    fn: Callable[..., Any], *arguments: chex.ArrayTree, donate_argnums: Sequence[int] = ()
) -> Compiled:
    """Compiles a function for these arguments, or for their shapes and dtypes.

    Raises:
      ValueError: where the compiler gives no analysis.
    """
    began = time.perf_counter()
    # Lowered and compiled apart from the first call, so that its time is that of compilation alone.
    program = jax.jit(fn, donate_argnums=donate_argnums).lower(*arguments).compile()
    seconds = time.perf_counter() - began
    memory, analysis = program.memory_analysis(), program.cost_analysis()
    if memory is None or analysis is None:
        raise ValueError(f"the {jax.default_backend()} compiler gives no cost analysis.")
    return Compiled(
        call=program,
        # A program that only moves data has none.
        flops=analysis.get("flops", 0.0),
        memory=float(memory.temp_size_in_bytes + memory.output_size_in_bytes),
        temporaries=float(memory.temp_size_in_bytes),
        accessed=analysis["bytes accessed"],
        seconds=seconds,
    )


def num_bytes(tree: chex.ArrayTree) -> int:
    """Returns the bytes of the arrays in a tree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree) if hasattr(x, "dtype"))
