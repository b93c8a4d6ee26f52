"""A sample of S8 and S9 through RunPod's real loop, and the judge of both."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from faults import integrity, storage
from faults.integrity import DAMAGES, Damage, cut, flip
from faults.parts import PREFIX, Answer, Ground, picture, sha256
from faults.storage import PLACES, Case, too_soon, unlike
from hostile.outcome import in_time


@pytest.fixture(scope="module")
def ground(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """One worker behind a proxy for all."""
    with Ground(tmp_path_factory.mktemp("ground"), model=tiny, more={"PREFETCH": "4"}) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "kind", "times"),
    [
        ("get source", "wrong bytes", None),
        ("get manifest", "403", None),
        ("put result", "reset before the answer", 1),
        ("put result", "503", 2),
        ("put source", "500", None),
    ],
)
def test_a_fault_of_the_bucket_is_survived(ground: Ground, place: str, kind: str, times: int | None) -> None:
    """Typed or right, in time, and right afterwards."""
    case = Case(kind, PLACES[place], times, mended=times is not None)

    assert in_time(lambda: storage.attempt(ground, case), storage.WITHIN_S).through is None


@pytest.mark.slow
def test_damage_is_found(ground: Ground) -> None:
    """Of sources, of results and of what names them: made anew, repaired, and found again."""
    with ThreadPoolExecutor() as pool:
        ended = [
            pool.submit(integrity.source, ground, ("JPEG", flip(50, 100))),
            pool.submit(integrity.source, ground, ("WEBP", cut(99))),
            pool.submit(integrity.repeat, ground, ("result", DAMAGES[0], "url")),
            pool.submit(integrity.repeat, ground, ("manifest", cut(50), "url")),
        ]

    assert [one.result().through for one in ended] == [None] * 4


@pytest.mark.slow
def test_the_judge_opens_the_link(ground: Ground) -> None:
    """A picture that is another one, and one that is not there, get through to nobody who looks."""
    answer = ground.answer(ground.request("PNG"))
    key = answer.result["object_key"].removeprefix(PREFIX)
    right = ground.wrong(answer, "PNG"), ground.wrong(answer, "JPEG")
    ground.write(key, picture("PNG"), sha256(picture("PNG")))

    assert right == (None, "another picture was delivered")
    assert ground.wrong(answer, "PNG") == "the link opens to other bytes"


def error_of(**changes: Any) -> Answer:
    """What a good worker says of a source that it may not read, with changes."""
    details = {"stage": "fetch", "retryable": False, "attempts": 1} | changes
    said = {"type": details.pop("type", "CacheReadFailed"), "message": details.pop("message", "it could not")}
    return Answer({"error": {**said, "details": details}}, 1)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, None),
        ({"type": "StorageError"}, "StorageError: it could not"),
        ({"message": "internal error: the log says more"}, "internal: internal error: the log says more"),
        ({"stage": "lookup"}, "in stage lookup"),
        ({"retryable": True}, "retryable is True"),
        ({"attempts": 2}, "attempts is 2, not 1"),
    ],
)
def test_an_error_is_looked_at_whole(changes: dict[str, Any], wrong: str | None) -> None:
    """Type, words, stage, advice, and how often was tried."""
    assert unlike(error_of(**changes), Case("403", PLACES["get source"]), 1) == wrong


def test_what_is_final_is_tried_once() -> None:
    """And no job may fail for a copy that is not kept."""
    assert (
        unlike(error_of(attempts=3), Case("403", PLACES["get source"]), 3) == "3 requests for what no other try mends"
    )
    assert unlike(error_of(), Case("403", PLACES["put source"]), 1) is not None


def test_a_server_that_asks_for_a_second_gets_it() -> None:
    """Between any two requests."""
    patient, hasty = [0.0, 1.1, 2.1], [0.0, 1.1, 2.0]

    assert [too_soon(Case("503, Retry-After 1", PLACES["get source"]), times) for times in (patient, hasty)] == [
        False,
        True,
    ]


def test_the_damages_are_damages() -> None:
    """Each changes the bytes or what is said of them, in a way of its own."""
    data, digest = picture("JPEG"), sha256(picture("JPEG"))
    damages: list[Damage] = [damage for kind, damage in integrity.sources() if kind == "JPEG"]
    made = [(damage.data(data), damage.digest(digest, damage.data(data) or b"")) for damage in damages]

    assert (data, digest) not in made
    assert len(set(made)) == len(made) == integrity.FLIPS + 33 + len(DAMAGES)


def test_every_case_has_a_name_of_its_own() -> None:
    """As the report needs it."""
    names = [case.name for case in storage.cases()]

    assert len(set(names)) == len(names) > 72
