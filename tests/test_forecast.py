"""When the next job is taken: by a clock of the test's own, and the news of jobs."""

import math
from typing import Any

import pytest

from qwen_worker import schema
from qwen_worker.forecast import Forecast
from qwen_worker.request import ImageRequest, parse_image

RULES = schema.Rules(steps=4, cfg_scale=1.0, max_steps=50, max_images=1)


def request(**fields: Any) -> ImageRequest:
    return parse_image({"image_url": "https://a/", "prompt": "x", **fields}, job_id="a", rules=RULES)


class Told:
    """A forecast, and the time."""

    def __init__(self, ahead_s: float = 2.0) -> None:
        self.now = 100.0
        self.forecast = Forecast(ahead_s, lambda: self.now)

    def takes(self, job_id: str, **fields: Any) -> None:
        self.forecast.take(job_id)
        self.forecast.expect(job_id, request(**fields))

    def begins(self, job_id: str, stage: str, *, image: int = 1, images: int = 1) -> None:
        self.forecast.hear(job_id, {"stage": stage, "image": image, "images": images})

    def steps(self, job_id: str, done: int, steps: int, each_s: float) -> None:
        """So many more steps."""
        for _ in range(done):
            self.now += each_s
            self._done += 1
            self.forecast.hear(job_id, {"stage": "edit", "step": self._done, "steps": steps})

    def edits(self, job_id: str, steps: int, each_s: float, **number: int) -> None:
        """A whole edit."""
        self.on_gpu(job_id, **number)
        self.steps(job_id, steps, steps, each_s)
        self.begins(job_id, "encode", **number)

    def on_gpu(self, job_id: str, **number: int) -> None:
        self.begins(job_id, "edit", **number)
        self._done = 0

    @property
    def seconds(self) -> float:
        return self.forecast.seconds


@pytest.fixture
def told() -> Told:
    """Nothing is known yet."""
    return Told()


def test_an_idle_worker_takes_a_job_and_then_waits_to_see_what_it_is(told: Told) -> None:
    """One alone, whatever the slots: neither its request is known, nor how fast the model is."""
    idle = told.forecast.room(3)
    told.forecast.take("a")
    taken = told.forecast.room(2)
    told.takes("a")

    assert (idle, taken, told.seconds) == (1, 0, math.inf)
    assert told.forecast.room(2) == 0


def test_a_short_job_has_the_next_one_taken_early_and_a_long_one_only_near_its_end(told: Told) -> None:
    """As its own steps tell: of 1.5 s, and of 12 s."""
    told.takes("a", num_inference_steps=5)
    told.on_gpu("a")
    told.steps("a", 1, 5, 0.3)
    short = told.forecast.room(2)
    told.takes("b", num_inference_steps=40)
    told.on_gpu("b")
    told.forecast.drop("a")
    told.steps("b", 33, 40, 0.3)
    before, room_before = told.seconds, told.forecast.room(2)
    told.steps("b", 1, 40, 0.3)

    assert short == 1
    assert room_before == 0
    assert before == pytest.approx(2.1)
    assert told.seconds == pytest.approx(1.8)
    assert told.forecast.room(2) == 1


def test_time_goes_on_between_steps_and_is_never_owed(told: Told) -> None:
    """What a step has taken already is not left; a late one is about to end."""
    told.takes("a", num_inference_steps=4)
    told.on_gpu("a")
    told.steps("a", 2, 4, 1.0)
    told.now += 0.5
    half = told.seconds
    told.now += 60

    assert (half, told.seconds) == (1.5, 0)


def test_jobs_that_wait_count_by_the_pace_of_the_edit_before(told: Told) -> None:
    """Steps, passes of a step, and pictures; guidance is a second pass."""
    told.takes("a")
    told.edits("a", 4, 0.5)
    over = told.seconds
    told.takes("b", num_inference_steps=10, num_images=2, true_cfg_scale=4.0)
    several = told.seconds
    told.takes("c", num_inference_steps=2)

    assert over == 0
    assert several == pytest.approx(20.0)
    assert told.seconds == pytest.approx(21.0)


def test_until_its_first_step_a_job_on_the_gpu_counts_by_that_pace_too(told: Told) -> None:
    """And of the others of several pictures one after the other."""
    told.takes("a")
    told.edits("a", 4, 0.5)
    told.takes("b", num_images=3)
    told.on_gpu("b", image=1, images=3)
    told.now += 1.5
    first = told.seconds
    told.steps("b", 4, 4, 0.5)
    told.begins("b", "encode", image=1, images=3)
    second = told.seconds
    told.edits("b", 4, 0.5, image=2, images=3)
    third = told.seconds
    told.edits("b", 4, 0.5, image=3, images=3)

    assert first == pytest.approx(0.5 + 2 * 2.0)
    assert second == pytest.approx(2 * (1.5 + 2.0))
    assert third == pytest.approx(2.0)
    assert told.seconds == 0


@pytest.mark.parametrize("stage", ["validate", "fetch", "lookup", "decode", "queue", "edit", "steps", "encode"])
def test_a_job_that_has_ended_leaves_nothing_behind(told: Told, stage: str) -> None:
    """Wherever it was: refused, stopped, found in the bucket; nor does the last step that it still makes."""
    told.takes("a")
    told.begins("a", "edit" if stage == "steps" else stage)
    if stage == "steps":
        told.on_gpu("a")
        told.steps("a", 1, 4, 1.0)
    told.forecast.drop("a")
    told.forecast.hear("a", {"stage": "edit", "step": 2, "steps": 4})
    told.forecast.drop("a")
    told.forecast.expect("a", request())

    assert told.forecast.room(3) == 1


def test_an_edit_that_did_nothing_tells_no_pace(told: Told) -> None:
    """Of an empty mask, and one that broke off: what waits is as unknown as before."""
    told.takes("a")
    told.on_gpu("a")
    told.begins("a", "encode")
    told.takes("b")
    told.on_gpu("b")
    told.steps("b", 1, 4, 1.0)
    told.forecast.drop("b")
    told.takes("c")

    assert told.seconds == math.inf


def test_a_number_of_jobs_is_taken_whatever_they_are() -> None:
    """PREFETCH=4: as many as there are slots, and all in one question."""
    told = Told(math.inf)
    idle = told.forecast.room(5)
    told.takes("a")

    assert (idle, told.forecast.room(4)) == (5, 4)


def test_a_job_that_waits_for_a_host_keeps_the_next_one_out_only_for_a_while(told: Told) -> None:
    """The GPU is free: others may be done before it. When its pictures are there it counts again."""
    told.takes("a", num_inference_steps=10)
    told.edits("a", 10, 1.0)
    told.forecast.drop("a")
    told.takes("b", num_inference_steps=10)
    told.begins("b", "fetch")
    at_once = told.forecast.room(4)
    told.now += 2.1
    later = told.forecast.room(4)
    told.begins("b", "decode")

    assert (at_once, later, told.forecast.room(4)) == (0, 1, 0)


def test_a_first_job_that_nobody_delivers_keeps_the_next_one_out_only_for_a_while(told: Told) -> None:
    """Although nothing is known of it."""
    told.takes("a")
    told.now += 2.1

    assert told.forecast.room(4) == 1


def test_heun_evaluates_the_model_twice_a_step(told: Told) -> None:
    """But once in the last."""
    told.takes("a", num_inference_steps=10)
    told.edits("a", 10, 0.1)
    told.forecast.drop("a")
    told.takes("b", num_inference_steps=10, scheduler="FlowMatchHeun")

    assert told.seconds == pytest.approx(1.9)
