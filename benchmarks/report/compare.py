"""Two sets of records compared, with a verdict for continuous integration."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.engine.table import Table, groups, setting_text
from benchmarks.report.run_statistics import median_and_quartiles, with_steps_to_target

# Runs of another length, or of a problem in other words, are not compared.
_SAME = ["problem", "about", "num_steps", "technique", "settings"]


def _with_derived(runs):
    runs = with_steps_to_target(runs)
    # A run without a target has no steps to it; a miss is infinite.
    runs["steps_to_target"] = runs["steps_to_target"].where(runs["target"].notna())
    if "test_accuracy" in runs:
        runs = runs.assign(test_error=1 - runs["test_accuracy"])
    return runs


# Of each, more is worse.
MEASURES = (
    *("steps_to_target", "train_loss", "test_loss", "test_error"),
    *("seconds_per_step", "gradients_per_step"),
)


class Limit(NamedTuple):
    """A measure and the relative growth of its median that counts as a failure."""

    measure: str
    growth: float


class Difference(NamedTuple):
    """One technique's medians in the two sets."""

    problem: str
    technique: str
    setting: str
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


def differences(before: Table, after: Table, measures: Sequence[str]) -> list[Difference]:
    """Compares the medians over the seeds of every technique and setting that both sets have."""
    first, second = (groups(_with_derived(runs), _SAME) for runs in (before, after))
    found = []
    for key in [key for key in first if key in second]:
        pair = first[key], second[key]
        for measure in measures:
            # A measure that one of the files lacks is not compared; a limit on it fails in the command.
            if all(measure in runs and runs[measure].notna().any() for runs in pair):
                medians = [median_and_quartiles(runs[measure]).estimate for runs in pair]
                problem, _, _, technique, _ = key
                setting = setting_text(pair[0].iloc[0])
                found.append(Difference(problem, technique, setting, measure, *medians))
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
            d.setting,
            d.measure,
            f"{d.before:.4g}",
            f"{d.after:.4g}",
            f"{100 * d.growth:+.1f} %" + (" ✗" if d in failed else ""),
        ]
        for d in found
    ]
    return head, rows


def remarks(before: Table, after: Table) -> list[str]:
    """Says what of the two sets is not compared, or not on equal terms."""
    first, second = groups(before, _SAME), groups(after, _SAME)
    found = []
    for problem in before["problem"].unique():
        ours, theirs = (
            sorted(
                {f"{about}, {steps} steps" for name, about, steps, *_ in runs if name == problem}
            )
            for runs in (first, second)
        )
        if theirs and not set(ours) & set(theirs):
            found.append(f"{problem} is not the same: {'; '.join(ours)} | {'; '.join(theirs)}.")
    missing = [group for key, group in first.items() if key not in second]
    if missing:
        found.append(f"only in the first file: {_listed(missing)}.")
    unequal = [
        group
        for key, group in first.items()
        if key in second and set(group["seed"]) != set(second[key]["seed"])
    ]
    if unequal:
        found.append(f"not the same seeds: {_listed(unequal)}.")
    return found


def _listed(found, most=4):
    texts = [
        f"{row['technique']} at {setting_text(row)} on {row['problem']}"
        for row in (group.iloc[0] for group in found)
    ]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
