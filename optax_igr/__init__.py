"""Gradient transformations for JAX and Optax: what is minimised, in which geometry, and how far."""

import importlib.metadata

__version__ = importlib.metadata.version("optax_igr")
