"""Every public transform of the library, one line each; `test_contract.py` asks the same of all.

A second line for a transform (with a `variant`) is for a second code path: one whose failures at a zero
gradient, in half precision or under a wrapper would differ from those of the first.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import optax

import optax_igr as igr
from optax_igr import diagnostics
from tests import problems

Construct = Callable[..., optax.GradientTransformationExtraArgs]


def first(construct: Construct, base: optax.GradientTransformation):
    """The transform sees the raw gradient: penalties, gains, directions."""
    return optax.chain(construct(), base)


def last(construct: Construct, base: optax.GradientTransformation):
    """The transform sees the additive update: geometries, caps."""
    return optax.chain(base, construct())


def wrapper(construct: Construct, base: optax.GradientTransformation):
    """The transform takes the optimizer as its first argument."""
    return construct(base)


def alias(construct: Construct, base: optax.GradientTransformation):
    """The transform is an optimizer."""
    del base
    return construct()


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A transform and what a test must know to run it.

    Attributes:
      transform: the public function.
      hyperparameters: its arguments; the inner optimizer of a wrapper is not among them.
      needs: the extra arguments that it requires.
      place: how it becomes an optimizer together with a base optimizer.
      static_args: hyper-parameters that `optax.inject_hyperparams` must leave alone.
      eval_params: `(state, params) -> params` where the loop does not hold the parameters themselves.
      domain: "real", "positive" or "simplex": where the parameters must lie.
      complex_as: "pair" if a complex parameter acts as the pair of its real and imaginary parts,
        "phase" if the transform only commutes with a common phase (it uses the modulus of an entry).
      on_targets: hyper-parameters for the target problems, where the curvature reaches 1000.
      base_on_targets: what follows the transform there; Adam would undo a direction with a length of its own.
      num_steps: of that optimizer (or of an alias alone) to the targets.
      acts_on_next_step: what an update computes takes effect one step later, and so do its schedules.
      refuses: demands that it answers with a clear `ValueError` instead: "complex", "scalar leaf".
      without_reverse_mode: it contains a loop of unknown length; a step has forward derivatives alone.
      variant: what sets this line apart from another one of the same transform.
    """

    transform: Construct
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needs: tuple[str, ...] = ()
    place: Callable[[Construct, optax.GradientTransformation], Any] = first
    static_args: tuple[str, ...] = ()
    eval_params: Callable[[Any, Any], Any] | None = None
    domain: str = "real"
    complex_as: str = "pair"
    on_targets: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    base_on_targets: optax.GradientTransformation = dataclasses.field(
        default_factory=lambda: optax.adam(1e-2)
    )
    num_steps: int = 6_000
    acts_on_next_step: bool = False
    refuses: frozenset[str] = frozenset()
    without_reverse_mode: bool = False
    variant: str = ""

    @property
    def name(self) -> str:
        return self.transform.__name__

    def __str__(self) -> str:
        return f"{self.name}-{self.variant}" if self.variant else self.name

    def optimizer(
        self,
        base: optax.GradientTransformation | None = None,
        *,
        constructor: Construct | None = None,
        **overrides: Any,
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the transform together with `base`, which is gradient descent by default."""
        base = optax.sgd(0.05) if base is None else base
        return self.place(lambda *inner: self._construct(inner, constructor, overrides), base)

    def alone(self, **overrides: Any) -> optax.GradientTransformationExtraArgs:
        """Returns the transform itself; a wrapper holds gradient descent."""
        inner = (optax.sgd(0.05),) if self.place is wrapper else ()
        return self._construct(inner, None, overrides)

    def scheduled(self) -> dict[str, float]:
        """Returns the hyper-parameters that may be schedules, by their annotation, with their values."""
        schedule_types = typing.get_args(optax.ScalarOrSchedule)
        arguments = inspect.signature(self.transform, eval_str=True).parameters
        values = {
            name: self.hyperparameters.get(name, argument.default)
            for name, argument in arguments.items()
            if all(kind in typing.get_args(argument.annotation) for kind in schedule_types)
        }
        return {name: value for name, value in values.items() if isinstance(value, (int, float))}

    def _construct(self, inner, constructor, overrides):
        constructor = constructor or self.transform
        return constructor(*inner, **{**self.hyperparameters, **overrides})


VALUE = ("value_fn",)
MU = {"coefficient": 1e-2}
PLAIN = {**MU, "norm": "plain"}
DIFFERENCE = {**MU, "hvp": "forward_difference", "radius": 1e-2}
MICRO = {**MU, "num_microbatches": problems.NUM_MICROBATCHES}
MICRO_VALUE = ("microbatch_value_fn",)
SCHATTEN: Any = {"static_args": ("gram_steps", "refresh_interval"), "complex_as": "phase"}
HOLD = {"reference_learning_rate": 0.1, "learning_rate": 0.05}
WARMED = {
    "scale_rate": 1e-2,
    "ema": 0.9,
    "first_step": "cauchy",
    "warmup_steps": 2,
    "max_relative_update": 0.1,
}
SIGN = {"gain_rate": 1e-3, "signal": "sign", "ema": 0.5, "decay": 1e-2}
NORMALIZED = {"gain_rate": 1e-3, "signal": "normalized"}
DAMPED = {"learning_rate": 1e-3, "gain_bounds": (1e-2, 1.0)}
PHASE = {"complex_as": "phase"}
SHARPNESS = {"learning_rate": 0.05, "interval": 2}
MONITORED: Any = {
    "static_args": ("interval",),
    "without_reverse_mode": True,
    "on_targets": {
        "momentum": 0.9,
        "averaged": True,
        "preconditioner": diagnostics.adam_divisor(),
    },
}
DELAYED = {"acts_on_next_step": True, "on_targets": {"coefficient": 1e-4}}
CURVATURE = ("curvature_value_fn",)
FULL = ("value_fn", "full_value_fn")
OVERLAP = ("overlap_value_fn",)
OUTPUTS = ("outputs_fn", "output_loss_fn")
DIRECTION = {"base_on_targets": optax.sgd(5e-3)}
GAUSS_NEWTON = {"curvature": "gauss_newton", "damping": 1.0}
NEWTON = {"static_args": ("max_steps",), "without_reverse_mode": True, **DIRECTION}
LIMITED = {"static_args": ("memory_size",), **DIRECTION}
STOCHASTIC = {"static_args": ("memory_size", "pair_interval"), **DIRECTION}
PAIRS = {"memory_size": 2, "pair_interval": 1}
ANCHOR = {"anchor_interval": 2}
POWELL = {"memory_size": 2, "powell_damping": 0.2, "form": "gram"}
RATE = {"learning_rate": 5e-3}


def by_depth(path):
    """A depth for every path, in three layers."""
    return len(path) % 3


def by_name(path, leaf):
    """A factor for every leaf."""
    del leaf
    return 0.5 if "w" in str(path) else 2.0


BY_DEPTH = {"decay": 0.5, "depth_fn": by_depth, "num_layers": 3}

REAL = {"refuses": frozenset({"complex"})}
POSITIVE = {"place": last, "domain": "positive", **REAL}
SIMPLEX = {
    "place": last,
    "domain": "simplex",
    "static_args": ("axis",),
    "refuses": frozenset({"complex", "scalar leaf"}),
}
SLOWER = {"place": alias, "domain": "positive", "on_targets": {"learning_rate": 1e-3}, **REAL}
BALL = {"learning_rate": 1e-2, "total": 40.0}
IN_BALL = {
    "place": alias,
    "static_args": ("axis",),
    "on_targets": {"learning_rate": 1e-4},
    **REAL,
}


def into_ball(tree):
    """The projection onto a ball that is large enough to be left alone."""
    return optax.projections.projection_l2_ball(tree, 1e6)


# fmt: off
ENTRIES: tuple[Entry, ...] = (
    Entry(igr.add_gradient_penalty, MU, VALUE),
    Entry(igr.add_gradient_penalty, PLAIN, VALUE, variant="plain"),
    Entry(igr.add_gradient_penalty, DIFFERENCE, VALUE, variant="difference"),
    Entry(igr.add_microbatch_gradient_penalty, MICRO, MICRO_VALUE, static_args=("num_microbatches",)),
    Entry(igr.add_igr, {"step_size": 1e-2}, VALUE),
    Entry(igr.cancel_igr, {"learning_rate": 1e-2, "safeguard": True}, VALUE),
    Entry(igr.hold_igr, HOLD, VALUE),
    Entry(igr.add_schatten_decay, {"coefficient": 1e-3, "gram_steps": 0}, **SCHATTEN, variant="L2"),
    Entry(igr.add_schatten_decay, {"coefficient": 1e-3, "gram_steps": 2, "refresh_interval": 2}, **SCHATTEN),
    Entry(igr.add_spectral_decay, {"coefficient": 1e-3}, static_args=("power_steps",), complex_as="phase"),
    Entry(igr.extrapolated_gradient_penalty, MU, place=wrapper, eval_params=igr.extrapolation_eval_params, **DELAYED),
    Entry(igr.exponentiate, {}, **POSITIVE),
    Entry(igr.exponentiate, {"log_state": True}, **POSITIVE, variant="log state"),
    Entry(igr.exponentiate_simplex, {"fixed_share": 1e-6}, **SIMPLEX),
    Entry(igr.exponentiate_simplex, {"log_state": True}, **SIMPLEX, variant="log state"),
    Entry(igr.exponentiate_hypentropy, {"beta": 1.0}, place=last, **REAL),
    Entry(igr.exponentiate_signed, {}, **POSITIVE),
    Entry(igr.exponentiated_gradient, {"learning_rate": 1e-2, "momentum": 0.9}, **SLOWER),
    Entry(igr.eg_plus_minus, BALL, **IN_BALL),
    Entry(igr.keep_params_in, {"projection": into_ball}, place=last, static_args=("projection",)),
    Entry(igr.scale_by_newton_cg, {}, VALUE, **NEWTON),
    Entry(igr.scale_by_newton_cg, GAUSS_NEWTON, OUTPUTS, variant="gauss_newton", **NEWTON),
    Entry(igr.newton_cg, {"learning_rate": 0.1}, VALUE, place=alias, **NEWTON),
    Entry(igr.scale_by_sqn, PAIRS, CURVATURE, **STOCHASTIC),
    Entry(igr.scale_by_sqn, {**POWELL, "pair_interval": 1}, CURVATURE, variant="powell", **STOCHASTIC),
    Entry(igr.sqn, {**RATE, **PAIRS}, CURVATURE, place=alias, **STOCHASTIC),
    Entry(igr.svrg, ANCHOR, FULL, static_args=tuple(ANCHOR)),
    Entry(igr.slbfgs, {**RATE, **PAIRS, **ANCHOR}, (*FULL, *CURVATURE), place=alias, static_args=(*PAIRS, *ANCHOR)),
    Entry(igr.scale_by_multibatch_lbfgs, {"memory_size": 2}, OVERLAP, **LIMITED),
    Entry(igr.scale_by_multibatch_lbfgs, POWELL, OVERLAP, variant="powell", **LIMITED),
    Entry(igr.multibatch_lbfgs, {**RATE, "memory_size": 2}, OVERLAP, place=alias, **LIMITED),
    Entry(igr.scale_by_gain, SIGN, **PHASE),
    Entry(igr.scale_by_gain, {"gain_rate": 1e-6}, **PHASE, variant="product"),
    Entry(igr.scale_by_gain, NORMALIZED, **PHASE, variant="normalized"),
    Entry(igr.adapt_scale, {"scale_rate": 1e-2, "decay": 1e-3}, place=wrapper),
    Entry(igr.adapt_scale, {"scale_rate": 1e-2, "granularity": "leaf"}, place=wrapper, variant="leaf"),
    Entry(igr.adapt_scale, WARMED, VALUE, place=wrapper, variant="first step", static_args=("warmup_steps",)),
    Entry(igr.egdd, {"learning_rate": 1e-2}, place=alias, on_targets=DAMPED, **PHASE),
    Entry(igr.scale_by_cauchy_step, {"ema": 0.5}, VALUE),
    Entry(igr.limit_by_curvature, {}, VALUE, place=last),
    Entry(diagnostics.monitor_drift, {}, static_args=("interval",)),
    Entry(diagnostics.monitor_sharpness_ratio, SHARPNESS, VALUE, place=wrapper, **MONITORED),
    Entry(igr.scale_by_path, {"factor_fn": by_name}, static_args=("factor_fn",)),
    Entry(igr.layerwise_decay, BY_DEPTH, static_args=("depth_fn", "num_layers")),
)
# fmt: on
