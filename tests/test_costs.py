"""What a picture costs: the README's table, and the notes about money."""

import json
import re
from pathlib import Path

import pytest

from bench import costs
from local.worker import ROOT
from qwen_worker.cards import CARDS, PRICES_AS_OF, PRICES_FROM

NOTES = (ROOT / "docs" / "costs.md").read_text()


def test_the_readme_has_the_table_as_it_is_made() -> None:
    """With what was measured, and with where the prices are from and of when."""
    readme = (ROOT / "README.md").read_text()

    assert costs.table() in readme
    assert PRICES_FROM in readme
    assert PRICES_AS_OF in readme


def test_a_measured_card_has_a_cost(tmp_path: Path) -> None:
    """Of this kind of card alone, at its price, and of what was measured."""
    report = {
        "setting": {"machine": {"gpu": {"name": "NVIDIA H200"}}, "arms": {"tiny": False}},
        "valid": True,
        "rows": [
            {"what": "40 steps with guidance, exact", "ours": "20.00 s (19.9 to 20.1, n = 20)", "verdict": "PASS"},
            {"what": "4 steps without guidance (fast-4)", "ours": "not measured", "verdict": "not measured"},
        ],
    }
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(report))
    lines = costs.table(file).splitlines()
    (told,) = (line for line in lines if line.startswith("| H200 |"))

    assert told == "| H200 | `bf16` | 0.00155 | 20.00 s, 0.0310 | not measured |"
    assert sum("not measured | not measured" in line for line in lines) == len(CARDS) - 1


@pytest.mark.parametrize(("count", "rate", "total"), re.findall(r"(\d+) s x ([\d.]+) USD = ([\d.]+) USD", NOTES))
def test_the_sums_of_the_notes_are_right(count: str, rate: str, total: str) -> None:
    """Each of them, to the digits that it has."""
    digits = len(total.partition(".")[2])

    assert f"{int(count) * float(rate):.{digits}f}" == total


def test_the_notes_have_sums_and_the_prices_that_the_worker_has() -> None:
    """Every price a second in them is one of the table."""
    rates = {rate for _, rate, _ in re.findall(r"(\d+) s x ([\d.]+) USD = ([\d.]+) USD", NOTES)}

    assert len(rates) >= 3
    assert rates <= {f"{one.usd_per_second:.5f}" for one in CARDS if one.usd_per_second} | {"0.000725", "0.000225"}
