"""What a picture costs on each card: `python -m bench.costs` prints the README's table.

Prices are those of qwen_worker/cards.py, the profile is what PROFILE=auto takes for Qwen-Image-Edit, and the seconds
those that `python -m bench.gpu` measured on a card of this kind.
"""

import argparse
import re
from pathlib import Path

from bench.plan import NOT_MEASURED, RESULTS, measured
from qwen_worker.cards import CARDS, Rented
from qwen_worker.profiles import QWEN_IMAGE, ProfileError, choose

# Rows of bench.gpu by the beginning of what they say.
EDITS = {"exact, 40 steps with guidance": "40 steps with guidance, exact", "fast-4": "4 steps without guidance"}


def profile(rented: Rented) -> str:
    """What PROFILE=auto takes for the edit models of 57.7 GB."""
    try:
        return f"`{choose('auto', QWEN_IMAGE, rented.card).name}`"
    except ProfileError:
        return "none"


def seconds(rented: Rented, edit: str, file: Path) -> float | None:
    """Of one picture; None: not measured on this kind of card."""
    for line in measured(rented.name, file):
        found = re.match(re.escape(EDITS[edit]) + r"[^:]*: ([\d.]+) s", line)
        if found:
            return float(found[1])
    return None


def price(usd: float | None) -> str:
    """As people write small amounts."""
    return "not published" if usd is None else f"{usd:.5f}"


def table(file: Path = RESULTS / "gpu.json") -> str:
    """In markdown; `file`: what bench.gpu wrote."""
    lines = [
        f"| card | profile | USD a second | {' | '.join(f'{edit}: seconds, USD a picture' for edit in EDITS)} |",
        "|---|---|---|" + "---|" * len(EDITS),
    ]
    for one in CARDS:
        told = []
        for edit in EDITS:
            took = seconds(one, edit, file)
            cost = "no price" if one.usd_per_second is None else f"{(took or 0) * one.usd_per_second:.4f}"
            told.append(NOT_MEASURED if took is None else f"{took:.2f} s, {cost}")
        lines.append(f"| {one.name} | {profile(one)} | {price(one.usd_per_second)} | {' | '.join(told)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m bench.costs", description=__doc__).parse_args()
    print(table())
