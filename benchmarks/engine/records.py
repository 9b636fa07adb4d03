"""Runs as JSON lines: one self-contained line a run, appended as it ends, so that a sweep resumes.

JSON has no infinity: a value that is not finite is written as the string `inf`, `-inf` or `nan`. A file whose
name ends in `.gz` is compressed, always to the same bytes: records that are committed are kept that way.
"""

import dataclasses
import datetime
import functools
import gzip
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import zlib
from collections.abc import Iterable, Mapping, Sequence
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
    if path.suffix == ".gz":
        _store(path, _content(path) + _lines(map(dataclasses.asdict, records)))
        return
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
    with path.open("ab") as file:
        file.write(_lines(map(dataclasses.asdict, records)))


def read(path: Path) -> list[Record]:
    """Reads the records of a file; none where there is no file.

    Raises:
      ValueError: naming the line, for a line that is no record; an interrupted last one is skipped.
    """
    found = []
    for number, row in enumerate(rows(path), start=1):
        try:
            found.append(Record(**row))
        except TypeError as error:
            raise ValueError(f"{path}, line {number}, is not a record: {error}") from error
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines of any content, gzipped or not; none where there is no file.

    Raises:
      ValueError: naming the line that is no JSON object, or the file that is not a whole gzip file.
    """
    found = []
    # What follows the last newline is empty, or a line that an interruption tore.
    for number, line in enumerate(_content(path).split(b"\n")[:-1], start=1):
        try:
            row = _decode(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is not a record: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}, is not a record: it is no JSON object.")
        found.append(row)
    return found


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines of any content, gzipped where the name ends in `.gz`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _store(path, _lines(rows))


def write_costs(path: Path, costs: Iterable[Mapping[str, Any]]) -> Path:
    """Writes one JSON line a measurement, with the machine; returns the path."""
    found = environment()
    write_rows(path, [cost | {"environment": found} for cost in map(dict, costs)])
    return path


def pack(source: Path, target: Path) -> None:
    """Copies records to keep: what was measured is rounded to six digits, what identifies a run is not."""
    write_rows(
        target,
        [
            {name: _rounded(x) if name in ("curve", "final") else x for name, x in row.items()}
            for row in rows(source)
        ],
    )


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


def _content(path):
    """Returns the bytes of a file, decompressed; none where there is no file."""
    if not path.exists():
        return b""
    stored = path.read_bytes()
    if path.suffix != ".gz":
        return stored
    try:
        return gzip.decompress(stored)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error


def _store(path, content):
    # Beside the file first: an interruption leaves the old file whole. Without a time the bytes repeat.
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    beside.replace(path)


def _lines(rows):
    lines = [json.dumps(_encode(dict(row)), allow_nan=False) for row in rows]
    return "".join(line + "\n" for line in lines).encode()


def _rounded(value):
    if isinstance(value, dict):
        return {name: _rounded(x) for name, x in value.items()}
    if isinstance(value, list):
        return [_rounded(x) for x in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


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
