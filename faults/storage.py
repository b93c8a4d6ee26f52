"""S9: storage faults of every kind, at every place where a job asks the bucket for something."""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from faults.parts import FORMATS, PREFIX, Answer, Ground, on_lanes, picture
from hostile.outcome import Outcome, Suite, in_time
from local.fault_kinds import KINDS
from local.fault_proxy import REFUSED, Fault

WITHIN_S = 15.0
WORKERS = 5
MOST = 3  # requests of one operation
MOST_MB = 200.0
STATS = MOST * MOST  # each of the uploads is looked at
#: what no other try mends
FINAL = {
    "400", "403", "403, a page", "403, of a clock", "404", "404, of the bucket", "404, a page", "405", "501",
    "301 elsewhere", "302 elsewhere", "307 elsewhere", "308 elsewhere", "another document",
}  # fmt: skip
#: answers of which it is hard to say what they mean
ODD = {
    "204",
    "206",
    "304",
    "412",
    "a page, 200",
    "an error, 200",
    "said to be packed",
    "two lengths",
    "a negative length",
}
#: what the answer to a HEAD cannot say, since it has no body
UNSAID = {"400, of a time-out", "400, of bytes that did not arrive", "409, of another operation"}
#: longer than an operation may take
PATIENCE = {"503, Retry-After 3600", "503, Retry-After a far date"}
#: once they take so long that one operation has no time for a second try
LONG = {"drip", "drip of the body", "slow read", "100 Continue without end"}


@dataclass(frozen=True)
class Place:
    """Where a job meets the fault.

    Attributes:
        name: for people.
        method: of the request that is met.
        key: a pattern of its key.
        error: the type of the answer, if the job fails; None: it must not.
        stage: in which it fails; None: any.
        before: what was done before, undisturbed: nothing, a job with the same "source", or the "same" job.
        most: requests that may be met in one job.
        fields: of the request.
    """

    name: str
    method: str
    key: str
    error: str | None
    stage: str | None
    before: str = ""
    most: int = MOST
    fields: tuple[tuple[str, Any], ...] = ()


RESULT = r"results/.*\.png$"
MANIFEST = r"results/.*/manifest\.json$"
PLACES = {
    place.name: place
    for place in (
        Place("get source", "GET", "sources/", "CacheReadFailed", "fetch", before="source"),
        Place("get missing source", "GET", "sources/", "CacheReadFailed", "fetch"),
        Place("get manifest", "GET", MANIFEST, "CacheReadFailed", "lookup", before="same"),
        Place("put result", "PUT", RESULT, "StorageError", "upload"),
        Place("head of what was put", "HEAD", RESULT, "StorageError", "upload", most=STATS),
        Place("head source", "HEAD", "sources/", "CacheReadFailed", "fetch", fields=(("image_url", "data:"),)),
        Place("get result", "GET", RESULT, "CacheReadFailed", "lookup", before="same"),
        Place("put manifest", "PUT", MANIFEST, "StorageError", None, most=STATS),
        Place("put source", "PUT", "sources/", None, None),
    )
}


@dataclass(frozen=True)
class Case:
    """A kind of fault at a place: how often, and whether the job must succeed all the same."""

    kind: str
    place: Place
    times: int | None = None
    mended: bool = False

    @property
    def name(self) -> str:
        """Short and unique."""
        often = {None: "", 1: " once", 2: " twice"}[self.times]
        return f"{self.place.name}: {self.kind}{often}"


def cases() -> Iterator[Case]:
    """For ever, at every place; and once or twice, where a try more must mend it."""
    for place in PLACES.values():
        # Refused are all requests from then on, those too without which there is no job.
        for kind in (*KINDS, REFUSED) if place.error else KINDS:
            yield Case(kind, place)
    for place in (place for place in PLACES.values() if place.error):
        for kind in KINDS:
            if not (kind in FINAL | ODD | PATIENCE | LONG or (kind in UNSAID and place.method == "HEAD")):
                yield Case(kind, place, 1, mended=True)
        for kind in ("503", "500", "429", "reset before the answer", "truncated body"):
            yield Case(kind, place, 2, mended=True)


def attempt(ground: Ground, case: Case) -> Outcome:
    """Do a job that meets the fault, then the same twice without."""
    place = case.place
    kind = FORMATS[sum(map(ord, case.name)) % len(FORMATS)]
    said = ground.request(kind, **dict(place.fields))
    if said["image_url"] == "data:":
        said["image_url"] += f"image/{kind.lower()};base64,{base64.b64encode(picture(kind)).decode()}"
    key = PREFIX + place.key
    if place.before:
        made = ground.answer(said if place.before == "same" else ground.varied(said))
        # The one that is there; not the one that is made in its place.
        key = re.escape(made.result["object_key"]) if place.key == RESULT else key
    asked, strayed = len(ground.proxy.asked), ground.proxy.strayed
    ground.proxy.fault = Fault(case.kind, (place.method,), f"^{key}", case.times)
    with ground.watched() as peak_mb:
        answer = ground.answer(said)
        memory = peak_mb()
    ground.proxy.fault = None
    met = [one for one in ground.proxy.asked[asked:] if one.fault]
    tries = (
        sum(one.method == place.method and one.key == met[0].key for one in ground.proxy.asked[asked:]) if met else 0
    )
    through = [
        None if met else "the fault met nothing",
        ground.wrong(answer, kind) if case.mended or not answer.error else unlike(answer, case, len(met)),
        f"{tries} requests" if tries > place.most else None,
        "asked again at once" if too_soon(case, [one.at for one in met]) else None,
        f"{memory:.0f} MB" if memory > MOST_MB else None,
        "a redirect was followed" if ground.proxy.strayed > strayed else None,
        *(f"afterwards: {wrong}" for wrong in _afterwards(ground, said, kind) if wrong),
    ]
    return Outcome(case.name, "; ".join(filter(None, through)) or None, answer.seconds, memory)


def _afterwards(ground: Ground, said: dict[str, Any], kind: str) -> list[str | None]:
    """What is wrong with the same request now: found again or made, and made anew."""
    answers = ground.answers([{**said, "reuse": reuse} for reuse in (True, False)])
    return [ground.wrong(answer, kind) for answer in answers]


def unlike(answer: Answer, case: Case, met: int) -> str | None:
    """What an error has that it should not have."""
    error, place = answer.error, case.place
    details = error.get("details", {})
    attempts, retryable = details.get("attempts"), details.get("retryable")
    unsaid = place.method == "HEAD" and (case.kind in UNSAID or case.kind.startswith("404"))
    wrong = [
        None if error.get("type") == place.error else f"{error.get('type')}: {error.get('message')}",
        f"internal: {error['message']}" if "internal error" in error.get("message", "") else None,
        None if place.stage in (None, details.get("stage")) else f"in stage {details.get('stage')}",
        None if unsaid or case.kind in ODD or retryable is (case.kind not in FINAL) else f"retryable is {retryable}",
    ]
    if place.most == MOST:
        one = case.kind in FINAL or case.kind in PATIENCE
        wrong += [
            None if case.kind == REFUSED or attempts == met else f"attempts is {attempts}, not {met}",
            f"{met} requests for what no other try mends" if one and met > 1 else None,
        ]
    return "; ".join(filter(None, wrong)) or None


def too_soon(case: Case, times: list[float]) -> bool:
    """Whether a server that asked for a second was given less."""
    gaps = [later - earlier for earlier, later in pairwise(times)]
    return case.kind.endswith("Retry-After 1") and min(gaps, default=1) < 1


def run(_candidate: str) -> Iterator[Outcome]:
    """Every case."""
    yield from on_lanes(cases(), lambda ground, case: in_time(lambda: attempt(ground, case), WITHIN_S), workers=WORKERS)


SUITE = Suite("S9", f"right or typed within {WITHIN_S:g} s, and right afterwards", run)
