"""A whole worker in this process, on real parts: a bucket, an image host and a tiny model."""

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hostile.parts import settings_of
from hostile.pictures.parts import file_of, photo
from local import tiny_model
from local.bucket import LocalBucket
from local.web import ImageHost
from qwen_worker.build import assemble, build_editor
from qwen_worker.job import Jobs
from qwen_worker.model.edit import Editor
from qwen_worker.settings import Settings


@dataclass(frozen=True)
class Bench:
    """The parts.

    Attributes:
        model: its folder.
    """

    jobs: Jobs
    editor: Editor
    settings: Settings
    model: Path
    bucket: LocalBucket
    host: ImageHost

    def result(self, **said: Any) -> dict[str, Any]:
        """The result of a job that must succeed.

        Raises:
            RuntimeError: it did not.
        """
        body = asyncio.run(self.jobs.answer({"id": "bench", "input": said})).body
        if body["status"] != "success":
            raise RuntimeError(f"a job failed: {body}")
        result: dict[str, Any] = body["result"]
        return result

    def source(self, seed: int, size: tuple[int, int]) -> str:
        """The address of a photograph of this size, in pixels, as JPEG."""
        grain = np.random.default_rng(seed).normal(0, 4, (size[1], size[0], 3))
        image = Image.fromarray((np.asarray(photo(*size)) + grain).clip(0, 255).astype(np.uint8))
        return self.host.put(f"/{seed}.jpg", file_of(image, "JPEG", quality=92))


@contextmanager
def bench(make: Callable[[Editor], Editor] = lambda editor: editor) -> Iterator[Bench]:
    """Start everything; `make` may put another editor around the model's."""
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalBucket(Path(folder) / "bucket") as bucket,
        ImageHost() as host,
    ):
        model = tiny_model.make(Path(folder) / "model")
        settings = settings_of(model, bucket.environment)
        editor = make(build_editor(settings))
        yield Bench(assemble(settings, editor), editor, settings, model, bucket, host)
