"""Jobs an hour of a whole worker with a real model, and how long it takes from its start to its first answer.

The jobs are there before the worker starts, and the files of its model are not in memory. All around it is as in
`bench.throughput`; ours has PRESET=fast-4, and the plain form (`bench.plain_worker`) the same LoRA.
"""

import itertools
import json
import os
from pathlib import Path
from typing import Any

from bench import full_size
from bench.throughput import InvalidRunError, make_sources, served
from local import page_cache
from local.worker import HANDLER
from qwen_worker import shards

STEPS = 4
TINY_SIDE = 256  # pixels


def measured(model: Path, count: int, *, tiny: bool, plain: bool) -> dict[str, Any]:
    """One worker does so many jobs.

    Args:
        model: folder that `bench.full_size` wrote.
        count: of jobs; each has a picture of its own.
        tiny: on a CPU, with small results.
        plain: not our worker, but the plain form.

    Raises:
        InvalidRunError: not every job was done, anew.
    """
    files = [file for part in ("transformer", "text_encoder", "vae") for file in shards.files(model / part)]
    page_cache.drop(files)
    cached = sum(int(page_cache.cached(file).sum()) for file in files) * os.sysconf("SC_PAGESIZE")
    said: dict[str, Any] = {"num_inference_steps": STEPS}
    said |= {"width": TINY_SIDE, "height": TINY_SIDE} if tiny else {"size": "native"}
    lora = full_size.LORA.format(STEPS)
    variables = {"PRESET": "fast-4", "LIGHTNING_LORA": json.dumps({"source": str(model), "weight_file": lora})}
    if plain:
        variables = {"PLAIN_MODEL": str(model), "PLAIN_LORA": str(model / lora)}
        variables |= {"PLAIN_SIDE": str(TINY_SIDE)} if tiny else {}
    if not tiny:
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        variables |= {"ALLOW_CPU": "0", "CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": str(os.cpu_count())}
    program = ("-m", "bench.plain_worker") if plain else HANDLER
    done = served(program, model, make_sources(count), said, variables)
    failed = [job.error for job in done.jobs if job.status != "COMPLETED"]
    if failed or done.fetched != count:
        raise InvalidRunError(f"{count} jobs, {done.fetched} downloads, failed: {failed}")
    metas = [] if plain else [job.output["result"]["meta"] for job in done.jobs]
    if any(meta["reused"] or meta["cache"] != "miss" for meta in metas):
        raise InvalidRunError("a job was answered from the cache")
    finished = sorted(job.finished for job in done.jobs if job.finished)
    return {
        "jobs": count,
        "cached_gb_before": cached / 1e9,
        "first_picture_s": finished[0] - done.started,
        "jobs_an_hour": 3600 * (count - 1) / (finished[-1] - finished[0]),
        "between_answers_s": [later - one for one, later in itertools.pairwise(finished)],
        "edit_ms": [meta["timings_ms"]["edit"] for meta in metas],
    }
