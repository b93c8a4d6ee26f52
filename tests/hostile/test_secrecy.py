"""What logs and answers tell: a fair sample of suite S17, and that its search finds what it looks for."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from hostile.secrecy import suites as secrecy
from hostile.secrecy import whole_workers
from hostile.secrecy.canaries import CANARY, NEGATIVE_PROMPT, PROMPT, told_in
from hostile.secrecy.faults import Fault, faults
from hostile.secrecy.suites import World

FAULTS = {fault.name: fault for fault in faults()}
# As in a worker: pytest would raise what a library warns of.
pytestmark = pytest.mark.filterwarnings("default::UserWarning")
# None of these takes an edit, nor waits.
SLOW = ("model", "bucket", "a host that hangs")
QUICK = [name for name, fault in FAULTS.items() if fault.kind and not name.startswith(SLOW)]
EDITS = ["model: a mapping", "model: no words", "model: talks", "bucket: a code", "upload: 403", "a good picture"]


@pytest.fixture(scope="module")
def parts(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Everything that a worker talks to."""
    with secrecy.world(tiny, tmp_path_factory.mktemp("secrecy")) as running:
        yield running


@pytest.mark.parametrize("name", [*QUICK[::3], "redirect 1", "redirect 5", "redirect 7", *EDITS])
def test_nobody_tells_a_secret(name: str, parts: World) -> None:
    """At DEBUG, when the libraries below show all that goes over the wire."""
    assert secrecy.tell(parts, FAULTS[name], "DEBUG", wire=True) is None


@pytest.mark.slow
@pytest.mark.parametrize("level", secrecy.LEVELS)
def test_nobody_tells_a_secret_at_any_level(level: str, parts: World) -> None:
    """Whatever goes wrong."""
    outcomes = list(secrecy.tried(parts, [FAULTS[name] for name in (*QUICK, *EDITS)], level, wire=False))

    assert {one.name: one.through for one in outcomes if one.through} == {}


@pytest.mark.slow
def test_a_worker_that_cannot_start_tells_no_secret() -> None:
    """Wrong variables, no model, a token that is refused."""
    outcomes = list(whole_workers.starts())

    assert len(outcomes) == 4
    assert {one.name: one.through for one in outcomes if one.through} == {}


def test_a_secret_that_nobody_hides_is_found(parts: World) -> None:
    """Of a worker whose log does not know its secrets, in the very lines that the attacks look at."""
    found = secrecy.tell(parts, FAULTS["model: a mapping"], "DEBUG", wire=False, secrets=())

    assert found == "access key in log, hub token in log, job api key in log"


def test_a_fault_that_does_not_happen_is_found(parts: World) -> None:
    """An attack that hits nothing proves nothing."""
    assert secrecy.tell(parts, Fault("none", "ModelError", {"prompt": []}), "INFO", wire=False) == ("ended as BadInput")


@pytest.mark.parametrize("place", CANARY)
def test_the_search_finds_every_form(place: str) -> None:
    """Whole, in part, in other letters, quoted, encoded, broken over lines."""
    word = CANARY[place]
    raw = word.encode()
    forms = [
        word[:12],
        word[-12:],
        word.upper(),
        "\n".join(word),
        raw.hex(),
        json.dumps([word]),
        quote(word),
        f"{raw!r}",
    ]
    forms += [base64.b64encode(b"x" * gap + raw).decode() for gap in range(3)]

    assert [told_in(f"it is <{form}>, is it not?") for form in forms] == [[place]] * len(forms)
    assert told_in("nothing of it") == []


def test_the_prompts_hold_what_breaks_lines() -> None:
    """Else the attacks would be tamer than callers are."""
    assert {"\n", "\r", "\x1b", '"', "'", "\\", "\x00", "\u2028"} <= set(PROMPT + NEGATIVE_PROMPT)
