"""The committed notebooks: the pair agrees, was executed from top to bottom, and fits on a screen.

They are read as text and as JSON: nothing is executed here, and neither jupytext nor nbformat is needed.
"""

import base64
import json
import re
import tomllib
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
NAMES = sorted({path.stem for path in NOTEBOOKS.glob("[0-9]*") if path.suffix in (".py", ".ipynb")})

SCREEN = 36
LARGEST_FILE = 700_000
FEWEST_FIGURES = 2

pytestmark = pytest.mark.skipif(not NAMES, reason="this checkout has no notebooks")


def of_percent_script(text: str) -> list[tuple[str, str]]:
    """Returns the kind and the source of each cell of a script in jupytext's percent format."""
    _, *parts = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)
    cells = []
    for marker, body in zip(parts[::2], parts[1::2], strict=True):
        kind = "markdown" if "[markdown]" in marker else "code"
        lines = body.strip("\n").split("\n")
        if kind == "markdown":
            lines = [re.sub(r"^# ?", "", line) for line in lines]
        cells.append((kind, "\n".join(lines).strip()))
    return cells


def notebook(name: str) -> dict:
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))


def code_cells(name: str) -> list[dict]:
    return [cell for cell in notebook(name)["cells"] if cell["cell_type"] == "code"]


def outputs(name: str) -> list[dict]:
    return [output for cell in code_cells(name) for output in cell["outputs"]]


@pytest.mark.parametrize("name", NAMES)
def test_script_and_notebook_have_the_same_cells(name):
    cells = [
        (cell["cell_type"], "".join(cell["source"]).strip()) for cell in notebook(name)["cells"]
    ]
    assert cells == of_percent_script((NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_was_executed_in_order_and_without_error(name):
    counts = [cell["execution_count"] for cell in code_cells(name)]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {output["output_type"] for output in outputs(name)}
    assert kinds <= {"stream", "display_data", "execute_result"}
    said = "".join(
        "".join(output["text"])
        for output in outputs(name)
        if output["output_type"] == "stream" and output["name"] == "stderr"
    )
    assert said == ""


@pytest.mark.parametrize("name", NAMES)
def test_no_cell_is_longer_than_a_screen(name):
    lengths = {source: source.count("\n") + 1 for source in map(source_of, code_cells(name))}
    longest = max(lengths, key=lengths.__getitem__)
    assert lengths[longest] <= SCREEN, longest


def source_of(cell: dict) -> str:
    return "".join(cell["source"])


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_there_and_the_file_is_small(name):
    pictures = [
        base64.b64decode(output["data"]["image/png"])
        for output in outputs(name)
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= FEWEST_FIGURES
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size <= LARGEST_FILE


@pytest.mark.parametrize("name", NAMES)
def test_begins_with_a_question_and_says_limits_references_and_how_to_run_it_bigger(name):
    script = of_percent_script((NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8"))
    kind, first = script[0]
    assert kind == "markdown"
    assert "?" in first.split("\n")[0]
    text = "\n".join(source for kind, source in script if kind == "markdown")
    assert "OPTAX_IGR_DATA" in text
    assert re.search(r"https://(arxiv\.org|doi\.org)/", text)


@pytest.mark.parametrize("name", NAMES)
def test_only_public_names_are_used(name):
    source = "\n".join(map(source_of, code_cells(name)))
    assert not re.search(r"\b(optax_igr|optax|jax|flax)\._[a-z]", source)
    assert not re.search(r"from [\w.]*\._[a-z]", source)


@pytest.mark.parametrize("name", NAMES)
def test_opens_in_colab_and_installs_the_package_there(name):
    pyproject = tomllib.loads((NOTEBOOKS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    repository = pyproject["project"]["urls"]["Repository"].removeprefix("https://github.com/")
    (_, first), (_, setup), *_ = of_percent_script((NOTEBOOKS / f"{name}.py").read_text())
    address = (
        f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name}.ipynb"
    )
    assert f"]({address})" in first
    assert '"optax_igr[notebooks]"' in setup
    # What the notebook reads from its own folder is not in Colab either.
    styled = "figures.mplstyle" in (NOTEBOOKS / f"{name}.py").read_text()
    assert ("urlretrieve" in setup) == styled
