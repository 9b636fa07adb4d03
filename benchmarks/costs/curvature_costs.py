"""What curvature costs beside a gradient: every mode of a Hessian-vector product, and every direction.

Times are medians over rounds in which all programs take turns, each as a ratio to the gradient of its own round; a
direction's to the step of gradient descent. FLOPs and memory are the compiler's own figures; a direction contains
loops, whose bodies those count once, so it has none.
"""

import statistics

from benchmarks.costs import curvature_programs as programs_
from benchmarks.costs.curvature_programs import ACTIVATIONS
from benchmarks.costs.timing import interleaved, median_ratio
from benchmarks.engine.machine import environment
from benchmarks.engine.records import Key, Record

ROUNDS = 9
PRODUCTS = {name: f"Hessian-vector product, {name}" for name in ACTIVATIONS}
DIRECTIONS = "direction, tanh"
PROBLEMS = (*PRODUCTS.values(), DIRECTIONS)
SETTINGS = f"MLP {'-'.join(map(str, programs_.WIDTHS))}, batch {programs_.BATCH_SIZE}, float32"


def measure(rounds: int = ROUNDS) -> list[Record]:
    """Compiles and times everything."""
    programs = {
        (problem, technique): program
        for problem, found in [
            *((PRODUCTS[name], programs_.products(fn)) for name, fn in ACTIVATIONS.items()),
            (DIRECTIONS, programs_.directions()),
        ]
        for technique, program in found.items()
    }
    seconds = interleaved({key: program.run for key, program in programs.items()}, rounds)
    found = environment()
    return [_record(key, programs, seconds, found) for key in programs]


def _record(key, programs, seconds, found):
    problem, technique = key
    base = (problem, "gradient" if problem in PRODUCTS.values() else "sgd")
    measures = dict(programs[key].figures)
    for name in ("flops", "memory"):
        if name in measures:
            measures[name] = measures[name] / programs[base].figures[name]
    measures["time"] = median_ratio(seconds[key], seconds[base])
    measures["milliseconds"] = 1e3 * statistics.median(seconds[key])
    return Record(
        technique=technique,
        problem=problem,
        about=SETTINGS,
        num_steps=ROUNDS,
        seed=0,
        measures=measures,
        environment=found,
    )


DIRECTION_NAMES = (
    *("sgd", "adam", "naive_lbfgs", "multibatch_lbfgs", "multibatch_lbfgs gram", "svrg", "sqn"),
    *("sqn gram", "slbfgs", "newton_cg 10", "gauss_newton_cg 10"),
)
# In the form of `Record.key`: there are no settings, and the start is that of the first seed.
KEYS: list[Key] = [
    (problem, SETTINGS, ROUNDS, technique, (), 0)
    for problem, techniques in [
        *((problem, ("gradient", *programs_.MODES)) for problem in PRODUCTS.values()),
        (DIRECTIONS, DIRECTION_NAMES),
    ]
    for technique in techniques
]
