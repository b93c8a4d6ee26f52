"""S13: something hangs, in each stage of a job; its deadline ends the job, and the next one is done."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from faults.checks import error_of, hold, result_of, until
from faults.rig import PICTURE, SAVED, Rig, rig, tried
from hostile.outcome import Outcome, Suite, in_time
from local.fault_proxy import Fault
from local.faulty_orders import Order
from local.runpod_api import FINAL

DOWNLOAD_S = STORAGE_S = DECODE_S = 2.0
INFERENCE_S = 3.0
ENCODE_S = 55.0  # nobody can set it
DEADLINES = {
    "TIMEOUT_SECONDS": str(DOWNLOAD_S),
    "STORAGE_TIMEOUT_SECONDS": str(STORAGE_S),
    "INFERENCE_TIMEOUT_SECONDS": str(INFERENCE_S),
    # Of computing; a decoder that sleeps has eight times that.
    "DECODE_SECONDS": str(DECODE_S / 8),
    "EXECUTION_TIMEOUT_SECONDS": "150",
}
LATE_S = 1.0
STAGES = ("validate", "fetch", "lookup", "decode", "queue", "edit", "encode", "upload")
SOURCES, MANIFEST = "sources/", r"results/.*manifest"


@dataclass(frozen=True)
class Hang:
    """One case.

    Attributes:
        name: short and unique.
        stage: where the job is then.
        kind: types of error that it may end with; None: it succeeds all the same.
        seconds: of the deadline.
        order: of a part that hangs.
        fault: of the bucket.
        late: whether the fault begins only when the picture is encoded.
        host: of the picture: whether it says nothing, or half of its answer.
        frozen: whether the processes that decode stand still.
        upload: whether it is the host of upload_url that says nothing.
    """

    name: str
    stage: str
    kind: str | None
    seconds: float
    order: Order | None = None
    fault: Fault | None = None
    late: bool = False
    host: str | None = None
    frozen: bool = False
    upload: bool = False


HANGS = (
    Hang("a silent host", "fetch", "DownloadFailed", DOWNLOAD_S, host="nothing"),
    Hang("a host that stops", "fetch", "DownloadFailed", DOWNLOAD_S, host="half"),
    *(
        Hang(
            f"a source in the bucket: {kind}",
            "fetch",
            "CacheReadFailed",
            STORAGE_S,
            fault=Fault(kind, ("GET",), SOURCES),
        )
        for kind in ("hang", "drip")
    ),
    *(
        Hang(f"a manifest: {kind}", "lookup", "CacheReadFailed", STORAGE_S, fault=Fault(kind, ("GET",), MANIFEST))
        for kind in ("hang", "drip")
    ),
    Hang("a decoder", "decode", "BadInput|ModelError", DECODE_S, frozen=True),
    *(
        Hang(f"the {part}: {fault}", "edit", "ModelError", INFERENCE_S, order=Order(part, fault))
        for part in ("text_encoder", "vae_encoder", "transformer", "vae_decoder")
        for fault in ("hang", "native_hang")
    ),
    Hang("an encoder", "encode", "ModelError", ENCODE_S, order=Order("save", "hang")),
    *(
        Hang(f"a result: {kind}", "upload", "StorageError", STORAGE_S, fault=Fault(kind, ("PUT",), PICTURE), late=True)
        for kind in ("hang", "drip", "slow read")
    ),
    Hang(
        "a look at the result", "upload", "StorageError", STORAGE_S, fault=Fault("hang", ("HEAD",), PICTURE), late=True
    ),
    # The picture is there: only that it is found again needs the manifest.
    Hang("what is told of a result", "upload", None, STORAGE_S, fault=Fault("hang", ("PUT",), MANIFEST), late=True),
    Hang("a host of the caller's", "upload", None, DOWNLOAD_S, upload=True),
)


def hangs(_candidate: str) -> Iterator[Outcome]:
    """S13."""
    with rig(**DEADLINES) as on:
        for case in HANGS:
            yield in_time(partial(tried, on, case.name, partial(hung, on, case)), case.seconds + LATE_S)
        yield tried(on, "behind a hang", partial(_behind, on))
        yield tried(on, "deadlines that do not fit", partial(_unfit, on))


def hung(on: Rig, case: Hang) -> float:
    """Seconds from the begin of the stage until the answer."""
    until_stage = _seconds_until(on, case.stage)
    name = f"{case.name} {len(on.api.jobs)}"
    request = on.request(name)
    target = request["image_url"].partition(str(on.host.port))[2]
    whole = on.host.replies[target]
    if case.host:
        on.host.replies[target] = on.holding(half=case.host == "half")
    if case.upload:
        on.host.replies["/upload"] = on.holding()
        request["upload_url"] = on.host.url("/upload")
    if case.frozen:
        on.freeze_decoders()
    job_id = _submitted(on, request, case)
    job = on.finished(job_id, case.seconds + 60)
    seconds = on.seconds(job_id) - until_stage
    if case.kind:
        error = error_of(job, case.kind)
        hold(error["details"]["stage"] == case.stage, f"it is told of {error['details']['stage']}")
        hold(error["details"]["retryable"] or case.frozen, "the caller is not told to try again")
    else:
        result_of(job)
    on.host.replies[target] = whole
    on.clear()
    if on.refreshes(job_id):
        _code, left = on.ends()
        hold(not left, f"left behind: {', '.join(left)}")
        on.replace_worker()
    result_of(on.run(request))
    return seconds


def _submitted(on: Rig, request: dict[str, Any], case: Hang) -> str:
    request["output_format"] = SAVED
    on.order(Order("save", "hang") if case.late else case.order)
    if case.fault and not case.late:
        on.faulty(case.fault)
    saved = on.calls("save")
    job_id = on.submit(request)
    if case.fault and case.late:
        until(lambda: on.calls("save") > saved, "the picture is encoded")
        on.faulty(case.fault)
        on.order(None)
    return job_id


def _seconds_until(on: Rig, stage: str) -> float:
    """How long an undisturbed job takes until a stage."""
    job_id = on.submit(on.request(f"undisturbed {len(on.api.jobs)}"))
    timings = result_of(on.finished(job_id))["meta"]["timings_ms"]
    within = sum(timings[name] or 0 for name in STAGES[: STAGES.index(stage)]) / 1000
    # Between being taken and begun there are tenths of a second too.
    return float(within + max(0.0, on.seconds(job_id) - timings["total"] / 1000))


def _behind(on: Rig) -> None:
    """The model's thread is stuck: who waits for it is not lost, and is done by another process."""
    count = on.calls()
    on.order(Order("transformer", "hang"))
    first = on.submit(on.request("ahead of another"))
    until(lambda: on.calls() > count, "the model runs")
    second = on.submit(on.request("behind a hang"))
    error_of(on.finished(first), "ModelError")
    hold(on.refreshes(first), "the answer does not ask for another worker")
    on.ends()
    hold(on.api.jobs[second].status not in FINAL, "the job behind was answered")
    on.clear()
    on.replace_worker()
    result_of(on.finished(second))


def _unfit(on: Rig) -> None:
    """RunPod would end the job before its worker does."""
    said = on.refuses(EXECUTION_TIMEOUT_SECONDS="60")
    hold("EXECUTION_TIMEOUT_SECONDS" in said, f"it says {said}")


SUITE = Suite(
    "S13", "a hang in each stage: a typed error within a second of its deadline, and the next job is done", hangs
)
