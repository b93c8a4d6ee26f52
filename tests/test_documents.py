"""The documents' commands: each is run by a test. Of what takes too long its parts are, and it is seen to start."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from local.worker import ROOT

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
MAKEFILE = (ROOT / "Makefile").read_text()
COMMAND = re.compile(
    r"\bpython3? -m ([\w.]+)|\bpython (handler\.py)|\b(docker|b2|pip) [a-z]|(examples/edit\.\w+)|^make ([a-z -]+)",
    re.MULTILINE,
)
# A command → the test that runs it.
RUN = {
    "bench.costs": "tests/test_costs.py::test_the_readme_has_the_table_as_it_is_made",
    "bench.gpu": "tests/test_bench_gpu.py::test_without_a_gpu_nothing_is_measured",
    "bench.plan": "tests/test_plan.py::test_the_table",
    "bench.quality": "tests/test_quality.py::test_the_whole_command",
    "examples/edit.mjs": "tests/examples/test_whole.py::test_an_edit_and_a_refusal",
    "examples/edit.py": "tests/examples/test_whole.py::test_an_edit_and_a_refusal",
    "examples/edit.sh": "tests/examples/test_whole.py::test_an_edit_and_a_refusal",
    "handler.py": "tests/loop/test_processes.py::test_one_job_from_the_command_line",
    "local.demo": "tests/loop/test_commands.py::test_the_demo_shows_one_edit",
    "local.hub_files": "tests/test_hub_files.py::test_the_files_are_those_of_the_settings",
    "local.sbom": "tests/test_supply_chain.py::test_the_bill_of_materials",
    "local.schema_file": "tests/test_promises.py::test_the_published_schema_is_the_codes",
    "local.serve": "tests/loop/test_commands.py::test_serve_prints_a_line_that_works",
    "ops.deploy": "tests/ops/test_deploy_document.py::test_each_command_does_what_it_says",
    "ops.report": "tests/ops/test_report.py::test_it_runs_without_the_worker_and_reads_stdin",
    "pip": "tests/ops/test_deploy_document.py::test_its_requirements_are_enough",
    "venv": "tests/ops/test_deploy_document.py::test_its_requirements_are_enough",
    "qwen_worker.download": "tests/test_download.py::test_a_download_that_was_broken_off_goes_on",
}
# What takes minutes to hours as a whole, or another machine → the tests of its parts.
PARTS = {
    "bench": "tests/test_promises.py::test_the_readme_shows_what_was_measured",
    "bench.decode": "tests/images/test_decoder.py::test_",
    "bench.geometry": "tests/model/test_copy.py::test_",
    "bench.memory": "tests/model/test_weightless.py::test_",
    "bench.schedulers": "tests/model/test_schedulers.py::test_",
    "faults": "tests/faults/test_storage.py::test_",
    "faults.soak": "tests/faults/test_soak.py::test_",
    "hostile": "tests/hostile/test_servers.py::test_",
    "local.image_check": "tests/loop/test_in_image.py::test_a_command_sees_its_own_files_and_writes_none",
    "local.mutants": "tests/test_guards.py::test_",
}
# Programs of others: `docker build` is played by a program that notes how it was called, `b2` is not run.
OTHERS = {"docker", "b2"}
TOOLS = {"pytest", "ruff", "mypy", "lint-imports", "hadolint", "bandit", "detect-secrets-hook", "uv", "pip", "make"}


def commands() -> set[str]:
    """Of all documents: modules, programs, and targets of make as "make TARGET"."""
    found: set[str] = set()
    for document in DOCUMENTS:
        code = re.findall(r"```(?:sh|ini)?\n(.*?)```|`([^`]+)`", document.read_text(), re.DOTALL)
        for block, span in code:
            # A comment is no command; a span may begin on one line and end on the next.
            text = re.sub(r" #.*", "", block) or " ".join(span.split())
            for *programs, targets in COMMAND.findall(text):
                found.update(f"make {target}" for target in targets.split())
                found.update(filter(None, programs))
    return found


def recipe(target: str) -> set[str]:
    """What a target of make runs: modules and tools."""
    (lines,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    modules = re.findall(r"python -m ([\w.]+)", lines)
    tools = re.findall(r"\$\(BIN\)/(?!python)([\w-]+)|\$\((MAKE)\)", lines)
    return {*modules, *("make" if make else tool for tool, make in tools)}


@pytest.mark.parametrize("command", sorted(commands()))
def test_a_command_is_run_by_a_test(command: str) -> None:
    """Or what its target of make runs is."""
    run = recipe(command.removeprefix("make ")) if command.startswith("make ") else {command}

    assert run <= {*RUN, *PARTS, *OTHERS, *TOOLS}, command


@pytest.mark.parametrize("test", sorted({*RUN.values(), *PARTS.values()}))
def test_the_test_exists(test: str) -> None:
    """Under this name, or a beginning of it."""
    file, _, name = test.partition("::")

    assert f"\ndef {name}" in (ROOT / file).read_text()


@pytest.mark.slow
def test_what_takes_long_starts() -> None:
    """Each tells what it does, and does nothing."""

    def usage(module: str) -> str:
        command = [sys.executable, "-m", module, "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
        return done.stdout

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        told = dict(zip(PARTS, pool.map(usage, PARTS), strict=True))

    assert all(text.startswith(f"usage: python -m {module} ") for module, text in told.items())
