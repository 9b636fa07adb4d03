"""What an experiment is, and the one way to run it: every technique, rate and seed that is not on record."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt

from benchmarks.engine import records, runner
from benchmarks.engine.gradient_counts import count_gradients
from benchmarks.engine.records import Key, Record
from benchmarks.problems.problem import Problem
from benchmarks.techniques.own import TECHNIQUES
from benchmarks.techniques.technique import Technique

NUM_POINTS = 25


class Entry(NamedTuple):
    """A technique in an experiment.

    Attributes:
      technique: what runs.
      learning_rates: None takes the technique's own grid.
      problems: the names of those that it runs on; None is all of them.
    """

    technique: Technique
    learning_rates: Sequence[float] | None = None
    problems: Sequence[str] | None = None


class Measurement(NamedTuple):
    """Records that no training run gives, such as the cost of an operation.

    Attributes:
      keys: of the records; those on record already are not measured again.
      measure: makes them.
    """

    keys: Sequence[Key]
    measure: Callable[[], list[Record]]


class Column(NamedTuple):
    """A column of the table.

    Attributes:
      title: its head.
      about: one sentence for the reader.
      cell: the text for the seeds of one technique and rate, given all records too.
    """

    title: str
    about: str
    cell: Callable[[list[Record], list[Record]], str]


class Figure(NamedTuple):
    """A figure: one chart serves the PNG and the report."""

    name: str
    title: str
    caption: str
    chart: (
        alt.Chart
        | alt.LayerChart
        | alt.ConcatChart
        | alt.HConcatChart
        | alt.VConcatChart
        | alt.FacetChart
    )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A question, the runs that answer it, and how the answer is shown.

    Attributes:
      name: the sub-command.
      question: the title of the report.
      about: a paragraph below it.
      problems: `data_dir -> problems`.
      entries: what is compared.
      columns: of the table.
      headline: the answer in a sentence or two, computed from the records.
      figures: of the report, computed from the records.
      row_per_rate: a row of the table for each rate; else one for all rates of a technique.
      curve_measures: those that its figures need; None takes all of a problem's. Between 25 points the others may
        cost more than the steps.
      needs: final measures that its table and figures read, so that a problem without them cannot be chosen.
      measurements: what is measured beside the runs, where neither techniques nor problems are chosen.
    """

    name: str
    question: str
    about: str
    problems: Callable[[Path | None], Sequence[Problem]]
    entries: Sequence[Entry]
    columns: Sequence[Column]
    headline: Callable[[list[Record]], str]
    figures: Callable[[list[Record]], list[Figure]]
    row_per_rate: bool = True
    curve_measures: Sequence[str] | None = None
    needs: Sequence[str] = ()
    measurements: Sequence[Measurement] = ()


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
) -> list[Record]:
    """Runs what is not in the records at `path` yet, appends it, and returns the records asked for.

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

    Raises:
      ValueError: where nothing of this can run, or a problem does not measure what the experiment compares.
    """
    known = {r.key: r for r in records.read(path)}
    own_problems = problems is None
    problems = list(experiment.problems(data_dir) if problems is None else problems)
    for problem in () if own_problems else problems:
        lacking = [name for name in experiment.needs if name not in problem.final_measures]
        if lacking:
            raise ValueError(
                f"{experiment.name} compares {', '.join(lacking)}, which {problem.name} does not measure."
            )
    entries = chosen(experiment, techniques, learning_rates)
    if experiment.curve_measures is not None:
        problems = [_measuring(problem, experiment.curve_measures) for problem in problems]
    pairs = [(p, e) for p in problems for e in entries if _is_for(e, p, entries)]
    if not pairs:
        names = ", ".join(entry.technique.name for entry in entries)
        raise ValueError(
            f"{names}: not for {', '.join(p.name for p in problems)}. A deterministic minimiser needs steps that all "
            "see the same batch."
        )
    total, done, asked = len(pairs), 0, []
    for problem, entry in pairs:
        length = num_steps or problem.num_steps
        label = f"{entry.technique.name} on {problem.name}"
        progress(label, done / total)

        def advance(fraction, label=label, done=done):
            progress(label, (done + fraction) / total)

        planned = [
            runner.Run(entry.technique, rate, seed)
            for rate in entry.learning_rates or entry.technique.learning_rates
            for seed in range(seeds)
        ]
        keys = [_key(problem, r, length) for r in planned]
        missing = [r for r, key in zip(planned, keys, strict=True) if key not in known]
        new = _records(problem, missing, length, advance) if missing else []
        records.append(path, new)
        known |= {r.key: r for r in new}
        asked += keys
        done += 1
    for measurement in experiment.measurements if own_problems and techniques is None else ():
        if any(key not in known for key in measurement.keys):
            progress("measuring", done / total)
            new = [r for r in measurement.measure() if r.key not in known]
            records.append(path, new)
            known |= {r.key: r for r in new}
        asked += measurement.keys
    progress("done", 1.0)
    return [known[key] for key in asked]


def find_techniques(experiment: Experiment, names: Sequence[str]) -> list[Technique]:
    """Returns the techniques of these names: the experiment's own, else those of the suite.

    Raises:
      ValueError: listing both, for an unknown name.
    """
    own = {entry.technique.name: entry.technique for entry in experiment.entries}
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
        own = {t.name: [e for e in entries if e.technique.name == t.name] for t in techniques}
        entries = [entry for t in techniques for entry in own[t.name] or [Entry(t)]]
    if learning_rates is not None:
        entries = [entry._replace(learning_rates=tuple(learning_rates)) for entry in entries]
    return entries


def _is_for(entry, problem, entries):
    """Says whether an entry runs on a problem; one that no entry names is for all of them.

    A deterministic technique compares the losses of consecutive steps: they must see the same batch.
    """
    if entry.technique.deterministic and problem.batch_size is not None:
        return False
    named = {name for e in entries for name in e.problems or ()}
    return entry.problems is None or problem.name in entry.problems or problem.name not in named


def _records(problem, runs, num_steps, progress):
    trajectories = runner.run_all(
        problem, runs, num_steps=num_steps, num_points=NUM_POINTS, progress=progress
    )
    technique = runs[0].technique
    gradients, products = count_gradients(problem, technique, runs[0].learning_rate, num_steps)
    environment = records.environment()
    return [
        Record(
            problem=problem.name,
            settings=problem.about,
            technique=technique.name,
            learning_rate=t.run.learning_rate,
            seed=t.run.seed,
            num_steps=num_steps,
            curve=t.curve,
            final=t.final,
            gradients_per_step=gradients,
            products_per_step=products,
            seconds_per_step=t.seconds_per_step,
            compile_seconds=t.compile_seconds,
            runs_in_program=t.runs_in_program,
            environment=environment,
            target=dataclasses.asdict(problem.target) if problem.target else None,
        )
        for t in trajectories
    ]


def _measuring(problem, names):
    return problem.replace(measures={k: x for k, x in problem.measures.items() if k in names})


def _key(problem: Problem, run: runner.Run, num_steps: int) -> Any:
    return (
        problem.name,
        problem.about,
        num_steps,
        run.technique.name,
        float(run.learning_rate),
        run.seed,
    )
