"""What one attack came to, and what many came to together."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

#: what the attacks are made on, if no baseline is asked for
WORKER = "this worker"
#: other ways to fetch, of hostile.baselines
REQUESTS, CHECKED, HARDENED, SAFE_GET = "requests", "validate-then-fetch", "requests-hardened", "RunPod safe_get"


class UnableError(Exception):
    """The attacks cannot be made on this machine; says what is missing."""


@dataclass(frozen=True)
class Outcome:
    """One case.

    Attributes:
        name: the case, short and unique in its suite.
        through: what did not hold, in words; None if everything held.
        seconds: how long it took.
        peak_mb: most resident memory while it ran, over what the process had when idle, in MB; None: not looked at.
        control: not an attack, but something ordinary that must pass.
    """

    name: str
    through: str | None
    seconds: float
    peak_mb: float | None = None
    control: bool = False


def in_time(attempt: Callable[[], Outcome], within_s: float) -> Outcome:
    """What an attempt came to, which is made again if it takes longer.

    A shared machine stands still now and then; what is late by itself is late again.
    """
    outcome = attempt()
    if outcome.seconds > within_s:
        outcome = attempt()
    late = f"it took {outcome.seconds:.1f} s" if outcome.seconds > within_s else None
    return replace(outcome, through=outcome.through or late)


@dataclass(frozen=True)
class Suite:
    """Attacks of one kind.

    Attributes:
        id: the letter and number under which the report has them.
        about: what must hold, in a few words.
        run: makes the attacks on a candidate by its name: `WORKER` or one of `baselines`.
        baselines: what else can be put to the same attacks.
    """

    id: str
    about: str
    run: Callable[[str], Iterable[Outcome]]
    baselines: tuple[str, ...] = ()


def told(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """The figures of a report. `through` counts attacks and controls that did not end as they must."""
    cases = list(outcomes)
    slowest = max(cases, key=lambda case: case.seconds)
    controls = [case for case in cases if case.control]
    peaks = [case.peak_mb for case in cases if case.peak_mb is not None]
    return {
        "tried": len(cases),
        "through": sum(case.through is not None for case in cases),
        "controls": f"{sum(case.through is None for case in controls)}/{len(controls)}" if controls else None,
        "slowest_s": round(slowest.seconds, 2),
        "slowest": slowest.name,
        "peak_mb": round(max(peaks)) if peaks else None,
        "failures": dict(_failures(cases)),
    }


def _failures(cases: Iterable[Outcome]) -> Iterator[tuple[str, str]]:
    return ((case.name, case.through) for case in cases if case.through is not None)
