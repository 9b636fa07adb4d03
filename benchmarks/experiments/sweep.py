"""The one way to run an experiment: every technique, setting and seed that is not on record yet."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.engine import records, runner, suitability
from benchmarks.engine.gradient_counts import count_gradients
from benchmarks.engine.machine import environment
from benchmarks.engine.records import Key, Record
from benchmarks.engine.table import Table, table
from benchmarks.experiments.experiment import Entry, Experiment
from benchmarks.problems.problem import Problem
from benchmarks.techniques import TECHNIQUES
from benchmarks.techniques.technique import Technique

# The intervals of a curve. Between two points nothing is measured, so that a step costs what it costs.
NUM_POINTS = 25


def run(
    experiment: Experiment,
    path: Path,
    *,
    seeds: int = 5,
    techniques: Sequence[Technique] | None = None,
    learning_rates: Sequence[float] | None = None,
    data_dir: Path | None = None,
    problems: Sequence[Problem] | None = None,
    num_steps: int | None = None,
    progress: Callable[[str, float], None] = lambda what, fraction: None,
    note: Callable[[str], None] = lambda text: None,
) -> Table:
    """Runs what is not in the records at `path` yet, appends it, and returns the table of the records asked for.

    Args:
      experiment: what to run.
      path: the JSON lines.
      seeds: the number of seeds.
      techniques: None takes the experiment's own; one that is not among them runs on its own grid.
      learning_rates: None takes the experiment's own; given, every technique runs at each of them.
      data_dir: where the data files are.
      problems: None takes the experiment's own.
      num_steps: None takes each problem's own.
      progress: told what runs, and the fraction done of all.
      note: told what is left out, and why.

    Raises:
      ValueError: where a technique cannot run on any of the problems, or a problem does not measure what the experiment
        compares; before anything runs.
    """
    # Whatever is on record is not run again, whoever asked for it.
    known = {r.key: r for r in records.read(path)}
    own_problems = problems is None
    chosen_problems = [
        _prepared(experiment, problem, is_own=own_problems)
        for problem in (experiment.problems(data_dir) if problems is None else problems)
    ]
    entries = chosen(experiment, techniques, learning_rates)
    is_own = own_problems and techniques is None
    # Said before the first run: an hour later would be too late.
    pairs, refused = _pairs(chosen_problems, entries, is_own)
    _check_refused(experiment, pairs, refused, techniques, note)
    asked: list[Key] = []
    for done, (problem, entry) in enumerate(pairs):
        label = f"{entry.technique.name} on {problem.name}"
        progress(label, done / len(pairs))

        def advance(fraction, label=label, done=done):
            progress(label, (done + fraction) / len(pairs))

        planned = [
            runner.Run(entry.technique, entry.technique.named_settings(value), seed)
            for value in (entry.technique.grid if entry.grid is None else entry.grid)
            for seed in range(seeds)
        ]
        keys = [_key(problem, r, num_steps) for r in planned]
        missing = [r for r, key in zip(planned, keys, strict=True) if key not in known]
        if missing:
            new = _records(experiment, problem, missing, num_steps, advance)
            # As soon as they are there: an interruption loses one technique at most.
            records.append(path, new)
            known |= {r.key: r for r in new}
        asked += keys
    if is_own:
        asked += _measure(experiment, path, known, progress)
    progress("done", 1.0)
    return table(known[key] for key in dict.fromkeys(asked))


def find_techniques(experiment: Experiment, names: Sequence[str]) -> list[Technique]:
    """Returns the techniques of these names: the experiment's own, else those of the suite.

    Raises:
      ValueError: listing both, for an unknown name.
    """
    own = {entry.technique.name: entry.technique for entry in experiment.entries}
    # The experiment's own come first: its `sgd` may have another schedule than that of the suite.
    known = {**TECHNIQUES, **own}
    unknown = [name for name in names if name not in known]
    if unknown:
        others = [name for name in TECHNIQUES if name not in own]
        raise ValueError(
            f"unknown technique {', '.join(map(repr, unknown))}; {experiment.name} has {', '.join(own)}; the suite "
            f"also has {', '.join(others)}."
        )
    return [known[name] for name in names]


def chosen(
    experiment: Experiment,
    techniques: Sequence[Technique] | None = None,
    learning_rates: Sequence[float] | None = None,
) -> list[Entry]:
    """Returns the entries to run: the experiment's own, or those asked for."""
    entries = list(experiment.entries)
    if techniques is not None:
        entries = [entry for t in techniques for entry in _entries_of(t, experiment.entries)]
    if learning_rates is not None:
        entries = [e._replace(grid=e.technique.at_rates(learning_rates)) for e in entries]
    return entries


def _entries_of(technique, entries):
    named = [e for e in entries if e.technique.name == technique.name]
    # All variants of one of its own, one for each kind of problem. A stranger may have the name of one of them.
    return named if any(e.technique == technique for e in named) else [Entry(technique)]


def _prepared(experiment, problem, *, is_own):
    problem = experiment.adapt_problem(problem)
    lacking = [name for name in experiment.needs if name not in problem.final_measures]
    # The experiment's own problems may each measure a part of what it needs.
    if lacking and not is_own:
        raise ValueError(
            f"{experiment.name} compares {', '.join(lacking)}, which {problem.name} does not measure."
        )
    names = experiment.curve_measures
    if names is None:
        return problem
    return problem.replace(measures={k: x for k, x in problem.measures.items() if k in names})


class _Refused(NamedTuple):
    technique: str
    problem: str
    reason: str


def _pairs(problems, entries, is_own):
    """Returns what runs on what, and what cannot; of the experiment's own it is known, and no step is traced."""
    pairs, refused = [], []
    for problem in problems:
        for entry in entries:
            if not _is_for(entry, problem, entries):
                continue
            reason = suitability.why_not(entry.technique, problem, trace=not is_own)
            if reason is None:
                pairs.append((problem, entry))
            else:
                refused.append(_Refused(entry.technique.name, problem.name, reason))
    return pairs, refused


def _check_refused(experiment, pairs, refused, asked, note):
    """Refuses a technique that was asked for and runs on no problem; notes what else is left out."""
    running = {entry.technique.name for _, entry in pairs}
    for r in refused:
        if r.technique in running or (asked is None and running):
            note(f"{r.technique} is left out on {r.problem}: {r.reason}.")
    nowhere = [r for r in refused if r.technique not in running]
    if nowhere and (asked is not None or not running):
        told = "; ".join(f"{r.technique} on {r.problem}: {r.reason}" for r in nowhere)
        raise ValueError(f"{experiment.name} cannot measure {told}.")
    missing = {t.name for t in asked or ()} - running
    if missing:
        raise ValueError(
            f"{', '.join(sorted(missing))}: not for these problems of {experiment.name}."
        )


def _is_for(entry, problem, entries):
    """Says whether an entry is meant for a problem; one that no entry names is for all of them."""
    # A user's own problem is named by no entry: all of them are for it.
    named = {name for e in entries for name in e.problems or ()}
    return entry.problems is None or problem.name in entry.problems or problem.name not in named


def _records(experiment, problem, runs, num_steps, progress):
    technique = experiment.adapt_technique(runs[0].technique, problem)
    adapted = [dataclasses.replace(r, technique=technique) for r in runs]
    length = num_steps or problem.num_steps
    # All settings and seeds of a technique are one program.
    trajectories = runner.run_all(
        problem, adapted, num_steps=length, num_points=NUM_POINTS, progress=progress
    )
    # Once for all runs of a technique: its settings do not change what a step computes.
    gradients, products = count_gradients(problem, technique, runs[0].settings, length)
    found = environment()
    return [
        Record(
            technique=technique.name,
            problem=problem.name,
            about=problem.about,
            settings=t.run.settings,
            num_steps=length,
            seed=t.run.seed,
            measures={
                **t.final,
                "gradients_per_step": gradients,
                "products_per_step": products,
                "seconds_per_step": t.seconds_per_step,
                "compile_seconds": t.compile_seconds,
                "runs_in_program": t.runs_in_program,
            },
            curve=t.curve,
            environment=found,
            target=dataclasses.asdict(problem.target) if problem.target else None,
        )
        for t in trajectories
    ]


def _measure(experiment, path, known, progress):
    """Measures what is not on record yet; returns all keys of the measurements."""
    keys: list[Key] = []
    for done, measurement in enumerate(experiment.measurements):
        if any(key not in known for key in measurement.keys):
            what = ", ".join(dict.fromkeys(key[0] for key in measurement.keys))
            progress(what, done / len(experiment.measurements))
            new = [r for r in measurement.measure() if r.key not in known]
            records.append(path, new)
            known |= {r.key: r for r in new}
        keys += measurement.keys
    return keys


def _key(problem, run, num_steps):
    values = tuple(run.settings.values())
    length = num_steps or problem.num_steps
    return (problem.name, problem.about, length, run.technique.name, values, run.seed)
