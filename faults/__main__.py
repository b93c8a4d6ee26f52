"""`python -m faults [S8 S9 ...]`: let everything around the worker fail, and fail if anything gets lost."""

import sys
from pathlib import Path

from faults.endings import SUITE as ENDINGS
from faults.gpu import SUITE as GPU
from faults.hangs import SUITE as HANGS
from faults.integrity import SUITE as INTEGRITY
from faults.life import SUITE as LIFE
from faults.storage import SUITE as STORAGE
from faults.twice import SUITE as TWICE
from hostile import report
from hostile.outcome import Suite

OUT = Path("out/faults.json")
LIBRARIES = ("minio", "urllib3", "runpod", "torch", "diffusers")
SUITES: tuple[Suite, ...] = (INTEGRITY, STORAGE, LIFE, TWICE, GPU, HANGS, ENDINGS)

if __name__ == "__main__":
    sys.exit(report.run("faults", str(__doc__), SUITES, OUT, LIBRARIES))
