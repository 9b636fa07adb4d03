"""Where numbers were measured: the commit, the versions and the machine, for every record."""

import datetime
import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("optax_igr", "jax", "jaxlib", "optax", "flax")


def environment() -> dict[str, Any]:
    """Describes the commit, the versions and the machine, and the present time."""
    return _machine() | {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}


@functools.cache
def _machine():
    return {
        "commit": _commit(),
        **{name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit():
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        # Git is not there, or the package was copied out of its repository.
        return None
    return result.stdout.strip()
