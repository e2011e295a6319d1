"""What pages say of the repository is true: paths, names, rooms, versions, ways to install."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from cbam_deploy.cli import app
from cbam_deploy.errors import installation_of
from cbam_deploy.version import __version__

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cbam_deploy"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
# A path, and the names that follow it: `numerics/tolerances.py`: `OUTPUTS`, `LAYERS`
PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]*|\w+\.py)`((?:: `\w+`(?:, `\w+`)*)?)")
KINDS = ("result.py", "section.py")  # Files of these names lie in several rooms.
CODE = [*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]


def found(path):
    return next((at / path for at in (PACKAGE, ROOT) if (at / path).exists()), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_the_readme_has_each_command_in_its_table():
    rows = re.findall(r"^\| (`[^|]+) \|", (ROOT / "README.md").read_text(), re.M)
    named = re.findall(r"`([a-z-]+)`", " ".join(rows))
    assert sorted(named) == sorted(str(command.name) for command in app.registered_commands)


def test_the_architecture_names_files_that_are_there_and_what_stands_in_them():
    named = [(path, names) for path, names in PATH.findall(ARCHITECTURE) if path not in KINDS]
    assert len(named) > 50
    for path, names in named:
        assert found(path), path
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"\b{name}\b", found(path).read_text()), f"{path}: {name}"


def test_contributing_names_files_that_are_there():
    for path in re.findall(r"`((?:cbam_deploy|tests|benchmarks)/[\w./-]+)`", PAGES[1].read_text()):
        assert found(path), path


def test_the_architecture_lists_the_rooms_in_the_order_that_lint_proves():
    text = (ROOT / "pyproject.toml").read_text()
    (layers,) = re.findall(r"^layers = (\[.*?^\])", text, re.M | re.S)
    rooms = [re.split(r" [:|] ", layer) for layer in ast.literal_eval(layers)]
    table = ARCHITECTURE[: ARCHITECTURE.index("## The way of a tensor")]
    rows = [re.findall(r"`(\w+)`", row) for row in re.findall(r"^\| (`\w+`[^|]*) \|", table, re.M)]
    listed = [room for row in rows for room in row]
    assert sorted(listed) == sorted(room for layer in rooms for room in layer)
    height = {room: place for place, layer in enumerate(rooms) for room in layer}
    assert [height[room] for room in listed] == sorted(height[room] for room in listed)


def test_nothing_is_promised_from_a_package_index_that_lacks_it():
    for page in [*PAGES, *CODE, ROOT / "CHANGELOG.md"]:
        text = page.read_text()
        assert not re.search(r"pip install\S* ['\"]?cbam-deploy(?!\[[\w,]+\] @ )", text), page


def test_hints_name_extras_that_there_are():
    declared = (ROOT / "pyproject.toml").read_text()
    used = {
        name
        for file in CODE
        for name in re.findall(r"installation_of\(\W(\w+)\W\)", file.read_text())
    }
    assert len(used) > 3
    assert all(re.search(rf"^{name} = \[", declared, re.M) for name in used)
    assert "'.[rtx]'" in installation_of("rtx")


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
