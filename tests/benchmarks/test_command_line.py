import gzip
import re
import shutil
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from benchmarks.engine import records
from benchmarks.engine.table import table
from benchmarks.problems import PROBLEMS
from benchmarks.report import tensorboard
from benchmarks.techniques import TECHNIQUES
from tests.benchmarks.helpers import invoke

_BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def _write_idx(path, array, compress=False):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if compress else content)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for part, size in (("train", 40), ("t10k", 20)):
        images = random.integers(0, 256, (size, 6, 5))
        _write_idx(folder / f"{part}-images-idx3-ubyte.gz", images, compress=True)
        _write_idx(folder / f"{part}-labels-idx1-ubyte", random.integers(0, 10, size))
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("main")
    arguments = (
        *("--out", folder, "--data-dir", data, "--seeds", 2, "--num-steps", 6),
        *("--techniques", "sgd,sgd_penalty", "--learning-rates", "0.05"),
    )
    result = invoke(*arguments)
    assert result.exit_code == 0, result.words
    return folder, result.words, arguments


def test_the_main_job_writes_records_figures_and_a_report(results):
    folder, text, _ = results
    runs = records.read(folder / "records.jsonl")
    assert [(r.technique, r.seed) for r in runs] == [
        (name, seed) for name in ("sgd", "sgd_penalty") for seed in (0, 1)
    ]
    assert runs[0].about.startswith("MNIST, 40 train / 20 test")
    assert runs[0].curve["train_loss"][0] == runs[2].curve["train_loss"][0]
    for figure in ("effects", "paths", "curves", "robustness", "flatness"):
        assert (folder / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    assert "sgd_penalty 0.05" in text
    assert "1 + 1 Hv" in text
    assert "the penalty changes test accuracy by" in text


def test_a_call_whose_runs_are_on_record_only_writes_the_report_again(results):
    folder, _, arguments = results
    before = (folder / "records.jsonl").read_bytes()
    (folder / "report.html").unlink()
    assert invoke(*arguments).exit_code == 0
    assert (folder / "records.jsonl").read_bytes() == before
    assert (folder / "report.html").exists()


def test_packed_records_become_a_table_of_results(results, tmp_path):
    folder = tmp_path / "recorded"
    source = results[0] / "records.jsonl"
    packed = invoke("pack", "penalties.small", source, "--folder", folder)
    assert packed.exit_code == 0, packed.words
    written = invoke("results", "--folder", folder, "--out", tmp_path / "RESULTS.md")
    assert written.exit_code == 0, written.words
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "Records: `recorded/penalties.small.jsonl.gz`." in text
    assert "\n| sgd_penalty | 0.05 |" in text
    assert "40 train / 20 test" in text
    refused = invoke("pack", "penalty", source, "--folder", folder)
    assert refused.exit_code == 2
    assert "penalty.jsonl.gz names none of penalties" in refused.words


def test_the_report_loads_nothing_from_elsewhere(results):
    html = (results[0] / "report.html").read_text(encoding="utf-8")
    scripts = re.findall(r"<script>.*?</script>", html, flags=re.DOTALL)
    markup = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert len(scripts) == 2
    assert "<script" not in markup
    assert not re.search(r"<(link|img|iframe)\b|@import|https?:", markup)
    assert scripts[1].count("vegaEmbed(") == 5


@pytest.mark.skipif(_BROWSER is None, reason="needs a chromium to open the report in")
def test_a_browser_without_a_network_draws_every_figure(results):
    command = [
        *(_BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"),
        (results[0] / "report.html").as_uri(),
    ]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    markup = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert len(re.findall(r"<svg\b[^>]*class=\"marks\"", markup)) == 5
    assert "test accuracy, change in points" in markup


def test_a_wrong_technique_lists_the_right_ones_of_the_experiment():
    result = invoke("--techniques", "sgd,sgdd")
    assert result.exit_code == 2
    assert "unknown technique 'sgdd'; penalties has sgd, sgd_penalty" in result.words
    result = invoke("hedge", "--techniques", "egg")
    assert result.exit_code == 2
    assert "'egg'; hedge has hedge, " in result.words
    result = invoke("steps", "--techniques", "sgdd")
    assert "Invalid value for --techniques: unknown technique 'sgdd'" in result.words
    assert "hedge_fixed" in invoke("hedge", "--help").words.replace(" ", "")


def test_an_option_before_the_command_is_refused():
    result = invoke("--seeds", "2", "optimizers")
    assert result.exit_code == 2
    assert (
        "--seeds must follow the command: python -m benchmarks optimizers --seeds" in result.words
    )


def test_curves_become_tensorboard_scalars(results, tmp_path, monkeypatch):
    runs = table(records.read(results[0] / "records.jsonl"))
    written = {}

    class Writer:
        def __init__(self, folder):
            self.scalars = written.setdefault(str(Path(folder).relative_to(tmp_path)), [])

        def __enter__(self):
            return self

        def __exit__(self, *arguments):
            pass

        def add_scalar(self, name, value, step):
            self.scalars.append((name, value, step))

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    assert tensorboard.write(runs, tmp_path) == tmp_path / "tensorboard"
    assert len(written) == 4
    scalars = written["tensorboard/mnist/sgd_penalty_0.05_1"]
    curve = runs["curve"].iloc[-1]
    expected = [(step, x) for step, x in zip(curve["step"], curve["train_loss"], strict=True)]
    assert [(step, x) for name, x, step in scalars if name == "train_loss"] == expected
    assert "step" not in {name for name, _, _ in scalars}
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    result = invoke(*results[2], "--tensorboard")
    assert result.exit_code == 2
    assert "pip install tensorboardX" in result.words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--learning-rates", "0.1,fast"), "'fast' is not a positive number"),
        (("--learning-rates", "-1"), "'-1' is not a positive number"),
        (("--seeds", "0"), "greater than or equal to 1"),
        (("--data-dir", "/nowhere"), "does not exist"),
        (("penalty",), "No such command 'penalty'"),
    ],
)
def test_a_bad_argument_is_named(arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.words


def test_help_names_every_technique_and_command():
    text = invoke("--help").words
    assert "penalties" in text
    assert "steps" in text
    assert not [name for name in TECHNIQUES if name not in text.replace(" ", "")]


def test_a_missing_file_is_named_with_the_command_that_brings_it(tmp_path):
    result = invoke("--data-dir", tmp_path, "--out", tmp_path)
    assert result.exit_code == 2
    assert "has no train-images-idx3-ubyte" in result.words
    assert "`python -m benchmarks download mnist` brings it" in result.words


# A difference warns that it does not see the kinks of the network.
@pytest.mark.filterwarnings("ignore:add_gradient_penalty")
def test_the_cost_of_a_step_is_measured_beside_the_plain_one_and_by_hand(tmp_path):
    result = invoke(
        *("steps", "--out", tmp_path, "--rounds", 1, "--widths", "64,64,10", "--batch-size", 32),
        *("--techniques", "sgd_penalty,sgd_difference_penalty"),
    )
    assert result.exit_code == 0, result.words
    costs = {c.technique: c.measures for c in records.read(tmp_path / "steps.jsonl")}
    assert costs["sgd"]["flops"] == 1
    assert costs["sgd_penalty"]["flops_by_hand"] == pytest.approx(1, abs=0.01)
    # A network of ReLUs: two gradients, and the branch for parameters that are exactly zero, which the compiler counts,
    # taken or not. A smooth loss has no branch (see `tests/core/test_differences.py`).
    assert costs["sgd_difference_penalty"]["flops"] == pytest.approx(3.1, abs=0.15)
    assert costs["sgd_penalty"]["state_copies"] < 0.01


def test_any_technique_of_the_library_enters_another_experiment_by_its_name(tmp_path):
    names = "adam_adapted,slbfgs,newton_cg"
    result = invoke(
        *("optimizers", "--techniques", names, "--problems", "quadratic", "--seeds", 1),
        *("--num-steps", 30, "--learning-rates", "0.1", "--out", tmp_path),
    )
    assert result.exit_code == 0, result.words
    runs = records.read(tmp_path / "records.jsonl")
    assert [r.technique for r in runs] == names.split(",")
    for run in runs:
        assert run.measures["train_loss"] < run.curve["train_loss"][0]


def test_a_technique_that_an_experiment_cannot_measure_is_refused_with_the_reason(tmp_path):
    result = invoke("hedge", "--techniques", "adam", "--out", tmp_path)
    assert result.exit_code == 2
    assert "hedge cannot measure adam on hedge_2_1000: it is for real parameters" in result.words
    assert not (tmp_path / "records.jsonl").exists()


_PLUGIN = """
import jax.numpy as jnp
import optax
from benchmarks import problems, techniques

techniques.register(
    techniques.Technique("signs", lambda h, plan: optax.sign_sgd(h), (0.25,), "the signs alone")
)

def valley(data_dir):
    measures = {"train_loss": lambda p, train, test: jnp.sum(jnp.abs(p))}
    return problems.Problem(
        name="valley",
        init=lambda key: jnp.array([1.0, -2.0]),
        loss=lambda p, batch: jnp.sum(jnp.abs(p)),
        train=None,
        test=None,
        batch_size=None,
        num_steps=4,
        measures=measures,
        final_measures=measures,
        target=problems.Target("train_loss", 1.5, higher_is_better=False),
        about="a valley",
    )

problems.register("valley", valley)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    # What a plugin registers is gone after the test.
    for registry in (TECHNIQUES, PROBLEMS):
        for name in ("signs", "valley"):
            monkeypatch.setitem(registry, name, None)
            del registry[name]
    path = tmp_path / "my_techniques.py"
    path.write_text(_PLUGIN, encoding="utf-8")
    return path


def test_a_plugin_brings_a_technique_and_a_problem(plugin, tmp_path):
    folder = tmp_path / "out"
    result = invoke(
        *("optimizers", "--techniques", "signs", "--problems", "valley", "--seeds", 1),
        *("--plugin", plugin, "--out", folder),
    )
    assert result.exit_code == 0, result.words
    (run,) = records.read(folder / "records.jsonl")
    # Four steps of a quarter from (1, -2): the loss falls by a half a step, from 3 to 1.
    assert run.measures["train_loss"] == pytest.approx(1.0)
    assert dict(run.settings) == {"learning_rate": 0.25}
    # The target of 1.5 is reached after three of them.
    assert re.search(r"signs 0\.25 3 \[3, 3\]", result.words)
    again = invoke("optimizers", "--plugin", plugin, "--out", folder)
    assert again.exit_code == 2
    assert "a technique 'signs' is there already" in again.words


def test_an_error_in_a_plugin_names_the_file(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_this_name", encoding="utf-8")
    result = invoke("optimizers", "--plugin", path)
    assert result.exit_code == 2
    assert re.search(r"broken\.py: ModuleNotFoundError: .*nothing_of_this_name", result.words)


@pytest.mark.parametrize(
    "arguments",
    [
        ("hedge", "--out"),
        ("flows", "--out"),
        ("steps", "--out"),
        ("steps", "--elementwise", "--out"),
        ("decay-costs", "--out"),
        ("sweep-speed", "--out"),
        ("download", "text", "--data-dir"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(
    arguments, tmp_path, monkeypatch
):
    def never(*args, **options):
        raise AssertionError("it ran")

    for place in ("engine.runner.run_all", "costs.timing.interleaved", "problems.data.download"):
        monkeypatch.setattr(f"benchmarks.{place}", never)
    file = tmp_path / "a_file"
    file.write_text("", encoding="utf-8")
    result = invoke(*arguments, file / "folder")
    assert result.exit_code == 2
    assert "cannot be written" in result.words
    assert sorted(tmp_path.iterdir()) == [file]


def test_results_are_refused_where_their_file_cannot_be_written(tmp_path):
    file = tmp_path / "a_file"
    file.write_text("", encoding="utf-8")
    result = invoke("results", "--out", file / "RESULTS.md")
    assert result.exit_code == 2
    assert "cannot be written" in result.words
