"""What is written down twice agrees: versions, dates, the tools of the lint extra; and a file for whoever releases."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_and_its_date_are_the_same_everywhere():
    version = PROJECT["version"]
    assert importlib.metadata.version("optax_igr") == version
    cited = re.search(r"^version: (.+)$", text("CITATION.cff"), re.MULTILINE)
    date = re.search(r'^date-released: "(.+)"$', text("CITATION.cff"), re.MULTILINE)
    assert cited
    assert date
    assert cited[1] == version
    assert f"## [{version}] - {date[1]}" in text("CHANGELOG.md")


def test_the_changelog_begins_with_what_is_not_released_yet():
    sections = re.findall(r"^## \[(.+?)\]", text("CHANGELOG.md"), re.MULTILINE)
    assert sections[0] == "Unreleased"


def test_pre_commit_has_the_versions_of_the_lint_extra():
    pinned = dict(
        requirement.split("==") for requirement in PROJECT["optional-dependencies"]["lint"]
    )
    used = re.findall(r'"([\w-]+)==([\d.]+)"', text(".pre-commit-config.yaml"))
    assert used
    assert all(pinned[name] == version for name, version in used)


@pytest.mark.parametrize("extra", ["lint", "test", "docs", "notebooks"])
def test_all_holds_every_extra(extra):
    (everything,) = PROJECT["optional-dependencies"]["all"]
    found = re.search(r"\[(.+)\]", everything)
    assert found
    assert extra in found[1].split(",")


def test_one_address_of_the_repository():
    """The badge, the citation and the workflows point to the address that pyproject.toml names."""
    address = PROJECT["urls"]["Repository"]
    for name in ("CITATION.cff", "SECURITY.md", "CODE_OF_CONDUCT.md"):
        found = set(re.findall(r"https://github\.com/[\w-]+/optax_igr\b", text(name)))
        assert found == {address}, name
