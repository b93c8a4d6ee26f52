"""What keeps the house: workflows, templates and CONTRIBUTING.md name what there is."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from packaging.specifiers import SpecifierSet

from local.worker import ROOT

GITHUB = ROOT / ".github"
FILES = sorted(GITHUB.rglob("*.yml"))
WORKFLOW: dict[Any, Any] = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text())
JOBS: dict[str, dict[str, Any]] = WORKFLOW["jobs"]
STEPS = [step for job in JOBS.values() for step in job["steps"]]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PYPROJECT = (ROOT / "pyproject.toml").read_text()
#: what Dependabot reads → files of it, in the folder that it is given
ECOSYSTEMS = {"pip": "requirements.txt", "docker": "Dockerfile", "npm": "package.json"}


def texts() -> dict[str, str]:
    """Every file that tells people or machines what to run."""
    return {file.name: file.read_text() for file in (*FILES, *GITHUB.glob("*.md"), ROOT / "CONTRIBUTING.md")}


def runs() -> list[str]:
    """The commands of the workflow."""
    return [step["run"] for step in STEPS if "run" in step]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_file_is_yaml(file: Any) -> None:
    """GitHub ignores one that is not, or complains where nobody looks."""
    assert isinstance(yaml.safe_load(file.read_text()), dict)


def test_every_command_exists() -> None:
    """Targets of make, also several at a time, modules of Python, and files in backquotes."""
    for name, text in texts().items():
        for line in [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"(?:^|run: )(make [^#\n]+)", text, re.MULTILINE)]:
            words = shlex.split(line)
            if words[0] == "make":
                assert {word for word in words[1:] if "=" not in word} <= TARGETS, f"{name}: {line}"
            if words[:2] == ["python", "-m"]:
                assert importlib.util.find_spec(words[2]), f"{name}: {line}"
            if re.fullmatch(r"[\w./-]+/[\w.-]*|[\w-]+\.(toml|txt|lock|md)", line):
                assert (ROOT / line).exists(), f"{name}: {line}"


def test_the_first_commands_are_for_people_who_just_came() -> None:
    """To see it work, and to see that it does."""
    assert re.findall(r"^make [a-z]+", GUIDE, re.MULTILINE)[:3] == ["make demo", "make test", "make check"]


def test_the_workflow_does_what_the_gate_does() -> None:
    """Each target of .ci/run has a job."""
    gate = (ROOT / ".ci" / "run").read_text().splitlines()[-1]

    assert set(gate.split()[1:]) == {run.split()[1] for run in runs() if run.startswith("make ")} == {"check", "test"}
    assert set(JOBS) == {"check", "test", "image"}


def test_the_pythons_are_those_that_the_project_allows() -> None:
    """From the oldest on; the newest is not older than the image's."""
    allowed = SpecifierSet(re.findall(r'requires-python = "([^"]+)"', PYPROJECT)[0])
    tested = JOBS["test"]["strategy"]["matrix"]["python"]
    said = [step["with"]["python-version"] for step in STEPS if "setup-python" in step.get("uses", "")]
    image = re.findall(r"BASE_IMAGE=python:(3\.\d+)", (ROOT / "Dockerfile").read_text())[0]

    assert all(allowed.contains(version) for version in tested)
    assert f">={tested[0]}" == str(allowed)
    assert image in tested
    assert set(said) <= {*tested, "${{ matrix.python }}"}


def test_the_workflow_has_few_rights_and_an_end() -> None:
    """It reads, it ends, and the newest push wins; no action at a branch that moves daily."""
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert WORKFLOW["concurrency"]["cancel-in-progress"] is True
    assert all(0 < job["timeout-minutes"] <= 90 for job in JOBS.values())
    assert not any("permissions" in job for job in JOBS.values())
    for action in [step["uses"] for step in STEPS if "uses" in step]:
        assert re.fullmatch(r"(actions|docker)/[\w-]+@(v\d+|[0-9a-f]{40})", action)
    assert "secrets." not in json.dumps(WORKFLOW)
    (build,) = [step["with"] for step in STEPS if "build-push-action" in step.get("uses", "")]
    assert (build["push"], build["load"]) == (False, True)


def test_dependabot_looks_at_every_kind_of_file() -> None:
    """That there is, and at none that there is not; in groups, once a week."""
    updates = yaml.safe_load((GITHUB / "dependabot.yml").read_text())["updates"]
    packages = [file for file in (ROOT / "tests").rglob("package.json") if "node_modules" not in file.parts]
    kinds = {one["package-ecosystem"] for one in updates}

    assert kinds >= {"pip", "docker", "github-actions"}
    assert ("npm" in kinds) == bool(packages)
    for one in updates:
        assert one["schedule"]["interval"] == "weekly"
        assert one["groups"]
        if one["package-ecosystem"] in ECOSYSTEMS:
            assert (ROOT / one["directory"].strip("/") / ECOSYSTEMS[one["package-ecosystem"]]).exists()


def test_a_hole_in_security_is_told_elsewhere() -> None:
    """The forms and the guide say so."""
    assert "SECURITY.md" in (GITHUB / "ISSUE_TEMPLATE" / "bug.yml").read_text()
    assert "(SECURITY.md)" in GUIDE
    assert yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / "config.yml").read_text())["blank_issues_enabled"] is False


def test_what_is_written_from_code_is_told() -> None:
    """The files of the table exist."""
    rows = re.findall(r"^\| ([^|`]+) \| `([^`]+)` \|$", GUIDE, re.MULTILINE)

    assert len(rows) == 2
    assert all((ROOT / file).exists() for files, _ in rows for file in files.split(", "))


@pytest.mark.slow
def test_the_image_is_asked_for_what_it_holds() -> None:
    """What the workflow imports in the image can be imported here."""
    (run,) = [run for run in runs() if "docker run" in run]
    words = shlex.split(run)
    at = words.index("python")
    command = [sys.executable, *words[at + 1 :]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)

    assert done.returncode == 0, done.stderr
    assert "--read-only" in words[:at]
