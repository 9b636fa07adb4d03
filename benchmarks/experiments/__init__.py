"""The experiments, by name: each is a small file of problems and techniques on the one engine.

To add one, write a file `experiments/<name>.py` that ends in an `EXPERIMENT`:

- `problems`: `data_dir -> [Problem, ...]`, from `benchmarks.problems` or made on the spot; a `Problem` is a start, a
  loss on a batch and the measures to take;
- `entries`: `Entry(technique, grid)`, with techniques from `benchmarks.techniques.TECHNIQUES` or made on the spot:
  `Technique(name, lambda rate, plan: transform, grid, "what it is")`;
- `columns`: `Column(title, explanation, cell)`, where `cell` makes the text of one row from its part of the table;
- `headline`: a sentence computed from the table of all records (`benchmarks.engine.table`);
- `figures`: `Figure(name, title, caption, chart)`, from `benchmarks.report.charts` or plain Altair;

and name it in `EXPERIMENTS` below. The command, its options, the progress bar, resuming, the records, the table, the
PNGs and the page come with it. There is no training loop to write.
"""

from benchmarks.experiments import (
    costs,
    curvature,
    edge,
    flows,
    geometry,
    hedge,
    layerwise,
    learning_rate,
    optimizers,
    penalties,
    robustness,
)
from benchmarks.experiments.experiment import Experiment
from benchmarks.report.presentation import Presentation

# In the order of RESULTS.md.
EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        penalties.EXPERIMENT,
        optimizers.EXPERIMENT,
        learning_rate.EXPERIMENT,
        layerwise.EXPERIMENT,
        geometry.EXPERIMENT,
        hedge.EXPERIMENT,
        curvature.EXPERIMENT,
        robustness.EXPERIMENT,
        flows.EXPERIMENT,
        edge.EXPERIMENT,
    )
}

# Whatever records of a name can be shown, by that name.
PRESENTATIONS: dict[str, Presentation] = {**EXPERIMENTS, **costs.COSTS}
