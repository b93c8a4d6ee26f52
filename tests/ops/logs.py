"""Logs as workers write them, made up: the same seed makes the same log."""

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

BEGIN = datetime(2026, 11, 21, 5, 0, tzinfo=UTC)
PRICE = 0.00125  # US dollars a second
GB = 10**9
REASONS = (
    ("BadInput", "validate", "steps: Input should be less than or equal to 50", False),
    ("DownloadFailed", "fetch", "the source's host answered 404", False),
    ("DownloadFailed", "fetch", "the download took longer than {} s", True),
    ("CacheReadFailed", "lookup", "the bucket could not be read: SlowDown", True),
    ("ModelError", "edit", "out of memory: 1.{} GB were asked for", False),
    ("StorageError", "upload", "the bucket could not write: InternalError", True),
)


def stamp(seconds: float) -> str:
    """So many seconds after the beginning, as the worker writes it."""
    return (BEGIN + timedelta(seconds=seconds)).isoformat(" ", timespec="microseconds")


def line(seconds: float, message: str, **fields: Any) -> dict[str, Any]:
    """One line of the worker."""
    level = fields.pop("level", "INFO")
    return {"level": level, "logger": "qwen_worker.job", "message": message, "time": stamp(seconds), **fields}


def ready(seconds: float, **fields: Any) -> dict[str, Any]:
    """A start that took 33.1 s."""
    parts = {"settings": 0.2, "first_byte": 0.3, "bucket": 0.5, "imports": 4.1, "load": 30.2, "warm_up": 33.0}
    about = {
        "seconds_from_process_start": {**parts, "ready": 33.1},
        "model_id": "Qwen/Qwen-Image-Edit-2511",
        "preset": "fast-4",
        "profile": "bf16",
        "device": {"name": "NVIDIA H100 80GB HBM3", "memory_total": 85 * GB},
        "usd_per_second": PRICE,
        "versions": {"torch": "2.9.1", "diffusers": "0.38.0"},
    }
    return line(seconds, "worker ready", **{**about, **fields})


def done(seconds: float, **fields: Any) -> dict[str, Any]:
    """An edit of one picture: 8 s, 6 of them on the GPU."""
    timings = {
        "validate": 1.0, "fetch": 400.0, "lookup": 80.0, "decode": 60.0, "queue": 900.0, "edit": 6000.0,
        "encode": 250.0, "upload": 309.0, "total": 8000.0,
    }  # fmt: skip
    about = {
        "status": "success", "operation": "edit", "cache": "miss", "reused": [False], "sources": 1, "cache_hits": 0,
        "bytes_in": 2_000_000, "bytes_out": 3_000_000, "gpu_s": 6.0, "cost_usd": 6.0 * PRICE, "timings_ms": timings,
        "memory": {"host": 6 * GB, "gpu": 58 * GB, "gpu_peak": 66 * GB},
    }  # fmt: skip
    return line(seconds, "job done", **{**about, **fields})


def failed(seconds: float, **fields: Any) -> dict[str, Any]:
    """A source that is not there."""
    about = {
        "status": "error", "type": "DownloadFailed", "reason": "the source's host answered 404", "stage": "fetch",
        "retryable": False, "attempts": 1, "operation": "edit", "gpu_s": 0.0, "cost_usd": 0.0,
        "timings_ms": {"validate": 1.0, "fetch": 99.0, "total": 100.0}, "memory": {"host": 6 * GB},
    }  # fmt: skip
    return line(seconds, "job failed", level="WARNING", **{**about, **fields})


def text(lines: list[dict[str, Any]]) -> str:
    """As a file has them."""
    return "".join(json.dumps(one) + "\n" for one in lines)


def day(jobs: int, workers: int = 3, seed: int = 1) -> Iterator[dict[str, Any]]:
    """Workers that do so many jobs, with what goes wrong on a day; two lines a job, not by time."""
    chance = random.Random(seed)  # noqa: S311 - nothing secret
    for worker in range(workers):
        id_ = f"k3x9worker{worker:04d}"
        now = worker * 700.0
        host = 5.5 * GB
        for number in range(jobs // workers):
            if number % max(jobs // workers // 2, 1) == 0:
                now += 90
                load = chance.uniform(20, 45)
                parts = {
                    "settings": 0.2, "first_byte": 0.4, "bucket": 0.9, "imports": 4.3, "load": load,
                    "warm_up": load + 3, "ready": load + 3.1,
                }  # fmt: skip
                yield {**ready(now, seconds_from_process_start=parts), "worker": id_}
                host = 5.5 * GB
            now += chance.expovariate(1 / 12)
            host += chance.uniform(-1, 1.4) * 1e6
            for one in _job(chance, now, host):
                yield {**one, "worker": id_, "requestId": f"job-{worker}-{number}"}


def _job(chance: random.Random, now: float, host: float) -> Iterator[dict[str, Any]]:
    gpu = 58 * GB + chance.uniform(0, 2) * GB
    memory = {"host": int(host), "gpu": int(gpu), "gpu_peak": int(gpu + chance.uniform(5, 14) * GB)}
    if chance.random() < 0.05:
        kind, stage, reason, retryable = chance.choice(REASONS)
        why = {"type": kind, "stage": stage, "retryable": retryable, "reason": reason.format(chance.randint(10, 99))}
        why["operation"] = "unknown" if stage == "validate" else "edit"
        yield failed(now, memory=memory, **why)
        return
    operation = chance.choices(("edit", "inpaint", "background_replacement", "generate"), (70, 10, 12, 8))[0]
    there = chance.random() < 0.15
    gpu_s = 0.0 if there else chance.lognormvariate(1.7, 0.35)
    timings = {
        "validate": 1.0, "fetch": chance.uniform(100, 900), "lookup": chance.uniform(30, 120),
        "decode": chance.uniform(20, 120), "queue": 0.0 if there else chance.expovariate(1 / 1500),
        "edit": gpu_s * 1000, "encode": 0.0 if there else chance.uniform(100, 400),
        "upload": 0.0 if there else chance.uniform(150, 800),
    }  # fmt: skip
    hit = chance.random() < 0.4
    yield done(
        now, operation=operation, reused=[there] * chance.choice((1, 1, 1, 2)), gpu_s=gpu_s, cost_usd=gpu_s * PRICE,
        cache="hit" if hit else "miss", sources=int(operation != "generate"), memory=memory,
        cache_hits=int(hit and operation != "generate"),
        timings_ms={**timings, "total": sum(timings.values())},
    )  # fmt: skip
    yield line(now + 0.1, "answer delivered", attempts=1)
