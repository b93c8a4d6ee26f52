"""When the next job is taken, in RunPod's real loop, by a model that takes a known time."""

from collections.abc import Iterator

import pytest

from local.runpod_api import Job
from local.stack import Stack
from local.worker import ROOT
from tests.loop.test_jobs import result_of, said

pytestmark = pytest.mark.slow

PASS_S = 0.1
SHORT, LONG = 15, 50  # steps: 1.5 s and 5 s


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A worker as it is set up by default."""
    folder = tmp_path_factory.mktemp("prefetch")
    # It is never loaded.
    model = folder / "model"
    model.mkdir()
    more = {
        "MODEL_CLASS": "QwenImageEditPipeline",
        "PYTHONPATH": str(ROOT),
        "PACED_PASS_S": str(PASS_S),
        "PACED_TURNS": str(folder / "turns"),
    }
    with Stack(folder, model=model, more=more, program=("-m", "local.paced_worker")) as running:
        yield running


def in_a_row(stack: Stack, name: str, steps: int) -> tuple[Job, Job]:
    """Two jobs of so many steps, as the job API saw them; both were there from the begin."""
    ids = [stack.submit(said(stack, f"{name}-{n}", num_inference_steps=steps)) for n in range(2)]
    for job_id in ids:
        result_of(stack.finished(job_id))
    first, second = (stack.api.jobs[job_id] for job_id in ids)
    return first, second


def steps_told(job: Job) -> list[tuple[float, int]]:
    """When which step was told."""
    return [(at, news["step"]) for at, news in job.progress if "step" in news]


def test_a_job_behind_a_long_one_is_not_taken_before_its_end_is_near(stack: Stack) -> None:
    """Another worker may have it meanwhile. Nor does the GPU wait for it."""
    first, second = in_a_row(stack, "long", LONG)

    assert first.taken and first.finished and second.taken  # noqa: PT018 - for the type checker
    assert max(step for at, step in steps_told(first) if at < second.taken) > LONG / 3
    assert second.taken < first.finished
    assert second.output["result"]["meta"]["timings_ms"]["queue"] > 0


def test_a_job_behind_a_short_one_is_taken_when_that_has_just_begun(stack: Stack) -> None:
    """While it is on the GPU."""
    first, second = in_a_row(stack, "short", SHORT)

    assert second.taken
    assert max(step for at, step in steps_told(first) if at > second.taken) > SHORT / 3
