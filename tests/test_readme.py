"""The README runs: every Python block, and every command is one that exists."""

import importlib.metadata
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(*languages):
    """Returns the blocks in these languages, named by the line of the README that they begin on."""
    text = README.read_text(encoding="utf-8")
    return [
        pytest.param(match[2], id=f"line_{text[: match.start(2)].count(chr(10)) + 1}")
        for match in BLOCK.finditer(text)
        if match[1] in languages
    ]


@pytest.mark.parametrize("source", blocks("python"))
def test_python_block_runs_alone_and_trains(source, capsys):
    # As a reader would run it: not with the settings of the tests.
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        exec(compile(source, str(README), "exec"), {"__name__": "__main__"})
    (loss,) = re.findall(r"^loss ([\d.]+)", capsys.readouterr().out)
    # The logarithm of ten classes is 2.3, where it begins.
    assert float(loss) < 0.4


@pytest.mark.parametrize("source", blocks("sh", "bash"))
def test_commands_exist(source):
    for line in source.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        match words:
            case []:
                continue
            case ["pip", "install", *packages]:
                check_extras(packages)
            case ["python", "-m", module, *arguments]:
                check_module(module, arguments)
            case [program, *_]:
                assert shutil.which(program) or (ROOT / program).exists(), line


def check_extras(packages):
    """Every `optax_igr[extra]` is an extra of the package."""
    known = importlib.metadata.metadata("optax_igr").get_all("Provides-Extra") or []
    for package in packages:
        for extras in re.findall(r"optax_igr\[([\w,-]+)\]", package):
            assert set(extras.split(",")) <= set(known), package


def check_module(module, arguments):
    """`python -m module subcommand --option` has that sub-command and these options."""
    options = [argument for argument in arguments if argument.startswith("-")]
    first = arguments.index(options[0]) if options else len(arguments)
    answer = subprocess.run(
        [sys.executable, "-m", module, *arguments[:first], "--help"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    for option in options:
        assert option.split("=")[0] in answer.stdout, f"{module} has no {option}"


def test_relative_links_lead_to_files():
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", README.read_text())
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
