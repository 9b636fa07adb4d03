"""Every technique of the suite can run somewhere: a step of each is traced on a small classifier."""

import jax
import pytest

from benchmarks.engine.suitability import why_not
from benchmarks.problems import digits
from benchmarks.techniques import TECHNIQUES, named, register

# Those for other problems, and the reason.
ELSEWHERE = {
    "optimistix_cg": "all see the same batch",
    "hedge": "for simplex parameters",
    "hedge_fixed_share": "for simplex parameters",
}


if jax.config.read("jax_enable_x64"):
    # Parts of its state are of the default dtype, whatever that of the parameters.
    ELSEWHERE["optimistix_lbfgs"] = "carry input and carry output must have equal types"


@pytest.fixture(scope="module")
def small():
    return digits.mlp(num_train=32, widths=(4, 4), batch_size=8, epochs=1)


# A difference warns that it does not see kinks.
@pytest.mark.filterwarnings("ignore:add_gradient_penalty")
@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_technique_runs_on_a_classifier_or_says_why_not(small, name):
    reason = why_not(TECHNIQUES[name], small)
    assert (reason is None) == (name not in ELSEWHERE), reason
    assert ELSEWHERE.get(name, "") in (reason or "")


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="a technique 'sgd' is there already"):
        register(TECHNIQUES["sgd"])
    assert named(["adam", "sgd"]) == [TECHNIQUES["adam"], TECHNIQUES["sgd"]]
    with pytest.raises(ValueError, match=r"unknown technique 'sgdd'; choose from sgd, .*adam"):
        named(["sgdd"])
