"""The register of guards, which `make mutants` tries out, fits the worker as it is."""

import re
from collections import Counter
from pathlib import Path

import pytest

from local import mutants
from local.mutants import Guard
from local.worker import ROOT

GUARDS = mutants.register()
HARMLESS = Guard(
    "qwen_worker/web/addresses.py", '"10.0.0.0/8"', '"10.0.0.0/8", "10.0.0.0/9"',
    "tests/web/test_addresses.py::test_everything_else_may_not", "takes nothing away",
)  # fmt: skip


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: f"{guard.file}: {guard.line}")
def test_a_guard_stands_where_the_register_says(guard: Guard) -> None:
    """Once, and what is left without it is still Python; and the test that misses it exists."""
    text = (ROOT / guard.file).read_text()
    file, name = guard.test.split("::")

    assert guard.removed(text) != text
    assert re.search(rf"^(async )?def {name.partition('[')[0]}\(", (ROOT / file).read_text(), re.MULTILINE)


def test_each_guard_is_there_once() -> None:
    """And says what it is for."""
    assert max(Counter((guard.file, guard.line, guard.without) for guard in GUARDS).values()) == 1
    assert all(guard.why for guard in GUARDS)
    assert len(GUARDS) > 100


@pytest.mark.slow
def test_a_guard_that_nobody_misses_is_found_out(tmp_path: Path) -> None:
    """A register in which everything passes would prove nothing; nor would a test that cannot even be imported."""
    tree = mutants.copy_to(tmp_path / "tree")
    file = tree / HARMLESS.file
    whole = file.read_text()

    assert "passed" in str(mutants.verdict(HARMLESS, tree))
    unimportable = Guard(HARMLESS.file, "_CLOSED_V4 = [", "_CLOSED_V4 = nothing + [", HARMLESS.test, "")
    assert "error" in str(mutants.verdict(unimportable, tree))
    assert file.read_text() == whole
