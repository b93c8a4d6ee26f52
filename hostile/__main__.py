"""`python -m hostile [S1 S3 ...] [--baselines]`: attack the worker, and fail if anything gets through."""

import sys
from pathlib import Path

from hostile import report
from hostile.addresses.suites import SUITES as ADDRESSES
from hostile.decoding.suites import SUITES as PICTURES
from hostile.inputs.suites import SUITE as INPUTS
from hostile.outcome import Suite
from hostile.secrecy.suites import SUITE as SECRECY
from hostile.servers.suites import S3, S4

OUT = Path("out/hostile.json")
LIBRARIES = ("Pillow", "requests", "urllib3", "numpy", "pydantic")
SUITES: tuple[Suite, ...] = (*ADDRESSES, S3, S4, *PICTURES, SECRECY, INPUTS)

if __name__ == "__main__":
    sys.exit(report.run("hostile", str(__doc__), SUITES, OUT, LIBRARIES))
