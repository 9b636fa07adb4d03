"""Every test sees float64 (so that a formula is checked to its last digits) and eight CPU devices."""

import os

# Read by JAX at its import; CI runs the contract tests a second time with x64 off, as users do.
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
