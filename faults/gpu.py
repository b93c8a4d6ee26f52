"""S12: a device that is sick, memory that runs out, pictures that are none, models that are none, and poison."""

import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from faults.checks import BrokenError, error_of, hold, result_of, until
from faults.rig import Rig, rig, tried
from hostile.outcome import Outcome, Suite
from local.faulty_orders import Order
from local.runpod_api import FINAL

#: parts and faults after which no other edit can be trusted
SICK = (
    *(
        ("transformer", fault)
        for fault in (
            "device_assert",
            "illegal_access",
            "launch",
            "ecc",
            "cublas",
            "cudnn",
            "cusolver",
            "nvml",
            "triton",
        )
    ),
    *((part, "device_assert") for part in ("text_encoder", "vae_encoder", "vae_decoder")),
)
#: those that concern one job alone
HARMLESS = (
    *((part, "oom") for part in ("text_encoder", "vae_encoder", "transformer", "vae_decoder")),
    ("transformer", "host_oom"),
    ("transformer", "value"),
    ("transformer", "unknown"),
    ("transformer", "nan"),
    ("vae_decoder", "black"),
)
IN_A_ROW = 3  # edits without memory
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
POISON = {"width": 512, "height": 512}
LIVES = 2  # of the worker, in which a job is done that came with one that ends its workers
MOST_LIVES = 12  # in which that one is answered


def devices(_candidate: str) -> Iterator[Outcome]:
    """S12."""
    with rig() as on:
        for part, fault in SICK:
            yield tried(on, f"{fault} in {part}", partial(sick, on, part, fault))
        for part, fault in HARMLESS:
            yield tried(on, f"{fault} in {part}", partial(harmless, on, part, fault))
        yield tried(on, "no memory three times in a row", partial(_in_a_row, on))
        yield tried(on, "no memory twice, and twice again", partial(_twice, on))
        for what in ("no weights", "half the weights", "no index"):
            yield tried(on, f"a model with {what}", partial(_broken, on, what))
        for deed in ("kill", "segfault", "exit"):
            yield tried(on, f"a job that ends its worker: {deed}", partial(poisoned, on, deed))


def sick(on: Rig, part: str, fault: str) -> None:
    """The job fails, and may be tried again; its process does no other, and the one behind it is not lost."""
    encoded, count = on.calls("text_encoder"), len(on.api.jobs)
    on.order(Order("text_encoder", "hang"))
    # With guidance each part of the model runs twice.
    request = on.request(f"{fault} in {part} {count}", true_cfg_scale=4.0)
    job = on.submit(request)
    until(lambda: on.calls("text_encoder") > encoded, "the model runs")
    behind = on.submit(on.request(f"behind {fault} in {part} {count}"))
    on.reaches(behind, "queue")
    on.order(Order(part, fault))
    error = error_of(on.finished(job), "ModelError")
    hold(error["details"]["retryable"], "the caller is not told to try again")
    hold(on.refreshes(job), "the answer does not ask for another worker")
    code, left = on.ends()
    hold(code > 0, f"the process ended with {code}")
    hold(not left, f"left behind: {', '.join(left)}")
    hold(on.calls("text_encoder") - encoded <= 2, "the sick process began another edit")
    hold(on.api.jobs[behind].status not in FINAL, "the job behind was answered by the sick process")
    on.order(None)
    on.replace_worker()
    result_of(on.finished(behind))
    result_of(on.run(request))


def harmless(on: Rig, part: str, fault: str) -> None:
    """The job fails and leaves no picture; its process does the next."""
    before, process = on.results(), on.process
    on.order(Order(part, fault))
    request = on.request(f"{fault} in {part} {len(on.api.jobs)}")
    job = on.submit(request)
    error_of(on.finished(job), "ModelError")
    hold(not on.refreshes(job), "the answer asks for another worker")
    hold(not any(key.endswith(".png") for key in on.results() - before), "a picture was stored")
    result_of(on.run(request))
    hold(process is on.process and process is not None and process.poll() is None, "the process ended")


def _in_a_row(on: Rig) -> None:
    on.order(Order("transformer", "oom", times=None))
    for number in range(1, IN_A_ROW + 1):
        job = on.submit(on.request(f"in a row {number}"))
        error_of(on.finished(job), "ModelError")
        hold(
            on.refreshes(job) == (number == IN_A_ROW), f"another worker is asked for: {on.refreshes(job)}, at {number}"
        )
    on.ends()
    on.order(None)
    on.replace_worker()
    result_of(on.run(on.request("after some in a row")))


def _twice(on: Rig) -> None:
    for number in range(IN_A_ROW - 1):
        harmless(on, "transformer", "oom")
        on.order(Order("transformer", "oom"))
        job = on.submit(on.request(f"twice {number}"))
        error_of(on.finished(job), "ModelError")
        hold(not on.refreshes(job), "the answer asks for another worker")


def _broken(on: Rig, what: str) -> None:
    """The worker does not start."""
    with TemporaryDirectory() as folder:
        model = Path(shutil.copytree(on.folder / "model", Path(folder) / "model"))
        weights = model / WEIGHTS
        if what == "no weights":
            weights.unlink()
        elif what == "half the weights":
            weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        else:
            (model / "model_index.json").unlink()
        said = on.refuses(MODEL_ID=str(model), MODEL_CLASS="QwenImageEditPipeline")
        hold(bool(said) and "\n" not in said, f"it says {said}")


def poisoned(on: Rig, deed: str) -> None:
    """A job that ends every worker that does it, and one that came with it and is innocent."""
    least = POISON["width"] * POISON["height"] * 3
    on.order(Order("vae_encoder", deed, times=None, least=least))
    # So that both are taken together.
    if on.process:
        on.process.send_signal(signal.SIGSTOP)
    poison = on.submit(on.request(f"poison of {deed} {len(on.api.jobs)}", **POISON))
    innocent = on.submit(on.request(f"innocent of {deed} {len(on.api.jobs)}"))
    if on.process:
        on.process.send_signal(signal.SIGCONT)
    _answered(on, innocent, LIVES)
    result_of(on.finished(innocent))
    if deed == "kill":
        _answered(on, poison, MOST_LIVES)
        error_of(on.finished(poison), "ModelError")
    else:
        on.order(None)
        on.replace_worker()
        result_of(on.finished(poison))
    result_of(on.run(on.request(f"after poison of {deed} {len(on.api.jobs)}")))


def _answered(on: Rig, job_id: str, lives: int) -> None:
    """A job has an answer in so many lives of the worker."""
    for life in range(lives):
        until(lambda: on.api.jobs[job_id].status in FINAL or on.has_ended, "the job or the worker ends", 60)
        if on.api.jobs[job_id].status in FINAL:
            return
        if life + 1 < lives:
            on.replace_worker()
    raise BrokenError(f"not answered in {lives} lives of the worker")


SUITE = Suite(
    "S12", "a sick device: a ModelError, no other job, another process; less than that: the next job is done", devices
)
