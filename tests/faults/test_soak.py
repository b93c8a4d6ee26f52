"""The soak in small, and that it finds what it looks for."""

import io
import json
from dataclasses import replace

import pytest

from faults.account import unaccounted, unlike
from faults.growth import GROWTH_MB, Sample, growth
from faults.mix import Planned
from faults.soak import soaking
from local.bucket import BUCKET
from local.runpod_api import Job

IDLE = Sample(200, 60.0, 600.0, 1200.0, fds=24, memory_files=0, threads=15, processes=3, files=1)


def samples(kb_a_job: float, jobs: int = 3000, spike_mb: float = 0) -> list[Sample]:
    """Of a worker that keeps so much of each job, and now and then holds a large picture."""
    return [
        replace(
            IDLE,
            jobs=done,
            rss_mb=600 + kb_a_job * 1024 * done / 1e6 + (spike_mb if done % 70 == 0 else 0),
            tree_mb=1200 + kb_a_job * 1024 * done / 1e6,
        )
        for done in range(200, jobs + 1, 10)
    ]


@pytest.mark.parametrize(("kb_a_job", "jobs", "spike_mb"), [(0, 3000, 0), (0, 3000, 500), (10, 3000, 0), (0, 200, 0)])
def test_what_stays_is_fine(kb_a_job: float, jobs: int, spike_mb: float) -> None:
    """Peaks are no growth, and 10 KB a job are 28 MB in the end."""
    assert growth(samples(kb_a_job, jobs, spike_mb), [IDLE, IDLE]) == []


@pytest.mark.parametrize(("kb_a_job", "jobs"), [(50, 3000), (50, 1200), (12, 3000)])
def test_a_leak_is_found(kb_a_job: float, jobs: int) -> None:
    """That of the second run of `make soak` too."""
    found = growth(samples(kb_a_job, jobs), [IDLE, IDLE])

    assert [problem.split()[0] for problem in found] == ["rss_mb", "tree_mb"]
    assert kb_a_job * 1024 * (jobs - 200) / 1e6 > GROWTH_MB


@pytest.mark.parametrize("name", ["fds", "threads", "memory_files", "processes", "files"])
def test_one_more_of_anything_is_found(name: str) -> None:
    """Between two moments without a job; one less is none."""
    more = replace(IDLE, **{name: getattr(IDLE, name) + 1})

    assert growth(samples(0), [IDLE, more]) == [f"{name} grew from {getattr(IDLE, name)} to {getattr(more, name)}"]
    assert growth(samples(0), [more, IDLE]) == []


DONE = Job("a", {}, status="COMPLETED", answers=[{}])
REFUSED = Job("a", {}, status="FAILED", error=json.dumps({"type": "BadInput"}), answers=[{}])
CANCELLED = Job("a", {}, status="CANCELLED")


@pytest.mark.parametrize(
    ("expected", "job", "fine"),
    [
        ("success", DONE, True),
        ("success", REFUSED, False),
        ("success", replace(DONE, answers=[{}, {}]), False),
        ("success", replace(DONE, answers=[]), False),
        ("success", CANCELLED, False),
        ("BadInput", REFUSED, True),
        ("BadInput", DONE, False),
        ("DownloadFailed", REFUSED, False),
        ("cancelled", CANCELLED, True),
        ("cancelled", DONE, True),
        ("cancelled", REFUSED, False),
        ("cancelled", replace(CANCELLED, answers=[{}, {}]), False),
    ],
)
def test_a_job_that_ends_otherwise_is_found(expected: str, job: Job, *, fine: bool) -> None:
    """Or twice, or never."""
    planned = Planned("edit", {}, expected)  # type: ignore[arg-type]

    assert (unlike(planned, job) is None) == fine


KEY = "qwen-image-edit/results/1/a.png"
EDITED = Planned("edit", {}, "success", "http://host/a")
MADE = replace(DONE, output={"result": {"object_key": KEY}})
KEPT = {KEY, "qwen-image-edit/results/1/manifest.json", "qwen-image-edit/sources/1", "qwen-image-edit/health/check"}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (KEPT, []),
        (KEPT | {"qwen-image-edit/results/2/b.png"}, ["unexpected object qwen-image-edit/results/2/b.png"]),
        (KEPT | {"qwen-image-edit/results/1/b.png"}, ["unexpected object qwen-image-edit/results/1/b.png"]),
        (KEPT | {"qwen-image-edit/results/2/late.png", "qwen-image-edit/results/2/manifest.json"}, []),
        (KEPT - {KEY}, [f"missing object {KEY}"]),
        (KEPT | {"qwen-image-edit/sources/2"}, ["2 sources of 1 addresses"]),
        (KEPT - {"qwen-image-edit/sources/1"}, ["0 sources of 1 addresses"]),
    ],
)
def test_what_no_job_accounts_for_is_found(found: set[str], said: list[str]) -> None:
    """One picture and one source of two equal jobs; and what a job left that was cancelled too late."""
    sent = {"a": EDITED, "b": EDITED, "late": Planned("cancelled", {}, "cancelled")}

    assert list(unaccounted(sent, {"a": MADE, "b": MADE, "late": CANCELLED}, found)) == said


def test_the_same_edit_made_twice_is_found() -> None:
    """Though each answer tells its own picture."""
    other = KEY.replace("a.png", "b.png")
    jobs = {"a": MADE, "b": replace(MADE, output={"result": {"object_key": other}})}

    assert list(unaccounted({"a": EDITED, "b": EDITED}, jobs, KEPT | {other})) == ["2 pictures of 1 requests"]


@pytest.mark.slow
def test_a_short_soak_loses_nothing() -> None:
    """And what is put into the bucket by somebody else is found."""
    with soaking() as soak:
        soak.idle_s = 0.5
        soak.run(30, 10)
        lost = soak.lost()
        soak.stack.bucket.client.put_object(BUCKET, "qwen-image-edit/left", io.BytesIO(b"x"), 1)

        assert lost == []
        assert soak.lost() == ["unexpected object qwen-image-edit/left"]
        assert [one.memory_files for one in soak.idle] == [0, 0, 0]
