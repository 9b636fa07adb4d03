"""Two sets of records compared, with a verdict for continuous integration."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.engine.records import Record
from benchmarks.experiments.optimizers import steps
from benchmarks.report import run_statistics as stats


def _steps_to_target(record):
    if record.target is None:
        raise KeyError("target")
    return steps(record)


# How a measure is read from a record; of each, more is worse.
MEASURES = {
    "steps_to_target": _steps_to_target,
    "train_loss": lambda r: r.final["train_loss"],
    "test_loss": lambda r: r.final["test_loss"],
    "test_error": lambda r: 1 - r.final["test_accuracy"],
    "seconds_per_step": lambda r: r.seconds_per_step,
    "gradients_per_step": lambda r: r.gradients_per_step,
}


class Limit(NamedTuple):
    """A measure and the relative growth of its median that counts as a failure."""

    measure: str
    growth: float


class Difference(NamedTuple):
    """One technique's medians in the two sets."""

    problem: str
    technique: str
    learning_rate: float
    measure: str
    before: float
    after: float

    @property
    def growth(self) -> float:
        """The relative change; a target that is missed only now is infinite, one missed twice is none."""
        if self.before == self.after:
            return 0.0
        return self.after / self.before - 1 if self.before else float("inf")


def parse_limit(text: str) -> Limit:
    """Parses `steps_to_target:10%`."""
    match = re.fullmatch(r"(\w+):(\d+(?:\.\d+)?)%", text.strip())
    if not match or match[1] not in MEASURES:
        raise ValueError(
            f"{text!r} is not MEASURE:PERCENT%, such as steps_to_target:10%; the measures are "
            f"{', '.join(MEASURES)}."
        )
    return Limit(match[1], float(match[2]) / 100)


def differences(
    before: Sequence[Record], after: Sequence[Record], measures: Sequence[str]
) -> list[Difference]:
    """Compares the medians over the seeds of every technique and rate that both sets have.

    Runs of another length, or of a problem with other settings, are not compared.
    """
    first, second = _groups(before), _groups(after)
    found = []
    for key in [key for key in first if key in second]:
        for measure in measures:
            read = MEASURES[measure]
            try:
                medians = [
                    stats.median_and_quartiles([read(r) for r in runs]).estimate
                    for runs in (first[key], second[key])
                ]
            except KeyError:
                continue
            problem, _, _, technique, rate = key
            found.append(Difference(problem, technique, rate, measure, *medians))
    return found


def cells(
    found: Sequence[Difference], failed: Sequence[Difference]
) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the rows of the table; a cross marks a limit that is passed."""
    head = ["problem", "technique", "rate", "measure", "before", "after", "change"]
    rows = [
        [
            d.problem,
            d.technique,
            f"{d.learning_rate:.3g}",
            d.measure,
            f"{d.before:.4g}",
            f"{d.after:.4g}",
            f"{100 * d.growth:+.1f} %" + (" ✗" if d in failed else ""),
        ]
        for d in found
    ]
    return head, rows


def remarks(before: Sequence[Record], after: Sequence[Record]) -> list[str]:
    """Says what of the two sets is not compared, or not on equal terms."""
    first, second = _groups(before), _groups(after)
    found = []
    for problem in dict.fromkeys(r.problem for r in before):
        ours, theirs = (
            sorted({f"{r.settings}, {r.num_steps} steps" for r in runs if r.problem == problem})
            for runs in (before, after)
        )
        if theirs and not set(ours) & set(theirs):
            found.append(f"{problem} is not the same: {'; '.join(ours)} | {'; '.join(theirs)}.")
    missing = [key for key in first if key not in second]
    if missing:
        found.append(
            f"only in the first file: {_listed(f'{t} at {rate:.3g} on {p}' for p, _, _, t, rate in missing)}."
        )
    unequal = [
        key
        for key in first
        if key in second and {r.seed for r in first[key]} != {r.seed for r in second[key]}
    ]
    if unequal:
        found.append(
            f"not the same seeds: {_listed(f'{t} at {rate:.3g} on {p}' for p, _, _, t, rate in unequal)}."
        )
    return found


def _listed(texts, most=4):
    texts = list(texts)
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def _groups(runs):
    found: dict[tuple[str, str, int, str, float], list[Record]] = {}
    for run in runs:
        found.setdefault(run.key[:-1], []).append(run)
    return found
