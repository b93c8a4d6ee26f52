"""`python -m hostile [S1 S3 ...] [--baselines]`: attack the worker, and fail if anything gets through."""

import argparse
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hostile.addresses.suites import SUITES as ADDRESSES
from hostile.decoding.suites import SUITES as PICTURES
from hostile.inputs.suites import SUITE as INPUTS
from hostile.outcome import WORKER, Suite, UnableError, told
from hostile.secrecy.suites import SUITE as SECRECY
from hostile.servers.suites import S3, S4

OUT = Path("out/hostile.json")
LIBRARIES = ("Pillow", "requests", "urllib3", "numpy", "pydantic")
SUITES: tuple[Suite, ...] = (*ADDRESSES, S3, S4, *PICTURES, SECRECY, INPUTS)


def main() -> int:
    """The number of suites that something got through, of this worker."""
    parser = argparse.ArgumentParser(prog="python -m hostile", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"any of {' '.join(suite.id for suite in SUITES)}")
    parser.add_argument("--baselines", action="store_true", help="put the same attacks to others too")
    asked = parser.parse_args()
    wanted = [suite for suite in SUITES if suite.id in (asked.suites or [suite.id])]
    if unknown := set(asked.suites) - {suite.id for suite in wanted}:
        parser.error(f"no such suite: {' '.join(sorted(unknown))}")
    begin = time.perf_counter()
    rows: dict[str, dict[str, Any]] = {}
    for suite in wanted:
        rows[suite.id] = {"about": suite.about}
        for candidate in (WORKER, *(suite.baselines if asked.baselines else ())):
            rows[suite.id][candidate] = row = told(suite.run(candidate))
            print(f"{suite.id} {candidate}: " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    report = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "seconds": round(time.perf_counter() - begin),
        "suites": rows,
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return sum(row[WORKER]["through"] > 0 for row in rows.values())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UnableError as error:
        sys.exit(f"cannot attack: {error}")
