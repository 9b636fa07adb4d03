"""The site: every Python block of a page runs, and every public name has its page.

A page is one program: its blocks run in their order, in one namespace. The second half reads a built site, whose
folder `OPTAX_IGR_SITE` names (`.ci/run` builds one); Sphinx itself is not needed here.
"""

import importlib
import os
import re
import zlib
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    page
    for page in [*DOCS.glob("*.md"), *DOCS.glob("how_to/*.md"), *DOCS.glob("explanation/*.md")]
    if "```python" in page.read_text(encoding="utf-8")
)
MODULES = (
    "optax_igr",
    "optax_igr.penalties",
    "optax_igr.geometry",
    "optax_igr.step_size",
    "optax_igr.curvature",
    "optax_igr.flows",
    "optax_igr.diagnostics",
    "optax_igr.operators",
    "optax_igr.flax",
)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Where a ten-class loss begins is 2.3; a page that trains prints how far it came.
LARGEST_LOSS = 0.4


def program(page: Path) -> str:
    """Returns the blocks of a page, each on the lines on which it stands there, so that errors name them."""
    text = page.read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    for match in BLOCK.finditer(text):
        first = text[: match.start(1)].count("\n")
        block = match[1].splitlines()
        lines[first : first + len(block)] = block
    return "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_blocks_of_a_page_run(page, capsys):
    # As a reader would run it: not with the settings of the tests.
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        exec(compile(program(page), str(page), "exec"), {"__name__": "__main__"})
    losses = re.findall(r"^loss ([\d.]+)", capsys.readouterr().out, re.MULTILINE)
    assert all(float(loss) < LARGEST_LOSS for loss in losses), losses


def test_every_how_to_page_is_executed_and_listed():
    pages = {page.stem for page in DOCS.glob("how_to/*.md")} - {"index"}
    assert pages == {page.stem for page in PAGES if page.parent.name == "how_to"}
    index = (DOCS / "how_to" / "index.md").read_text(encoding="utf-8")
    assert all(f"({page})" in index for page in pages)


@pytest.fixture(scope="module")
def site() -> Path:
    folder = os.environ.get("OPTAX_IGR_SITE")
    if not folder:
        pytest.skip("OPTAX_IGR_SITE names no built site")
    return Path(folder)


@pytest.fixture(scope="module")
def objects(site) -> dict[str, str]:
    """Returns the address of every Python object that the site documents."""
    *_, packed = (site / "objects.inv").read_bytes().split(b"\n", 4)
    entry = re.compile(r"(\S+) py:\w+ \S+ (\S+) ")
    return {
        match[1]: match[2].replace("$", match[1])
        for match in map(entry.match, zlib.decompress(packed).decode().splitlines())
        if match
    }


@pytest.mark.parametrize("module_name", MODULES)
def test_every_public_name_has_its_page(module_name, site, objects):
    module = importlib.import_module(module_name)
    for name in module.__all__:
        if name == "__version__":
            continue
        # A name of a room that `import optax_igr` gives has one page, under that name.
        found = objects.get(f"optax_igr.{name}") or objects.get(f"{module_name}.{name}")
        assert found, f"{module_name}.{name} has no page"
        page, _, anchor = found.partition("#")
        assert f'id="{anchor}"' in (site / page).read_text(encoding="utf-8")


def test_every_public_module_is_checked():
    import optax_igr

    rooms = {
        f"optax_igr.{path.parent.name}"
        for path in Path(optax_igr.__file__).parent.glob("[a-z]*/__init__.py")
    }
    assert rooms | {"optax_igr"} == set(MODULES)
