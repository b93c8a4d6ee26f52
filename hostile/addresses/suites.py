"""S1 and S2: no address leads inside, however it is written, redirected to or looked up.

Everything happens in a child process whose network is its own: every address there is this machine, canaries listen on
many ports, and a name server gives answers that lead inside. An attack is through if anything but a public address is
dialled, a header is injected, the error is none of the worker's, or the refusal of a literal takes more than a second.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

from hostile.addresses.namespace import NO_NAMESPACE, NamespaceError
from hostile.outcome import CHECKED, HARDENED, REQUESTS, SAFE_GET, Outcome, Suite, UnableError
from local.worker import ROOT

BASELINES = (REQUESTS, CHECKED, HARDENED, SAFE_GET)


class BrokenOffError(UnableError):
    """The child process could not do its work; says why."""


def run(suite: str, candidate: str) -> Iterator[Outcome]:
    """The outcomes of one suite.

    Raises:
        NamespaceError: the kernel gives no network of its own.
        BrokenOffError: the attacks did not come to their end.
    """
    command = [sys.executable, "-m", "hostile.addresses.inside", suite, candidate]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == NO_NAMESPACE:
        raise NamespaceError(done.stderr.strip())
    if done.returncode != 0:
        raise BrokenOffError(done.stderr.strip()[-2000:])
    yield from (Outcome(**json.loads(line)) for line in done.stdout.splitlines())


def _runner(suite: str) -> Callable[[str], Iterator[Outcome]]:
    return lambda candidate: run(suite, candidate)


SUITES = (
    Suite("S1", "no connection to a forbidden address; every control is fetched", _runner("S1"), BASELINES),
    Suite(
        "S2", "what is checked is what is dialled, and a silent name server holds nothing up", _runner("S2"), BASELINES
    ),
)
