"""How the costs of operations are shown: what `benchmarks.costs` measures, as tables."""

from benchmarks.engine.table import Table
from benchmarks.report.presentation import Column, Presentation, value_column


def _flops(group, runs):
    del runs
    row = group.iloc[0]
    return f"{'≥' if row['has_loop'] else ''}{row['flops']:.2f}"


STEPS = Presentation(
    name="steps",
    question="What does a step cost?",
    headline=lambda runs: (
        "Beside a plain gradient step: time is the median ratio over rounds in which the steps take turns; FLOPs "
        "and memory are the compiler's own figures (≥: a loop, counted for one turn); gradients and "
        "Hessian-vector products are counted."
    ),
    columns=[
        value_column("time ×", "beside the plain step", "wall", ".2f"),
        value_column("ms", "median time of a step", "milliseconds", ".1f"),
        Column("FLOPs ×", "a loop counts for one turn: ≥", _flops),
        value_column("memory ×", "temporaries and outputs", "memory", ".2f"),
        value_column("gradients", "of one batch, counted", "gradients", ".3g"),
        value_column("Hv", "Hessian-vector products, counted", "products", ".3g"),
        value_column("state copies", "in copies of the parameters", "state_copies", ".2f"),
        value_column("compile s", "tracing and compilation", "compile_seconds", ".2f"),
        value_column("FLOPs / by hand", "of the step written out", "flops_by_hand", ".3f"),
        value_column("memory / by hand", "of the step written out", "memory_by_hand", ".3f"),
    ],
    row_per_setting=False,
    needs=("wall", "gradients", "has_loop"),
)


def _elementwise(runs: Table) -> str:
    return (
        f"{int(runs['size'].iloc[0]):,} parameters in float32 with donated buffers and a given gradient: time is the "
        "median ratio to Adam, or to a softmax of the same array, over rounds in which the steps take turns; passes "
        "are the bytes that the kernels read and write, temporaries and state copies the bytes they take, all / those "
        "of the parameters."
    )


ELEMENTWISE = Presentation(
    name="elementwise",
    question="What does a step cost where memory traffic is the limit?",
    headline=_elementwise,
    columns=[
        value_column("time ×", "beside its baseline", "ratio", ".2f"),
        value_column("of", "the baseline", "baseline", "s"),
        value_column("ms", "median time of a step", "milliseconds", ".1f"),
        value_column("passes", "bytes accessed / parameters", "passes", ".1f"),
        value_column("temporaries", "bytes / parameters", "temporaries", ".2f"),
        value_column("state copies", "in copies of the parameters", "state_copies", ".1f"),
    ],
    row_per_setting=False,
    technique_title="step",
    needs=("ratio", "passes", "size"),
)

DECAY_COSTS = Presentation(
    name="decay_costs",
    question="What does a decay of the norms cost?",
    headline=lambda runs: (
        "Beside a plain step of a fully connected network: time is the median ratio over rounds in which the "
        "steps take turns, the mean from one refresh to the next; FLOPs are the compiler's own figures, and the "
        "formula's are those of the step and of 2t products of 2mn² for each layer."
    ),
    columns=[
        value_column("time ×", "the mean from one refresh to the next", "wall", ".3f"),
        value_column("time at a refresh ×", "of that step", "refresh_wall", ".3f"),
        value_column("FLOPs ×", "compiled", "flops", ".3f"),
        value_column("by formula ×", "the step and its products", "expected_flops", ".3f"),
        value_column("state copies", "in copies of the parameters", "state_copies", ".2f"),
    ],
    row_per_setting=False,
    needs=("wall", "refresh_wall"),
)


def _speedup(row) -> float:
    return row["loop_seconds"] / row["program_seconds"]


def _speedup_with_compilation(row) -> float:
    program = row["program_seconds"] + row["program_compile_seconds"]
    return (row["loop_seconds"] + row["loop_compile_seconds"]) / program


def _of_a_row(title, about, value, spec):
    return Column(title, about, lambda group, runs: format(value(group.iloc[0]), spec))


SWEEP_SPEED = Presentation(
    name="sweep_speed",
    question="How fast is a sweep?",
    headline=lambda runs: (
        f"The same runs as one compiled program and as a Python loop over one jitted step, "
        f"{int(runs['steps'].iloc[0])} steps each; their final losses differ by at most "
        f"{runs['largest_difference'].max():.0e} relatively."
    ),
    columns=[
        _of_a_row("runs", "settings times seeds", lambda row: int(row["runs"]), "d"),
        value_column("program s", "compilation apart", "program_seconds", ".2f"),
        value_column("compile s", "of the program", "program_compile_seconds", ".2f"),
        value_column("loop s", "compilation apart", "loop_seconds", ".2f"),
        _of_a_row("speed-up", "compilation apart", _speedup, ".2f"),
        _of_a_row("with compilation", "of both", _speedup_with_compilation, ".2f"),
        _of_a_row(
            "ms a run",
            "of the program",
            lambda row: 1e3 * row["program_seconds"] / row["runs"],
            ".1f",
        ),
    ],
    technique_title=None,
    setting_title=None,
    needs=("program_seconds", "loop_seconds"),
)

COSTS = {kind.name: kind for kind in (STEPS, ELEMENTWISE, DECAY_COSTS, SWEEP_SPEED)}

# The titles of the tables on the terminal.
TITLES = {
    STEPS.name: "One step beside plain gradient descent",
    ELEMENTWISE.name: "One step where memory traffic is the limit",
    DECAY_COSTS.name: "One step beside plain gradient descent",
    SWEEP_SPEED.name: "A sweep as one program, and as a loop",
}
