"""A worker that cannot work says why, to the platform and in its log, and ends before it takes a job."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from local import worker
from local.bucket import LocalBucket
from local.runpod_api import LocalRunPod
from local.tiny_model import make, make_lora

pytestmark = pytest.mark.slow

LOUD = {"LOG_LEVEL": "DEBUG", "RUNPOD_LOG_LEVEL": "DEBUG"}
WRONG = "canary-of-a-secret-key"


def without_a_part(folder: Path) -> dict[str, str]:
    model = make(folder / "model")
    (model / "transformer" / "config.json").write_text("[]")
    return {"MODEL_ID": str(model)}


def fast(folder: Path, name: str) -> dict[str, str]:
    """With a LoRA that was made for a model of four blocks; those of the tests have two."""
    make_lora(folder / name, make(folder / "deep", layers=4), style="lightning", alpha=1)
    return {"PRESET": "fast-4", "LIGHTNING_LORA": json.dumps({"source": str(folder), "weight_file": name})}


@pytest.mark.parametrize(
    ("wrong", "check", "said"),
    [
        (lambda _: {"S3_BUCKET": "", **LOUD}, "settings_hold", "S3_BUCKET"),
        (lambda _: {"S3_SECRET_KEY": WRONG, **LOUD}, "bucket_works", "SignatureDoesNotMatch"),
        (without_a_part, "model_loads", "cannot be loaded"),
        (lambda folder: fast(folder, "8steps.safetensors"), "settings_hold", "it was distilled to 8 steps"),
        (lambda folder: fast(folder, "4steps.safetensors"), "model_loads", "the LoRA lightning cannot be loaded"),
    ],
    ids=["settings", "secret", "model", "steps of a lora", "lora of another model"],
)
def test_an_unfit_worker_ends_before_its_first_job(
    tiny: Path,
    shared_bucket: LocalBucket,
    tmp_path: Path,
    wrong: Callable[[Path], dict[str, str]],
    check: str,
    said: str,
) -> None:
    """Exit code 1, the platform told, one critical line, no secret; and no model is loaded for a bucket that fails."""
    log = tmp_path / "worker.log"
    with LocalRunPod() as api:
        parts = (shared_bucket.environment, api.worker_environment(), wrong(tmp_path))
        process = worker.start(worker.environment(tiny, *parts), log)
        try:
            code = process.wait(120)
        finally:
            worker.end_group(process)
        takes, ping = api.takes, api.last_ping
    lines: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    (critical,) = (line for line in lines if line["level"] == "CRITICAL")

    assert (code, takes) == (1, 0)
    assert (ping["status"], ping["check"]) == ("unhealthy", check)
    assert said in ping["reason"]
    assert critical["check"] == check
    assert said in critical["message"]
    assert "exception" not in critical
    assert [line["message"] for line in lines if said in json.dumps(line) and "exception" not in line] == [
        critical["message"]
    ]
    assert "model ready" not in log.read_text()
    assert WRONG not in log.read_text() + json.dumps(ping) + log.with_suffix(".err").read_text()
