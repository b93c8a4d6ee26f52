"""The turns of jobs on the GPU: one at a time, and none after it has failed."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Protocol

from PIL import Image

from qwen_worker.errors import ModelError
from qwen_worker.prepared import Prepared
from qwen_worker.request import ImageRequest
from qwen_worker.schema import Size
from qwen_worker.stopwatch import Stopwatch
from qwen_worker.threads import off


class Editor(Protocol):
    """What the model room offers: qwen_worker.model.edit.Editor."""

    model_id: str
    model_revision: str
    grid: int
    loras: Mapping[str, str]  # name → source@revision/file

    def made_by(self, request: ImageRequest) -> tuple[str, str]:
        """Id and revision of the model that makes this request's picture."""

    def check(self, request: ImageRequest, canvas: Size, references: Sequence[Size]) -> None:
        """Refuse what the model cannot do with pictures of these sizes; raises BadInput."""

    def edit(
        self,
        request: ImageRequest,
        canvas: Size,
        references: Sequence[Image.Image],
        mask: Image.Image | None,
        cancelled: threading.Event,
        told: Callable[[int, int], None],
        left_s: float,
    ) -> Image.Image:
        """Make the picture in the seconds left; tells the passes done and those in all; raises ModelError."""


class _UnfitError(Exception):
    """An edit before this one has shown that there can be no more."""


class GPU:
    """The model's turns.

    Args:
        editor: only ever called on `thread`.
        thread: one.
    """

    def __init__(self, editor: Editor, thread: Executor) -> None:
        self._editor = editor
        self._thread = thread
        self._unfit = False  # the device, or this process, can do no more edits

    async def edit(self, request: ImageRequest, prepared: Prepared, watch: Stopwatch) -> Image.Image:
        """The picture that the model makes; an empty mask costs none of its time.

        Raises:
            ModelError: it cannot, or not in time.
            asyncio.CancelledError: an edit before this one has shown that this process can do no more.
        """
        cancelled = threading.Event()
        canvas = prepared.plan.target.canvas

        def turn() -> Image.Image:
            if self._unfit:
                raise _UnfitError
            left_s = watch.left
            if left_s <= 0:
                raise ModelError("the worker was busy for too long: try again", retryable=True)
            watch.begin("edit")
            try:
                references, cells = prepared.references, prepared.cells
                return self._editor.edit(request, canvas, references, cells, cancelled, watch.step, left_s)
            except ModelError as error:
                # Here, in the one thread of the model: the next job's turn comes at once.
                self._unfit = error.refresh_worker
                raise

        watch.begin("queue")
        if prepared.is_empty:
            # No GPU time is spent on what nobody would see.
            watch.begin("edit")
            return prepared.references[0]
        try:
            return await off(self._thread, turn)
        except _UnfitError:
            # Without an answer the platform gives the job to another worker.
            raise asyncio.CancelledError from None
        finally:
            # A job that was stopped must not keep the GPU from the next one.
            cancelled.set()
