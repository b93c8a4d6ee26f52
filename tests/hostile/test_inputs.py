"""Generated jobs: a quick sample of suite S18, and what it found."""

from pathlib import Path
from typing import Any

import pytest

from hostile.inputs import suites as inputs
from hostile.parts import idle_worker
from qwen_worker.errors import BadInput
from qwen_worker.job import Answer, Jobs
from qwen_worker.request import ImageRequest, parse


@pytest.fixture(scope="module")
def jobs(tiny: Path) -> Jobs:
    """A worker that must refuse everything."""
    return idle_worker(tiny)


@pytest.mark.parametrize("kind", inputs.EXAMPLES)
def test_whatever_is_sent_gets_a_typed_answer_at_once(kind: str, jobs: Jobs) -> None:
    """A short one, and it stays a single line of the log."""
    outcomes = inputs.attack(kind, 50, jobs)

    assert len(outcomes) == 50
    assert {one.name: one.through for one in outcomes if one.through} == {}


@pytest.mark.parametrize(
    "raw",
    [
        {str(number): "x" for number in range(100_000)},
        {"x" * 10_000_000: 1},
        {"prompt": "x", "image_url": "https://a/", "lora": {str(number): "x" for number in range(100_000)}},
        {"prompt": "x", "image_url": "https://a/", "lora": {"x" * 10_000_000: 1.0}},
        {"prompt": "x", "image_url": "http://" + "a" * 10_000_000},
        {"\U0001f600" * 100 + str(number): 1 for number in range(100)},
        {f'{number}\x01"\\' * 30: 1 for number in range(100)},
    ],
    ids=["fields", "name", "loras", "name of a lora", "address", "letters", "quotes"],
)  # fmt: skip
def test_what_is_endless_is_refused_in_few_words(raw: dict[str, Any], jobs: Jobs) -> None:
    """At once, whatever of it has no end."""
    with inputs.door(jobs) as door:
        through, _ = door.tried(raw, "job")

    assert through is None


@pytest.mark.parametrize("job", [None, [], "job", {"id": 10**5000}, {"id": ["x"] * 10**6}, {"id": "\ud800\n" * 10**6}])
def test_no_job_is_too_odd_for_an_answer(job: Any, jobs: Jobs) -> None:
    """Whatever its id is."""
    with inputs.door(jobs) as door:
        body = door.runner.run(door.jobs.answer(job)).body

    assert body["error"]["type"] == "BadInput"
    assert len(door.log.getvalue()) < 10_000


def test_a_number_of_steps_that_python_cannot_write_is_clamped() -> None:
    """As any other."""
    said = {"prompt": "x", "image_url": "https://a/", "num_inference_steps": 10**5000}
    request = parse(said, job_id="job", rules=inputs.RULES)

    assert isinstance(request, ImageRequest)
    assert (request.num_inference_steps, request.warnings) == (50, ("num_inference_steps was clamped to 50",))


def test_the_figures_find_what_does_not_hold(jobs: Jobs) -> None:
    """An answer of too many bytes, a request that costs too much time, an error of another type."""
    with inputs.door(jobs) as door:
        assert inputs._refused(ValueError("x")) == "ValueError instead of BadInput"
        assert inputs._refused(BadInput("x", problems=[])) == "no field is named"
        assert "bytes" in str(inputs._answered(Answer({"status": "error", "error": "x" * inputs.MAX_ANSWER})))
        door.log.write('{"message": "forged"}\n')
        assert door.tried({}, "job")[0] == "2 lines in the log"
