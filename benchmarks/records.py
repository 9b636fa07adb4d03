"""Runs as JSON lines: one self-contained line a run, appended as it ends, so that a sweep resumes.

JSON has no infinity: a value that is not finite is written as the string `inf`, `-inf` or `nan`.
"""

import dataclasses
import datetime
import functools
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

Key = tuple[str, str, int, str, float, int]

PACKAGES = ("optax_igr", "jax", "jaxlib", "optax", "flax")


@dataclasses.dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
      problem: its name.
      settings: what else fixes the problem (data, model, batch), in words.
      technique: its name.
      learning_rate: of this run.
      seed: of the start and of the order of the batches.
      num_steps: the length of the run.
      curve: by measure, the values after `curve["step"]` steps.
      final: by measure, a number or a list, after the last step.
      gradients_per_step: gradients of one batch that a step evaluates, counted.
      products_per_step: Hessian-vector products of one batch that a step evaluates, counted.
      seconds_per_step: wall time of the program's steps / (steps x runs), compilation apart.
      compile_seconds: of the program, shared by `runs_in_program` runs.
      runs_in_program: the number of runs compiled together.
      environment: commit, versions, device and date.
      target: the measure, the value and the direction that count as solved.
    """

    problem: str
    settings: str
    technique: str
    learning_rate: float
    seed: int
    num_steps: int
    curve: dict[str, list[float]]
    final: dict[str, Any]
    gradients_per_step: float
    products_per_step: float
    seconds_per_step: float
    compile_seconds: float
    runs_in_program: int
    environment: dict[str, Any]
    target: dict[str, Any] | None = None

    @property
    def key(self) -> Key:
        """What identifies the run: a record with the same key need not be run again."""
        return (
            self.problem,
            self.settings,
            self.num_steps,
            self.technique,
            float(self.learning_rate),
            self.seed,
        )

    @property
    def diverged(self) -> bool:
        """Says whether the loss at the end is not a finite number."""
        return not math.isfinite(self.final["train_loss"])


def append(path: Path, records: Iterable[Record]) -> None:
    """Appends records to a file, which it makes; a torn last line is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
    lines = [json.dumps(_encode(dataclasses.asdict(r)), allow_nan=False) for r in records]
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in lines))


def read(path: Path) -> list[Record]:
    """Reads the records of a file; none where there is no file.

    Raises:
      ValueError: naming the line, for a line that is no record; an interrupted last one is skipped.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    # What follows the last newline is empty, or a line that an interruption tore.
    complete = lines[:-1]
    records = []
    for number, line in enumerate(complete, start=1):
        try:
            records.append(Record(**_decode(json.loads(line))))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path}, line {number}, is not a record: {error}") from error
    return records


def environment() -> dict[str, Any]:
    """Describes the commit, the versions and the machine."""
    return _machine() | {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}


def groups(records: Sequence[Record]) -> dict[tuple[str, str, float], list[Record]]:
    """Groups the seeds of each problem, technique and learning rate, in the order of appearance."""
    found: dict[tuple[str, str, float], list[Record]] = {}
    for record in records:
        key = (record.problem, record.technique, record.learning_rate)
        found.setdefault(key, []).append(record)
    return {key: sorted(group, key=lambda r: r.seed) for key, group in found.items()}


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
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        result = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def _encode(value):
    if isinstance(value, dict):
        return {key: _encode(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def _decode(value):
    if isinstance(value, dict):
        # The environment is text: a machine called "nan" is not a number.
        return {k: x if k == "environment" else _decode(x) for k, x in value.items()}
    if isinstance(value, list):
        return [_decode(x) for x in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
