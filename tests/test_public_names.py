"""The public names are those of the design, every one is documented, and every example runs."""

import doctest
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
import types

import optax
import pytest

import optax_igr
from tests import registry

ROOMS = {
    "optax_igr.penalties": """
        add_gradient_penalty add_microbatch_gradient_penalty extrapolated_gradient_penalty
        extrapolation_eval_params add_igr cancel_igr hold_igr modified_loss igr_coefficient
        add_schatten_decay add_spectral_decay""",
    "optax_igr.operators": """
        matrix_operator conv_operator conv_transpose_operator stacked_operator spectral_norm
        spectral_norm_bound schatten_norm
        frobenius_norm""",
    "optax_igr.geometry": """
        exponentiate exponentiate_simplex exponentiate_hypentropy exponentiate_signed
        exponentiated_gradient eg_plus_minus keep_params_in projection_spectral_ball
        projection_simplex_kl""",
    "optax_igr.step_size": """
        scale_by_gain adapt_scale egdd scale_by_cauchy_step limit_by_curvature scale_by_path
        layerwise_decay factor_table""",
    "optax_igr.curvature": """
        scale_by_newton_cg newton_cg scale_by_sqn sqn svrg slbfgs
        scale_by_multibatch_lbfgs multibatch_lbfgs overlapping_batches""",
    "optax_igr.flows": """
        gradient_flow modified_flow flow_from_step optimizer_flow adam_flow minibatch_flow
        two_player_flow principal_flow central_flow adam_central_flow rmsprop_central_flow edge_flow
        integrate convergence_order""",
    "optax_igr.diagnostics": """
        implicit_regularization monitor_drift sharpness lipschitz_bounds spectral_norm
        parameter_robustness input_robustness monitor_sharpness_ratio adam_divisor rmsprop_divisor""",
}
HELPERS = "accumulated fill_masked mean_over microbatched matrix_operator conv_operator"
SUBMODULES = ("optax_igr.flows", "optax_igr.diagnostics", "optax_igr.operators")


def public_functions(module_name):
    if importlib.util.find_spec(module_name) is None:
        return {}
    module = importlib.import_module(module_name)
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, types.FunctionType) and not name.startswith("_")
    }


FUNCTIONS = {
    f"{module}.{name}": function
    for module in ("optax_igr", *SUBMODULES)
    for name, function in public_functions(module).items()
}

every_function = pytest.mark.parametrize("name", sorted(FUNCTIONS))


def section(docstring, title):
    """Returns the text under `title:`, up to the next section at the same depth."""
    match = re.search(rf"^{title}:\n((?:[ ]+.*\n|\n)+)", docstring + "\n", re.MULTILINE)
    assert match is not None, f"no section {title}"
    return inspect.cleandoc(match.group(1))


def test_the_public_functions_are_those_of_the_design():
    toolkit = {room for room in ROOMS if room not in SUBMODULES}
    designed = " ".join([HELPERS, *(ROOMS[room] for room in toolkit)]).split()
    assert public_functions("optax_igr").keys() <= set(designed)
    for submodule in SUBMODULES:
        assert public_functions(submodule).keys() <= set(ROOMS[submodule].split())


@pytest.mark.parametrize("room", sorted(set(ROOMS) - set(SUBMODULES)))
def test_a_room_exports_what_the_front_page_does(room):
    offered = public_functions(room).keys()
    designed = set(ROOMS[room].split())
    assert offered <= designed
    assert offered == designed & public_functions("optax_igr").keys()


def test_the_registry_names_every_transform_once():
    transforms = {
        function
        for function in FUNCTIONS.values()
        if isinstance(result := inspect.signature(function, eval_str=True).return_annotation, type)
        and issubclass(result, optax.GradientTransformation)
    }
    registered = [entry.transform for entry in registry.ENTRIES]
    # It changes what another transform is given, and is none of its own.
    assert set(registered) == transforms - {optax_igr.accumulated}
    names = [str(entry) for entry in registry.ENTRIES]
    assert len(set(names)) == len(names)


@every_function
def test_every_argument_and_result_is_annotated(name):
    signature = inspect.signature(FUNCTIONS[name])
    unannotated = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
    assert unannotated == []
    assert signature.return_annotation is not signature.empty


@every_function
def test_the_docstring_follows_the_template(name):
    function = FUNCTIONS[name]
    docstring = inspect.getdoc(function) or ""
    summary, _, rest = docstring.partition("\n")
    assert summary.endswith(".")
    assert rest.startswith("\n"), "the first line is the summary, alone"

    documented = re.findall(r"^\*{0,2}(\w+):", section(docstring, "Args"), re.MULTILINE)
    assert documented == list(inspect.signature(function).parameters)
    assert section(docstring, "Returns")
    assert ">>>" in section(docstring, "Examples")
    assert re.search(r"`[^`<]+\s<https?://[^>]+>`_", section(docstring, "References"))


@every_function
def test_the_examples_run(name):
    function = FUNCTIONS[name]
    (test,) = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    output = []
    results = doctest.DocTestRunner().run(test, out=output.append)
    assert results.failed == 0, "".join(output)
    assert results.attempted > 0


def test_the_rooms_are_attributes_after_a_plain_import():
    """`import optax_igr` alone, in a fresh interpreter; and it loads neither Flax nor Diffrax."""
    program = """
import sys, optax_igr
assert "flax" not in sys.modules and "diffrax" not in sys.modules
for name in ("flows", "diagnostics", "operators", "flax"):
    assert name in dir(optax_igr) and getattr(optax_igr, name).__name__ == f"optax_igr.{name}"
try:
    optax_igr.no_such_room
except AttributeError as error:
    assert "no_such_room" in str(error)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("module_name", ["optax_igr", *ROOMS, "optax_igr.flax"])
def test_all_names_the_public_face(module_name):
    """`from module import *` gives every public function, and nothing that is not there."""
    module = importlib.import_module(module_name)
    assert set(public_functions(module_name)) <= set(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name)
