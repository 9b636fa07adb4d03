"""Every test sees float64 (so that a formula is checked to its last digits) and eight CPU devices."""

import os
from importlib import metadata

# Read by JAX at its import; CI runs the contract tests a second time with x64 off, as users do.
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

# Compiling takes most of the time here, and few tests ask how fast or large the program is.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The old code generator of XLA is three times as quick. Later releases no longer have it; there the
# new one is quicker than this release's, and CI asks the contract of it.
if metadata.version("jax").startswith("0.10."):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
    )

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def optimized_compilation():
    """For a test that runs for longer than it compiles."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def pytest_collection_modifyitems(items):
    """Puts all demands of the contract on one transform in a row, as they share what is compiled."""
    entries = {}
    for item in items:
        entry = item.callspec.params.get("entry") if hasattr(item, "callspec") else None
        # Whatever is no demand on an entry is alone in its group, and so stays in its place.
        entries.setdefault(item if entry is None else entry, []).append(item)
    items[:] = [item for group in entries.values() for item in group]
