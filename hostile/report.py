"""Suites on the command line: made, told line by line, and written into a file."""

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hostile.outcome import WORKER, Suite, UnableError, told


def run(module: str, about: str, suites: Sequence[Suite], out: Path, libraries: Sequence[str]) -> int:
    """The number of suites that something got through, of this worker.

    Args:
        module: what is run by `python -m`.
        about: what it does, in a sentence.
        suites: what can be asked for.
        out: the file.
        libraries: whose versions it tells.

    Raises:
        SystemExit: the command line is not understood, or the suites cannot be made here.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"any of {' '.join(suite.id for suite in suites)}")
    parser.set_defaults(baselines=False)
    if any(suite.baselines for suite in suites):
        parser.add_argument("--baselines", action="store_true", help="put the same attacks to others too")
    asked = parser.parse_args()
    wanted = [suite for suite in suites if suite.id in (asked.suites or [suite.id])]
    if unknown := set(asked.suites) - {suite.id for suite in wanted}:
        parser.error(f"no such suite: {' '.join(sorted(unknown))}")
    begin = time.perf_counter()
    try:
        rows = {suite.id: _row(suite, baselines=asked.baselines) for suite in wanted}
    except UnableError as error:
        sys.exit(f"cannot attack: {error}")
    report = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "libraries": {name: version(name) for name in libraries},
        "seconds": round(time.perf_counter() - begin),
        "suites": rows,
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return sum(row[WORKER]["through"] > 0 for row in rows.values())


def _row(suite: Suite, *, baselines: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"about": suite.about}
    for candidate in (WORKER, *(suite.baselines if baselines else ())):
        row[candidate] = figures = told(suite.run(candidate))
        print(f"{suite.id} {candidate}: " + ", ".join(f"{key} {value}" for key, value in figures.items()), flush=True)
    return row
