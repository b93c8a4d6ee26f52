"""`python -m local.mutants [WORD ...]`: take each guard of tests/guards.toml out, in a copy; its test must fail.

With words, only of guards in whose entry one of them stands. First all named tests must pass with every guard in place.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from queue import SimpleQueue

from local.worker import ROOT

REGISTER = ROOT / "tests" / "guards.toml"
WORKERS = 2
TIMEOUT_S = 60  # for one guard's test: some never end without it, which is as good as a failure
OUT_OF_TIME = -1
FAILED = 1  # pytest's exit code if tests ran and failed; an error of the test itself has others


@dataclass(frozen=True)
class Guard:
    """A line of the worker without which a test must fail.

    Attributes:
        file: below the root.
        line: what stands once in it.
        without: what stands there when the guard is gone.
        test: the one that must fail then, as pytest names it.
        why: what the guard keeps out.
    """

    file: str
    line: str
    without: str
    test: str
    why: str

    def removed(self, text: str) -> str:
        """The file's text without the guard.

        Raises:
            ValueError: the guard does not stand in it exactly once.
            SyntaxError: what is left is no Python.
        """
        if text.count(self.line) != 1:
            raise ValueError(f"{self.file}: {text.count(self.line)} times: {self.line}")
        left = text.replace(self.line, self.without)
        if self.file.endswith(".py"):
            compile(left, self.file, "exec")
        return left


def register() -> list[Guard]:
    """Every guard of the register."""
    return [Guard(**entry) for entry in tomllib.loads(REGISTER.read_text())["guard"]]


def copy_to(folder: Path) -> Path:
    """A copy of what is tested, without leftovers."""
    leave = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "out")
    return Path(shutil.copytree(ROOT, folder, ignore=leave, dirs_exist_ok=True))


def run(tests: Sequence[str], tree: Path, timeout_s: float) -> tuple[int, str]:
    """Pytest's exit code, or OUT_OF_TIME, and its last line."""
    # Two versions of a file may have the same size and time: no bytecode is kept.
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--tb=no", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command, cwd=tree, env=variables, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return OUT_OF_TIME, f"not done after {timeout_s:g} s"
    return done.returncode, (done.stdout.strip() or done.stderr.strip()).rpartition("\n")[2]


def verdict(guard: Guard, tree: Path) -> str | None:
    """What is wrong with a guard, tried in a copy that is left as it was; None: its test fails without it."""
    file = tree / guard.file
    whole = file.read_text()
    file.write_text(guard.removed(whole))
    try:
        code, said = run([guard.test], tree, TIMEOUT_S)
    finally:
        file.write_text(whole)
    return None if code == OUT_OF_TIME or (code == FAILED and " failed" in said) else said


def main(words: Sequence[str]) -> int:
    """The number of mutants that survived."""
    guards = [guard for guard in register() if not words or any(word in " ".join(astuple(guard)) for word in words)]
    with tempfile.TemporaryDirectory() as home, ThreadPoolExecutor(WORKERS) as pool:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(WORKERS):
            trees.put(copy_to(Path(home) / str(number)))
        begin = time.perf_counter()
        code, said = run(sorted({guard.test for guard in guards}), Path(home) / "0", 10 * TIMEOUT_S)
        print(f"with every guard: {said}", flush=True)
        if code:
            return 1

        def judged(guard: Guard) -> str | None:
            tree = trees.get()
            try:
                return verdict(guard, tree)
            finally:
                trees.put(tree)

        survivors = 0
        for guard, problem in zip(guards, pool.map(judged, guards), strict=True):
            survivors += problem is not None
            print(
                f"{'killed  ' if problem is None else 'SURVIVED'} {guard.file}: {guard.why}", problem or "", flush=True
            )
    print(f"{len(guards)} guards, {survivors} survived, {time.perf_counter() - begin:.0f} s")
    return survivors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m local.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD")
    sys.exit(min(main(parser.parse_args().words), 100))
