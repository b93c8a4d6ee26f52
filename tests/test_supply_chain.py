"""What the worker is built from: nothing but what was looked at, and nothing that is known to be broken."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local import sbom
from local.worker import ROOT
from ops.build import LOADS
from qwen_worker.family import FAMILY, TEXT_TO_IMAGE
from qwen_worker.settings import Settings

DOCKERFILE = (ROOT / "Dockerfile").read_text()
LOCK = (ROOT / "requirements.lock").read_text()
MODULES = [ROOT / "handler.py", *sorted((ROOT / "qwen_worker").rglob("*.py"))]
# The first releases without the holes of 2026 that a worker like this one can be reached by.
FLOORS = {
    "runpod": (1, 12, 0),  # its own downloads dialled any address
    "diffusers": (0, 38, 0),  # CVE-2026-44513: code of a repository ran unasked; CVE-2026-45804: of another commit
    "transformers": (5, 3, 0),  # CVE-2026-4372: code of a repository ran unasked
    "pillow": (12, 3, 0),
}
PYTHON_FLOOR = (3, 12, 4)  # its tables of addresses were wrong before
UNPICKLING = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNPICKLERS = {"torch.load", "np.load", "numpy.load", "pd.read_pickle"}
RUNNERS = {"eval", "exec", "compile", "__import__"}
DOWNLOADS = {"snapshot_download", "hf_hub_download"}
REMOTE_CODE = {"trust_remote_code", "custom_pipeline", "custom_revision"}


def pins(text: str) -> dict[str, str]:
    """Package, as the index spells it, → version."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3])


def calls(file: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).partition(".")[0]


REQUIRED = pins((ROOT / "requirements.txt").read_text())
CONSTRAINED = pins((ROOT / "constraints.txt").read_text())
LOCKED = pins(LOCK)


def test_every_requirement_is_pinned_exactly() -> None:
    """And the packages that were promised are all there."""
    lines = [
        line
        for file in ("requirements.txt", "requirements-dev.txt", "constraints.txt")
        for line in (ROOT / file).read_text().splitlines()
        if line and not line.startswith(("#", "-"))
    ]
    promised = {
        "runpod", "torch", "diffusers", "transformers", "accelerate", "minio", "pydantic", "pydantic-settings",
        "pillow", "requests", "hf-transfer", "python-json-logger", "peft",
    }  # fmt: skip

    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    assert promised <= REQUIRED.keys()


def test_the_lock_holds_every_requirement_in_its_version() -> None:
    """`make lock` writes it: what the tests ran on is what the image gets."""
    tested = {**CONSTRAINED, **REQUIRED}

    assert REQUIRED.keys() <= LOCKED.keys()
    assert {name: LOCKED[name] for name in LOCKED.keys() & tested.keys()} == {
        name: tested[name] for name in LOCKED.keys() & tested.keys()
    }


def test_what_the_lock_adds_is_torchs_own() -> None:
    """The tests run on a CPU: the parts of CUDA, and setuptools, are all that they do not see."""
    unseen = LOCKED.keys() - REQUIRED.keys() - CONSTRAINED.keys()

    assert {name for name in unseen if not re.match(r"(nvidia|cuda)-|triton$|setuptools$", name)} == set()


def test_each_package_of_the_lock_has_its_hashes() -> None:
    """Of public files: it names no place of its own, and no build that only one machine has."""
    entries = re.split(r"\n(?=\S)", LOCK.partition("make lock\n")[2].strip())

    assert len(entries) == len(LOCKED)
    assert all(re.fullmatch(r"[^\n]+==[^\n]+(?: \\\n    --hash=sha256:[0-9a-f]{64})+", entry) for entry in entries)
    assert not re.search(r"://|--index|--find|--extra|\+cpu|@ ", LOCK)


def test_the_image_installs_from_the_lock_alone() -> None:
    """By hash, and built before: an install runs no code of a package."""
    (install,) = re.findall(r"pip install (.+)", DOCKERFILE)

    assert set(install.split()) >= {"--require-hashes", "--only-binary", ":all:", "-r", "requirements.lock"}
    assert "!requirements.lock" in (ROOT / ".dockerignore").read_text().splitlines()


def test_the_image_is_not_built_on_an_older_python() -> None:
    """Whatever base the build is given; and it does not run as root unless it is told to."""
    (floor,) = re.findall(r"RUN python -c .*sys\.exit\(sys\.version_info < \((.+)\)\)", DOCKERFILE)
    (base,) = re.findall(r"^ARG BASE_IMAGE=python:(\d+)\.(\d+)", DOCKERFILE, re.MULTILINE)

    assert tuple(map(int, floor.split(","))) >= PYTHON_FLOOR
    assert tuple(map(int, base)) >= PYTHON_FLOOR[:2]
    assert re.search(r"ARG RUN_AS=worker\nUSER \$\{RUN_AS\}", DOCKERFILE)


def test_the_readme_says_what_the_image_takes() -> None:
    """As it was found when it was built last; and that is within the budget."""
    found = json.loads((ROOT / "bench" / "results" / "image.json").read_text())
    readme = " ".join((ROOT / "README.md").read_text().split())
    size, base, budget = (
        found[name] / 1e9 for name in ("bytes_without_weights_and_base", "base_bytes", "budget_bytes")
    )
    start = found["start_s"]["baked"]["first_question_for_a_job"]

    assert f"{size:.2f} GB without weights and without its base of {base:.2f} GB" in readme
    assert f"its budget is {budget:g} GB" in readme
    assert f"{start:.1f} s from the start of the process to its first question" in readme
    assert size <= budget
    assert (found["root"], found["user"]) == ("read-only", "worker")


@pytest.mark.slow
def test_a_model_is_baked_by_the_code_that_downloads() -> None:
    """And by no more of it: the layer of 57.7 GB stays when anything else changes. The token is in no layer."""
    copied = set(re.findall(r"qwen_worker/[\w/]+\.py", DOCKERFILE.partition("COPY qwen_worker ./qwen_worker")[0]))
    script = "import sys, qwen_worker.download; print(*(m for m in sys.modules if m.split('.')[0] == 'qwen_worker'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    paths = (name.replace(".", "/") for name in done.stdout.split())

    assert copied == {f"{path}.py" if (ROOT / f"{path}.py").exists() else f"{path}/__init__.py" for path in paths}
    # Whoever deploys, the image and the README name the same variables that may be baked.
    (row,) = (line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `MODEL_ID`, "))
    for name in LOADS:
        assert f"\nARG {name}=\n" in DOCKERFILE
        assert f"{name}=${{{name}}}" in DOCKERFILE
        assert f"`{name}`" in row
        assert name.lower() in Settings.model_fields
    assert "--mount=type=secret,id=HF_TOKEN" in DOCKERFILE
    assert not re.search(r"^(ARG|ENV) .*TOKEN", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize("name", FLOORS)
def test_no_version_has_a_known_hole(name: str) -> None:
    """That this worker could be reached by."""
    assert numbers(LOCKED[name]) >= FLOORS[name]


def test_models_of_the_table_are_pinned_to_commits() -> None:
    """Or to none, and then the operator has to name one: never to a branch."""
    revisions = [row.revision for row in (*FAMILY.values(), *TEXT_TO_IMAGE.values())]

    assert all(revision is None or re.fullmatch("[0-9a-f]{40}", revision) for revision in revisions)
    assert sum(revision is not None for revision in revisions) >= 5


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_module_runs_what_it_reads(file: Path) -> None:
    """No pickle, no code of a repository; whatever comes from the Hub comes at a commit."""
    called = [(ast.unparse(call.func), {str(option.arg) for option in call.keywords}) for call in calls(file)]
    names = {name for name, _ in called}

    assert not UNPICKLING & set(imports(file))
    assert not (UNPICKLERS | RUNNERS) & names
    assert not any(REMOTE_CODE & options for _, options in called)
    assert all("revision" in options for name, options in called if name in DOWNLOADS)


def test_the_image_holds_bytecode() -> None:
    """Compiled when it is built, and not by every worker that starts: pip does so unless it is told not to."""
    assert "compileall -q handler.py qwen_worker" in DOCKERFILE
    assert not any(word in DOCKERFILE for word in ("PYTHONDONTWRITEBYTECODE", "--no-compile"))


@pytest.mark.slow
def test_the_bill_of_materials_names_everything() -> None:
    """Each package of the lock with its hashes, each model of the tables; no time and no number of its own."""
    bill = json.loads(sbom.text())
    parts = {part["name"]: part for part in bill["components"]}
    models = [part["purl"] for part in parts.values() if part["type"] == "machine-learning-model"]
    rows = (*FAMILY.values(), *TEXT_TO_IMAGE.values())

    assert LOCKED.keys() <= {re.sub(r"[-_.]+", "-", name).lower() for name in parts}
    assert all("hashes" in json.dumps(part) for part in parts.values() if part["purl"].startswith("pkg:pypi/"))
    assert models == [f"pkg:huggingface/{row.id}" + (f"@{row.revision}" if row.revision else "") for row in rows]
    assert not {"timestamp", "serialNumber"} & (bill.keys() | bill["metadata"].keys())
