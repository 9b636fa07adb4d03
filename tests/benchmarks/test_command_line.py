import gzip
import json
import re
import shutil
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import typer.testing

from benchmarks.cli import app as command_line
from benchmarks.engine import records
from benchmarks.report import tensorboard
from benchmarks.techniques.own import TECHNIQUES

_BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def _invoke(*arguments):
    return typer.testing.CliRunner().invoke(
        command_line.app, [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb"}
    )


def _text(result):
    return re.sub(r"[\s│╭╮╰╯─]+", " ", result.output + result.stderr)


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
    result = _invoke(*arguments)
    assert result.exit_code == 0, _text(result)
    return folder, _text(result), arguments


def test_the_main_job_writes_records_figures_and_a_report(results):
    folder, text, _ = results
    runs = records.read(folder / "records.jsonl")
    assert [(r.technique, r.seed) for r in runs] == [
        (name, seed) for name in ("sgd", "sgd_penalty") for seed in (0, 1)
    ]
    assert runs[0].settings.startswith("MNIST, 40 train / 20 test")
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
    assert _invoke(*arguments).exit_code == 0
    assert (folder / "records.jsonl").read_bytes() == before
    assert (folder / "report.html").exists()


def test_packed_records_become_a_table_of_results(results, tmp_path):
    folder = tmp_path / "recorded"
    source = results[0] / "records.jsonl"
    packed = _invoke("pack", "penalties.small", source, "--folder", folder)
    assert packed.exit_code == 0, _text(packed)
    written = _invoke("results", "--folder", folder, "--out", tmp_path / "RESULTS.md")
    assert written.exit_code == 0, _text(written)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "Records: `recorded/penalties.small.jsonl.gz`." in text
    assert "\n| sgd_penalty | 0.05 |" in text
    assert "40 train / 20 test" in text
    refused = _invoke("pack", "penalty", source, "--folder", folder)
    assert refused.exit_code == 2
    assert "penalty.jsonl.gz names none of penalties" in _text(refused)


def test_the_report_loads_nothing_from_elsewhere(results):
    html = (results[0] / "report.html").read_text()
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
    result = _invoke("--techniques", "sgd,sgdd")
    assert result.exit_code == 2
    assert "unknown technique 'sgdd'; penalties has sgd, sgd_penalty" in _text(result)
    result = _invoke("hedge", "--techniques", "egg")
    assert result.exit_code == 2
    assert "'egg'; hedge has hedge, " in _text(result)
    result = _invoke("steps", "--techniques", "sgdd")
    assert "Invalid value for --techniques: unknown technique 'sgdd'" in _text(result)
    assert "hedge_fixed" in _text(_invoke("hedge", "--help")).replace(" ", "")


def test_an_option_before_the_command_is_refused():
    result = _invoke("--seeds", "2", "optimizers")
    assert result.exit_code == 2
    assert "--seeds must follow the command: python -m benchmarks optimizers --seeds" in _text(
        result
    )


def test_curves_become_tensorboard_scalars(results, tmp_path, monkeypatch):
    runs = records.read(results[0] / "records.jsonl")
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
    curve = runs[-1].curve
    expected = [(step, x) for step, x in zip(curve["step"], curve["train_loss"], strict=True)]
    assert [(step, x) for name, x, step in scalars if name == "train_loss"] == expected
    assert "step" not in {name for name, _, _ in scalars}
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    result = _invoke(*results[2], "--tensorboard")
    assert result.exit_code == 2
    assert "pip install tensorboardX" in _text(result)


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
    result = _invoke(*arguments)
    assert result.exit_code == 2
    assert message in _text(result)


def test_help_names_every_technique_and_command():
    text = _text(_invoke("--help"))
    assert "penalties" in text
    assert "steps" in text
    assert not [name for name in TECHNIQUES if name not in text.replace(" ", "")]


def test_a_missing_file_is_named_with_the_command_that_brings_it(tmp_path):
    result = _invoke("--data-dir", tmp_path, "--out", tmp_path)
    assert result.exit_code == 2
    assert "has no train-images-idx3-ubyte" in _text(result)
    assert "`python -m benchmarks download mnist` brings it" in _text(result)


def test_the_cost_of_a_step_is_measured_beside_the_plain_one_and_by_hand(tmp_path):
    result = _invoke(
        *("steps", "--out", tmp_path, "--rounds", 1, "--widths", "64,64,10", "--batch-size", 32),
        *("--techniques", "sgd_penalty,sgd_difference_penalty"),
    )
    assert result.exit_code == 0, _text(result)
    costs = {
        c["name"]: c for c in map(json.loads, (tmp_path / "steps.jsonl").read_text().splitlines())
    }
    assert costs["sgd"]["flops"] == 1
    assert costs["sgd_penalty"]["flops_by_hand"] == pytest.approx(1, abs=0.01)
    assert costs["sgd_difference_penalty"]["flops"] == pytest.approx(2, abs=0.15)
    assert costs["sgd_penalty"]["state_copies"] < 0.01
