"""Records: one row for whatever was measured, a run or a cost, and their files of JSON lines.

A line is appended as its run ends, and says all that identifies it: so a sweep resumes. JSON has no infinity: a value
that is not finite is written as the string `inf`, `-inf` or `nan`. A file whose name ends in `.gz` is compressed,
always to the same bytes. Committed records are kept that way.
"""

import dataclasses
import gzip
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.engine import old_lines

Key = tuple[str, str, int, str, tuple, int | None]


@dataclasses.dataclass(frozen=True)
class Record:
    """One row.

    Attributes:
      technique: its name; of a cost, the name of the operation.
      problem: its name.
      about: what else fixes the problem (data, model, batch), in words.
      settings: of the technique, by name, such as its learning rate; none for a cost that has none.
      num_steps: the length of the run.
      seed: of the start and of the order of the batches; None where nothing was drawn.
      measures: by name, a number or a list, after the last step.
      curve: by name, the values after `curve["step"]` steps.
      environment: commit, versions, device and date.
      target: the measure, the value and the direction that count as solved.
    """

    technique: str
    problem: str
    about: str = ""
    settings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    num_steps: int = 0
    seed: int | None = None
    measures: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    curve: Mapping[str, list[float]] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    target: Mapping[str, Any] | None = None

    @property
    def key(self) -> Key:
        """What identifies it: a record with the same key need not be measured again."""
        # By the values alone: older lines call every setting a learning rate.
        values = tuple(self.settings.values())
        return (self.problem, self.about, self.num_steps, self.technique, values, self.seed)


def append(path: Path, records: Iterable[Record]) -> None:
    """Appends records to a file, which it makes; a torn last line is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        # A compressed file has no end to append to that would keep its bytes repeatable.
        _store(path, _content(path) + _lines(records))
        return
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
    with path.open("ab") as file:
        file.write(_lines(records))


def write(path: Path, records: Iterable[Record]) -> None:
    """Writes records in place of what the file held."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _store(path, _lines(records))


def read(path: Path) -> list[Record]:
    """Reads the records of a file, gzipped or not; none where there is no file.

    Raises:
      ValueError: naming the line that is no record, or the file that is not a whole gzip file; an interrupted last
        line is skipped.
    """
    found = []
    # What follows the last newline is empty, or a line that an interruption tore.
    for number, line in enumerate(_content(path).split(b"\n")[:-1], start=1):
        try:
            row = _decode(json.loads(line))
            if not isinstance(row, dict):
                raise ValueError("it is no JSON object.")
            found.append(Record(**old_lines.as_new(row)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}, is not a record: {error}") from error
    return found


def pack(source: Path, target: Path) -> None:
    """Copies records to keep: what was measured is rounded to six digits, what identifies a run is not."""
    write(
        target,
        [
            dataclasses.replace(r, measures=_rounded(r.measures), curve=_rounded(r.curve))
            for r in read(source)
        ],
    )


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


def _lines(records):
    lines = [json.dumps(_encode(dataclasses.asdict(r)), allow_nan=False) for r in records]
    return "".join(line + "\n" for line in lines).encode()


def _mapped(value, leaf):
    """Applies a function to all leaves of nested mappings and lists."""
    if isinstance(value, Mapping):
        return {key: _mapped(x, leaf) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(x, leaf) for x in value]
    return leaf(value)


def _rounded(value):
    return _mapped(value, lambda x: float(f"{x:.6g}") if isinstance(x, float) else x)


def _encode(value):
    return _mapped(value, lambda x: str(x) if isinstance(x, float) and not math.isfinite(x) else x)


_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def _decode(row):
    if not isinstance(row, dict):
        return row
    # The environment is text: a machine called "nan" is not a number.
    return {
        key: x if key == "environment" else _mapped(x, _finite_or_not) for key, x in row.items()
    }


def _finite_or_not(value):
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
