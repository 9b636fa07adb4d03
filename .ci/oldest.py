"""The oldest supported versions: each lower bound of pyproject.toml, as an equality.

Without an argument it prints them, as constraints for pip. `--check` says whether this environment holds them.
"""

import importlib.metadata
import pathlib
import re
import sys
import tomllib

EXTRAS = ("flax", "flows", "diagnostics")

project = tomllib.loads((pathlib.Path(__file__).parents[1] / "pyproject.toml").read_text())[
    "project"
]
requirements = project["dependencies"] + [
    requirement for extra in EXTRAS for requirement in project["optional-dependencies"][extra]
]
oldest = dict(
    re.fullmatch(r"([\w-]+)>=([\w.]+)", requirement).groups() for requirement in requirements
)

if "--check" in sys.argv:
    installed = {name: importlib.metadata.version(name) for name in oldest}
    differing = {name: version for name, version in installed.items() if version != oldest[name]}
    print("installed, where not the oldest:", differing or "none")
    sys.exit(bool(differing))
print("\n".join(f"{name}=={version}" for name, version in oldest.items()))
