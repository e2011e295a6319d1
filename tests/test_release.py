"""A tag becomes a release of what it names, whose wheels are for systems that can load them."""

import importlib.util
import os
import re
import struct
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml

from cbam_deploy.version import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def workflow():
    return yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())


def run_step(workflow, name, folder, tag):
    """Run a step of the workflow as GitHub's runner does, in a copy of what it reads."""
    for file in ("CHANGELOG.md", "CITATION.cff", "cbam_deploy/version.py"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text((ROOT / file).read_text())
    steps = (step for job in workflow["jobs"].values() for step in job["steps"])
    script = next(step["run"] for step in steps if step.get("name") == name)
    line = ("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script)
    environment = {**os.environ, "GITHUB_REF_NAME": tag}
    return subprocess.run(line, cwd=folder, env=environment, check=False).returncode


def test_the_version_is_the_same_wherever_it_stands(workflow, tmp_path):
    step = "Compare the tag with the version"
    assert run_step(workflow, step, tmp_path, f"v{__version__}") == 0
    assert run_step(workflow, step, tmp_path, "v99.0.0") != 0


def test_the_notes_are_the_versions_part_of_the_changelog(workflow, tmp_path):
    step = "Take the notes from the changelog"
    assert run_step(workflow, step, tmp_path, f"v{__version__}") == 0
    notes = (tmp_path / "notes" / "notes.md").read_text()
    assert notes.strip()
    assert notes in (ROOT / "CHANGELOG.md").read_text()
    assert "\n## " not in notes
    assert run_step(workflow, step, tmp_path, "v99.0.0") != 0


def test_only_what_publishes_may_write(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    writers = [name for name, job in workflow["jobs"].items() if "permissions" in job]
    assert writers == ["publish"]
    assert workflow["jobs"]["publish"]["needs"] == ["source", "wheel"]


@pytest.fixture
def platform_tag(monkeypatch):
    """The function of hatch_build.py, which hatchling loads; it is not installed here."""
    interface = types.ModuleType("hatchling.builders.hooks.plugin.interface")
    interface.BuildHookInterface = list  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.platform_tag


@pytest.mark.parametrize(
    ("machine", "versions", "tag"),
    [
        (62, ("2.2.5", "2.35", "2.4"), "manylinux_2_35_x86_64"),
        (183, ("2.17", "2.9"), "manylinux_2_17_aarch64"),
    ],
)
def test_a_wheels_tag_is_the_newest_glibc_that_its_library_asks_for(
    platform_tag, machine, versions, tag
):
    header = b"\x7fELF".ljust(18, b"\0") + struct.pack("<H", machine)
    names = b"\0".join(f"GLIBC_{version}".encode() for version in versions)
    assert platform_tag(header + b"\0GLIBCXX_3.4.99\0" + names + b"\0") == tag


def test_the_images_are_of_this_project():
    for name in ("Dockerfile", "Dockerfile.cpu"):
        text = (ROOT / name).read_text()
        extras = re.findall(r"/src\[([\w,]+)\]", text)
        assert extras
        pyproject = (ROOT / "pyproject.toml").read_text()
        assert all(f"\n{extra} = [" in pyproject for extra in extras[0].split(","))
