"""The site: `pip install -e ".[docs]" && sphinx-build -W -n docs docs/_build`."""

import importlib
import json
import pathlib
import tempfile
import tomllib
import types
import typing
import zlib

from sphinx.util.nodes import make_refnode

import optax_igr

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = PYPROJECT["project"]["urls"]["Repository"]

project = "optax_igr"
author = copyright = "The optax_igr authors"
version = release = optax_igr.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "myst_nb",
]
exclude_patterns = ["_build", "inventories", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["site.css"]

html_theme = "sphinx_book_theme"
html_title = "optax_igr"
html_theme_options = {
    "repository_url": REPOSITORY,
    "use_repository_button": True,
    "use_issues_button": True,
    "home_page_in_toc": False,
    "show_toc_level": 2,
    "navbar_persistent": [],
}

# A name in single backticks is code, in the docstrings as in Markdown.
default_role = "code"

autosummary_generate = True
# A room's page lists its `__all__`; a function that `import optax_igr` gives has its page under that name alone.
autosummary_ignore_module_all = False
autosummary_imported_members = True
ROOMS = ("penalties", "geometry", "step_size", "curvature", "operators")
SUBMODULES = ("diagnostics", "flax", "flows", "operators")
autosummary_context = {
    "face": sorted(set(optax_igr.__all__) - {"__version__"}),
    "rooms": ROOMS,
    "in_rooms": {
        name
        for room in ROOMS
        for name in importlib.import_module(f"optax_igr.{room}").__all__
    },
    "submodules": SUBMODULES,
}
# optax's and chex's aliases expand to unions of many lines; the Args of every docstring say type, shape and unit.
autodoc_typehints = "none"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
# "Returns: a field: ..." is a sentence with a colon, not a type.
napoleon_use_rtype = False

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
# The records hold hundreds of tables with raw HTML around them.
suppress_warnings = ["myst.header"]
nb_execution_mode = "off"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def inventories() -> dict[str, tuple[str, str]]:
    """Returns the mapping of intersphinx, from the names in `inventories/`.

    The site builds without a network, so the few names of other projects that it links to come along as text: the first
    line is the address of the project, and each other line one name as an inventory spells it.
    """
    folder = pathlib.Path(tempfile.mkdtemp(prefix="inventories"))
    mapping = {}
    for source in sorted((DOCS / "inventories").glob("*.txt")):
        address, *names = source.read_text(encoding="utf-8").splitlines()
        inventory = folder / f"{source.stem}.inv"
        head = (
            f"# Sphinx inventory version 2\n# Project: {source.stem}\n# Version: \n"
            "# The remainder of this file is compressed using zlib.\n"
        )
        inventory.write_bytes(
            head.encode() + zlib.compress("\n".join(names).encode() + b"\n")
        )
        mapping[source.stem] = (address, str(inventory))
    return mapping


intersphinx_mapping = inventories()


def list_references(app, what, name, obj, options, lines: list[str]) -> None:
    """Makes each reference of a docstring's last section an item of a list, and names the members of a union.

    They stand below each other in the source; reStructuredText would run them together. A new one begins where the link
    of the one before is closed.
    """
    del app, what, name, options
    if isinstance(obj, types.UnionType):
        # Python's own text about unions says nothing about this one.
        members = ", ".join(
            f":class:`~{m.__module__}.{m.__name__}`" for m in typing.get_args(obj)
        )
        lines[:] = [f"One of {members}."]
    heading = next(
        (index for index, line in enumerate(lines) if line == "References:"), None
    )
    if heading is None:
        return
    entry = ""
    for index in range(heading + 1, len(lines)):
        text = lines[index].strip()
        if not text:
            entry = ""
            continue
        closed = "`_" in entry and entry.count("`") % 2 == 0
        begins = not entry or (
            closed and not (text[0].islower() or text[0].isdigit())
        )
        entry = text if begins else entry + text
        lines[index] = f"  - {text}" if begins else f"    {text}"


def resolve_alias(app, env, node, contnode):
    """Leads `optax_igr.operators.conv_operator`, or `conv_operator` alone, to the one page of that function."""
    target = node["reftarget"]
    name = target.rpartition(".")[2]
    if node.get("refdomain") != "py" or not (
        target == name or target.startswith("optax_igr.")
    ):
        return None
    objects = env.domains["py"].objects
    for module in (
        "optax_igr",
        *(f"optax_igr.{room}" for room in (*ROOMS, *SUBMODULES)),
    ):
        if found := objects.get(f"{module}.{name}"):
            return make_refnode(
                app.builder,
                node["refdoc"],
                found.docname,
                found.node_id,
                contnode,
                target,
            )
    return None


def setup(app) -> None:
    """Connects both; `list_references` before napoleon, which turns the sections into reStructuredText."""
    app.connect("missing-reference", resolve_alias)
    app.connect("autodoc-process-docstring", list_references, priority=400)


def copy_notebooks() -> None:
    """Copies the committed notebooks, with the outputs that they were committed with, to where Sphinx reads."""
    target = DOCS / "notebooks"
    target.mkdir(exist_ok=True)
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(notebook.read_text(encoding="utf-8"))
        copy = target / notebook.name
        text = json.dumps(cells)
        # An unchanged file keeps its time, so that a second build reads only what changed.
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")


copy_notebooks()
