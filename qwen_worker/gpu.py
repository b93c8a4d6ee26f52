"""The turns of jobs on the GPU: one at a time, and none after it has failed."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Protocol

from PIL import Image

from qwen_worker.errors import ModelError
from qwen_worker.intake import Intake
from qwen_worker.ledger import Ledger
from qwen_worker.prepared import Prepared
from qwen_worker.presets import PresetName
from qwen_worker.profiles import ProfileName
from qwen_worker.request import ImageRequest
from qwen_worker.schema import Size
from qwen_worker.stopwatch import Stopwatch
from qwen_worker.threads import off

log = logging.getLogger(__name__)

STUCK_S = 60.0  # a step that has not ended so long after its job never will


class Editor(Protocol):
    """What the model room offers: qwen_worker.model.edit.Editor."""

    model_id: str
    model_revision: str
    grid: int
    loras: Mapping[str, str]  # name → source@revision/file
    preset: PresetName
    profile: ProfileName
    making: Mapping[str, Any]  # what else decides a picture

    def made_by(self, request: ImageRequest) -> tuple[str, str]:
        """Id and revision of the model that makes this request's picture."""

    def check(self, request: ImageRequest, canvas: Size, references: Sequence[Size]) -> None:
        """Refuse what the model cannot do with pictures of these sizes; raises BadInput."""

    def ready(self, request: ImageRequest, references: Sequence[Image.Image], mask: Image.Image | None) -> Any:
        """All that can be computed of the pictures without the GPU."""

    def edit(
        self,
        request: ImageRequest,
        canvas: Size,
        ready: Any,
        cancelled: threading.Event,
        told: Callable[[int, int], None],
        left_s: float,
    ) -> Any:
        """Run the model, for the seconds left; tells the passes done and those in all; raises ModelError."""

    def picture(self, values: Any, ready: Any) -> Image.Image:
        """What `edit` made; raises ModelError."""


class _UnfitError(Exception):
    """An edit before this one has shown that there can be no more."""


class GPU:
    """The model's turns.

    Args:
        editor: its `edit` is only ever called on `thread`.
        thread: one.
        io: for what else is to be done.
        intake: given up when there can be no more turns.
        ledger: told how long each turn was.
    """

    def __init__(self, editor: Editor, thread: Executor, io: Executor, intake: Intake, ledger: Ledger) -> None:
        self._editor = editor
        self._thread = thread
        self._io = io
        self._intake = intake
        self._ledger = ledger
        self._stuck_s = STUCK_S
        self._unfit = False  # the device, or this process, can do no more edits

    async def edit(
        self, request: ImageRequest, prepared: Prepared, watch: Stopwatch, reserve_s: float = 0.0
    ) -> Image.Image:
        """The picture that the model makes; an empty mask costs none of its time.

        `reserve_s`: of the job's time, for storing it, beside what is always left.

        Raises:
            ModelError: it cannot, or not in time.
            asyncio.CancelledError: an edit before this one has shown that this process can do no more.
        """
        loop = asyncio.get_running_loop()
        cancelled, running = threading.Event(), threading.Event()
        canvas = prepared.plan.target.canvas

        def turn() -> Any:
            if self._unfit:
                raise _UnfitError
            left_s = watch.left - reserve_s
            if left_s <= 0:
                raise ModelError("the worker was busy for too long: try again", retryable=True)
            running.set()
            watch.begin("edit")
            before_s = watch.spent.gpu_s
            try:
                with watch.spent.turn():
                    return self._editor.edit(request, canvas, prepared.ready, cancelled, watch.step, left_s)
            except ModelError as error:
                # Here, in the one thread of the model: the next job's turn comes at once.
                if error.refresh_worker:
                    self._unfit = True
                    # Whether or not somebody still waits for this job's answer.
                    with contextlib.suppress(RuntimeError):  # of a loop that has ended
                        loop.call_soon_threadsafe(self._intake.give_up)
                raise
            finally:
                self._ledger.turn(watch.spent.gpu_s - before_s)
                running.clear()

        watch.begin("queue")
        if prepared.is_empty:
            # No GPU time is spent on what nobody would see.
            watch.begin("edit")
            return prepared.references[0]
        try:
            made = await off(self._thread, turn)
            return await off(self._io, self._editor.picture, made, prepared.ready)
        except _UnfitError:
            # Without an answer the platform gives the job to another worker.
            raise asyncio.CancelledError from None
        finally:
            # A job that was stopped must not keep the GPU from the next one.
            cancelled.set()
            if running.is_set():
                loop.call_later(self._stuck_s, self._give_up_on, running)

    def _give_up_on(self, running: threading.Event) -> None:
        if running.is_set():
            log.critical("an edit does not end although its job is gone")
            self._unfit = True
            self._intake.give_up()
