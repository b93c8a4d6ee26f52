"""The fixed set of edits by one model in one tuning, in a process of its own: what it took is given back with it."""

import logging
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image

from bench.edit_set import Edit
from bench.likeness import Picture
from qwen_worker.family import PipelineName, Row
from qwen_worker.images.geometry import place
from qwen_worker.imports import importing
from qwen_worker.request import ImageRequest, parse_image
from qwen_worker.schema import MAX_IMAGES, Rules, Size
from qwen_worker.settings import RUNPOD_VOLUME, volume_home
from qwen_worker.snapshots import own_cache
from qwen_worker.tuning import Tuning

TIMEOUT_S = 3600.0  # of one edit


@dataclass(frozen=True)
class Subject:
    """What is compared.

    Attributes:
        row: the model, which may be a folder.
        revision: of its repository.
        steps: of a request, where the preset has no number of its own.
        area: of a canvas in pixels; each picture keeps its shape.
        edits: the set.
        allow_cpu: it may be done without a GPU.
    """

    row: Row
    revision: str
    steps: int
    area: int
    edits: Sequence[Edit]
    allow_cpu: bool


@dataclass(frozen=True)
class Outcome:
    """What came of a variant.

    Attributes:
        state: "refused": the loader did not take it, or the GPU has too little memory; "failed": something else.
        reason: of both.
        pictures: of the edits, in their order.
        skipped: of each, passes of the model that the preset left out in part; None where it leaves out none.
        told: of device and model.
    """

    state: Literal["ran", "refused", "failed"]
    reason: str = ""
    pictures: Sequence[Picture] = ()
    skipped: Sequence[int] | None = None
    told: dict[str, Any] = field(default_factory=dict)


def run(subject: Subject, tuning: Tuning) -> Outcome:
    """All edits in a fresh process, which is gone afterwards."""
    # What the libraries warn of at each import is not about this model.
    quiet: dict[str, Any] = {"initializer": logging.disable, "initargs": (logging.WARNING,)}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), **quiet) as process:
        try:
            return process.submit(here, subject, tuning).result()
        except BrokenProcessPool:
            return Outcome("failed", "its process was killed, perhaps for want of the host's memory")


def here(subject: Subject, tuning: Tuning) -> Outcome:
    """All edits in this process."""
    with importing():
        import torch  # noqa: PLC0415

        from qwen_worker.errors import ModelError  # noqa: PLC0415
        from qwen_worker.model.hub import LoadError  # noqa: PLC0415
    try:
        return _edited(subject, tuning)
    except LoadError as error:
        return Outcome("refused", str(error))
    except torch.OutOfMemoryError as error:
        return Outcome("refused", f"the GPU ran out of memory while the model was loaded: {error}")
    except ModelError as error:
        small = isinstance(error.__cause__, torch.OutOfMemoryError)
        cause = f" ({type(error.__cause__).__name__}: {error.__cause__})" if error.__cause__ else ""
        return Outcome("refused" if small else "failed", f"{error}{cause}")
    except Exception as error:  # noqa: BLE001 - the other variants are still to come
        return Outcome("failed", f"{type(error).__name__}: {error}")


def _edited(subject: Subject, tuning: Tuning) -> Outcome:
    from local.edits import edited  # noqa: PLC0415
    from qwen_worker.model import skipping  # noqa: PLC0415
    from qwen_worker.model.device import device  # noqa: PLC0415
    from qwen_worker.model.edit import Editor  # noqa: PLC0415
    from qwen_worker.model.load import load  # noqa: PLC0415

    row = subject.row
    model = load(
        row.id,
        subject.revision,
        pipeline=cast("PipelineName", row.pipeline),
        token=os.environ.get("HF_TOKEN", ""),
        caches=_caches(),
        allow_cpu=subject.allow_cpu,
        tuning=tuning,
    )
    editor = Editor(model, timeout_s=TIMEOUT_S)
    if model.attention != "native" or model.compiled:
        editor.warm_up()  # which sees that nothing fell back
    rules = rules_of(subject, tuning)
    pictures, skipped = [], []
    for edit in subject.edits:
        request, canvas, references = asked(edit, rules, subject.area, editor.grid)
        pictures.append(np.asarray(edited(editor, request, canvas, references)))
        if tuning.preset.skips:
            skipped.append(skipping.skipped(model.pipeline.transformer))
    told = {
        "device": device()["name"],
        "capability": _capability(),
        "revision": model.revision,
        "attention": model.attention,
        "lightning": model.lightning,
    }
    return Outcome("ran", pictures=pictures, skipped=skipped if tuning.preset.skips else None, told=told)


def rules_of(subject: Subject, tuning: Tuning) -> Rules:
    """The defaults of a request, as a worker with this model and this preset has them."""
    steps = tuning.preset.distilled_steps
    return Rules(
        steps=steps or subject.steps,
        cfg_scale=1.0 if steps else subject.row.cfg_scale,
        max_steps=max(steps or 0, subject.steps),
        max_images=MAX_IMAGES if subject.row.takes_several else 1,
        masks=subject.row.takes_masks,
        preset=tuning.preset.name,
        distilled_steps=steps,
    )


def asked(edit: Edit, rules: Rules, area: int, grid: int) -> tuple[ImageRequest, Size, list[Image.Image]]:
    """The request of an edit, its canvas, and its pictures on theirs, as a job of a worker would have them.

    Args:
        edit: of the set.
        rules: of the worker.
        area: of a canvas in pixels.
        grid: what its sides are multiples of.
    """
    pictures = edit.pictures[: rules.max_images]
    said = {
        "image_urls": [f"https://picture.example/{number}" for number in range(len(pictures))],
        "prompt": edit.prompt,
        "seed": edit.seed,
        "size": "native",
    }
    placements = [place(picture.size, area, grid) for picture in pictures]
    references = [placement.prepare(picture) for placement, picture in zip(placements, pictures, strict=True)]
    return parse_image(said, job_id="quality", rules=rules), placements[0].canvas, references


def _caches() -> list[Path]:
    """Where a worker looks for models."""
    named = os.environ.get("HF_HOME")
    homes = filter(None, (Path(named) if named else None, volume_home(RUNPOD_VOLUME)))
    return list(dict.fromkeys([*(home / "hub" for home in homes), own_cache()]))


def _capability() -> str | None:
    """Of the GPU, as in 9.0; None without one."""
    import torch  # noqa: PLC0415

    return ".".join(map(str, torch.cuda.get_device_capability())) if torch.cuda.is_available() else None
