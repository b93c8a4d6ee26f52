"""The way of a request: sources → pictures → edit → file → bucket. Raises WorkerError only, where it foresees."""

import asyncio
import base64
import contextlib
import json
import math
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakValueDictionary

from PIL import Image

from qwen_worker.archive import Archive, Finished
from qwen_worker.errors import StorageError, WorkerError
from qwen_worker.images.deliver import deliver, deliver_new
from qwen_worker.images.encode import encode, largest
from qwen_worker.images.geometry import Plan, plan
from qwen_worker.images.masks import fitted, in_cells
from qwen_worker.originals import Original, Originals
from qwen_worker.request import ImageRequest, Knobs, bad_input
from qwen_worker.result import Geometry, ImageResult, Images, Link, Meta, Picture, Timings
from qwen_worker.schema import Size
from qwen_worker.sources import Source
from qwen_worker.stopwatch import Stopwatch
from qwen_worker.threads import off
from qwen_worker.upload import Uploader

INLINE_LIMIT = 10_000_000  # bytes of an answer: RunPod's documented limit for a payload of /run
META_ROOM = 8192  # bytes of a result that is not its file and not its prompts: more than the longest has


class Editor(Protocol):
    """What the model room offers: qwen_worker.model.edit.Editor."""

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
    ) -> Image.Image:
        """Make the picture; tells the passes done and those in all; raises ModelError."""


@dataclass(frozen=True)
class Prepared:
    """The pictures as the model gets them; `mask` is of the result, `cells` is the same as the model gets it."""

    originals: Sequence[Original]
    plan: Plan
    references: Sequence[Image.Image]
    mask: Image.Image | None
    cells: Image.Image | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Done:
    """One picture of a job; `data` is its file, unless it was stored before."""

    finished: Finished
    data: bytes | None


class Service:
    """Makes pictures, for several jobs at a time, of which one at a time is on the GPU.

    Args:
        originals: addresses → pictures.
        editor: pictures → picture; only ever called on `gpu`.
        archive: where results go, and where they are found again.
        uploader: for callers who want a result in a place of their own.
        io: threads for the network and for pictures.
        gpu: the one thread of the model.
        max_output_pixels: of a result.
    """

    def __init__(
        self,
        originals: Originals,
        editor: Editor,
        archive: Archive,
        uploader: Uploader,
        *,
        io: Executor,
        gpu: Executor,
        max_output_pixels: int,
    ) -> None:
        self._originals = originals
        self._editor = editor
        self._archive = archive
        self._uploader = uploader
        self._io = io
        self._gpu = gpu
        self._max_output_pixels = max_output_pixels
        self._running: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def presign(self, object_key: str) -> Link:
        """A fresh link to a result; errors as Archive.presign."""
        return await off(self._io, self._archive.presign, object_key)

    async def images(self, request: ImageRequest, job_id: str, watch: Stopwatch) -> Images:
        """Make the pictures that a request asks for, or find them where they were made before.

        Raises:
            WorkerError: BadInput, DownloadFailed, CacheReadFailed, ModelError or StorageError, if there is no picture.
        """
        if request.upload_url:
            await off(self._io, self._uploader.check, request.upload_url)
        watch.begin("fetch")
        sources = await self._originals.fetched(request)
        digest = self._digest(request, sources)
        watch.begin("lookup")
        async with self._alone(digest):
            known = await off(self._io, self._archive.find, digest)
            done, failure = await self._all(request, digest, job_id, sources, known, watch)
        warnings = [*request.warnings, *([_told(failure, request, len(done))] if failure else [])]
        _check_answer(request, [one.finished.size for one in done])
        watch.begin("upload")
        hit = all(source.hit for source in sources)
        changed = {"cache": ("hit" if hit else "miss") if sources else None}
        results = [await self._result(request, one, warnings, changed, watch) for one in done]
        return Images(results=tuple(results), refresh_worker=failure is not None and failure.refresh_worker)

    def _digest(self, request: ImageRequest, sources: Sequence[Source]) -> str:
        images, masks = sources[: len(request.images)], sources[len(request.images) :]
        loras = [self._editor.loras[name] for name in request.lora]
        maker = json.dumps([*self._editor.made_by(request), loras, dict(self._archive.versions)], sort_keys=True)
        return request.digest([one.sha256 for one in images], [one.sha256 for one in masks], maker)

    @contextlib.asynccontextmanager
    async def _alone(self, digest: str) -> AsyncIterator[None]:
        """Of jobs that ask for the same, one works, and the others find what it made."""
        lock = self._running.setdefault(digest, asyncio.Lock())
        async with lock:
            yield

    async def _all(
        self,
        request: ImageRequest,
        digest: str,
        job_id: str,
        sources: Sequence[Source],
        known: Mapping[int, Finished],
        watch: Stopwatch,
    ) -> tuple[list[Done], WorkerError | None]:
        """One after the other, up to the first that fails; that is an error only if it has none before it."""
        numbers = range(request.num_images)
        found = {number: known[number] for number in numbers if number in known and request.reuse}
        prepared = await self._prepared(request, sources, watch) if len(found) < len(numbers) else None
        if prepared is None:
            # Of another address perhaps, but the same bytes: they were decoded when the result was made.
            meta = found[0].meta
            self._originals.keep(sources, [*meta.sources, *filter(None, [meta.mask])])
        finished = dict(known)
        done: list[Done] = []
        for number in numbers:
            if number in found or prepared is None:
                done.append(Done(_again(found[number]), None))
                continue
            watch.image(number + 1, len(numbers))
            try:
                one = await self._one(request.numbered(number), number, digest, job_id, prepared, watch)
            except WorkerError as error:
                if not done:
                    raise
                return done, error
            done.append(one)
            finished[number] = one.finished
            # At once: what is finished is found again, whatever becomes of this job.
            await off(self._io, self._archive.remember, digest, finished)
        return done, None

    async def _prepared(self, request: ImageRequest, sources: Sequence[Source], watch: Stopwatch) -> Prepared:
        """Everything that can be refused is refused here, before the GPU's turn."""
        watch.begin("decode")
        originals = await self._originals.decoded(request, sources)
        watch.begin("validate")
        sizes = [original.image.size for original in originals[: len(request.images)]]
        planned = plan(request, sizes, grid=self._editor.grid, max_output_pixels=self._max_output_pixels)
        self._editor.check(request, planned.target.canvas, [one.canvas for one in planned.references])
        bound = largest(planned.delivered, request.output_format, request.output_quality)
        _check_answer(request, [bound] * request.num_images)
        self._originals.keep(sources, [original.told() for original in originals])
        watch.begin("decode")
        return await off(self._io, self._prepare, request, planned, originals)

    def _prepare(self, request: ImageRequest, planned: Plan, originals: Sequence[Original]) -> Prepared:
        told = tuple(
            f"{name}: {said}"
            for name, original in zip(request.names, originals, strict=True)
            for said in original.decoded.warnings
        )
        images, masks = originals[: len(request.images)], originals[len(request.images) :]
        pairs = zip(planned.references, images, strict=True)
        references = [placement.prepare(original.image) for placement, original in pairs]
        if not masks:
            return Prepared(originals, planned, references, None, None, told)
        mask, warnings = fitted(masks[0].image, planned.delivered)
        # Averaged over each pixel: what rings, or is drawn out of neighbours, would make the mask larger.
        canvas = planned.target.prepare(mask, Image.Resampling.BOX)
        cells = in_cells(canvas, self._editor.grid // 2)
        return Prepared(originals, planned, references, mask, cells, (*told, *warnings))

    async def _one(
        self, request: ImageRequest, number: int, digest: str, job_id: str, prepared: Prepared, watch: Stopwatch
    ) -> Done:
        made = await self._on_gpu(request, prepared, watch)
        watch.begin("encode")
        image, geometry, warnings = await off(self._io, _delivered, request, prepared, made)
        encoded = await off(self._io, encode, image, request.output_format, request.output_quality)
        watch.begin("upload")
        key = await off(self._io, self._archive.store, digest, job_id, number, encoded)
        model_id, revision = self._editor.made_by(request)
        told = [original.told() for original in prepared.originals]
        meta = Meta(
            model_id=model_id,
            model_revision=revision,
            **request.model_dump(include=set(Knobs.model_fields)),
            warnings=(*prepared.warnings, *warnings),
            cache=None,
            reused=False,
            sources=tuple(told[: len(request.images)]),
            mask=told[-1] if request.mask else None,
            output=Picture(width=image.width, height=image.height, format=request.output_format, sha256=encoded.sha256),
            geometry=geometry,
            timings_ms=Timings.model_validate(watch.milliseconds()),
        )
        finished = Finished(key=key, content_type=encoded.content_type, size=len(encoded.data), meta=meta)
        return Done(finished, encoded.data)

    async def _on_gpu(self, request: ImageRequest, prepared: Prepared, watch: Stopwatch) -> Image.Image:
        cancelled = threading.Event()
        canvas = prepared.plan.target.canvas

        def edit() -> Image.Image:
            watch.begin("edit")
            return self._editor.edit(request, canvas, prepared.references, prepared.cells, cancelled, watch.step)

        watch.begin("queue")
        if prepared.cells and not prepared.cells.getbbox():
            # The mask is empty: no GPU time is spent on what nobody would see.
            watch.begin("edit")
            return prepared.references[0]
        try:
            return await off(self._gpu, edit)
        finally:
            # A job that was stopped must not keep the GPU from the next one.
            cancelled.set()

    async def _result(
        self,
        request: ImageRequest,
        done: Done,
        warnings: Sequence[str],
        changed: Mapping[str, object],
        watch: Stopwatch,
    ) -> ImageResult:
        finished, data = done.finished, done.data
        if data is None and (request.inline or request.upload_url):
            data = await off(self._io, self._archive.read, finished)
        uploaded = None
        if request.upload_url:
            uploaded, told = await self._upload(request.upload_url, data or b"", finished.content_type)
            warnings = [*warnings, *told]
        said = finished.meta
        times = {"timings_ms": Timings.model_validate(watch.milliseconds())} if said.reused else {}
        meta = said.model_copy(update={"warnings": (*warnings, *said.warnings), **changed, **times})
        link = self._archive.link(finished.key, finished.content_type)
        url = (
            f"data:{finished.content_type};base64,{base64.b64encode(data or b'').decode()}" if request.inline else None
        )
        return ImageResult(**link.model_dump(), data_url=url, uploaded=uploaded, meta=meta)

    async def _upload(self, url: str, data: bytes, content_type: str) -> tuple[bool, list[str]]:
        """The result is in the bucket: that it did not arrive elsewhere too is said, and loses nothing."""
        try:
            await off(self._io, self._uploader.put, url, data, content_type)
        except StorageError as error:
            return False, [error.message]
        return True, []


def _delivered(
    request: ImageRequest, prepared: Prepared, made: Image.Image
) -> tuple[Image.Image, Geometry | None, tuple[str, ...]]:
    if not request.images:
        return deliver_new(prepared.plan, made), None, ()
    source = prepared.originals[request.size_from].image
    delivery = deliver(request, prepared.plan, source, prepared.mask, made)
    return delivery.image, delivery.geometry, delivery.warnings


def _again(finished: Finished) -> Finished:
    return finished.model_copy(update={"meta": finished.meta.model_copy(update={"reused": True})})


def _told(failure: WorkerError, request: ImageRequest, done: int) -> str:
    return (
        f"{done} of {request.num_images} pictures were made, then {failure.type}: {failure.message}. Send the same "
        f"request with seed {request.seed} for the others: those that are there are reused"
    )


def _check_answer(request: ImageRequest, sizes: Sequence[int]) -> None:
    """Refuse to promise an answer that RunPod would lose.

    Args:
        request: may ask for files in the answer.
        sizes: of the files, in bytes.

    Raises:
        BadInput: the answer could be too long.
    """
    if not request.inline:
        return
    files = [math.ceil(size / 3) * 4 for size in [sizes[0], *sizes]]  # the first is told twice: `result`, `results`
    prompts = len(json.dumps([request.prompt, request.negative_prompt]))
    answer = sum(files) + len(files) * (META_ROOM + prompts)
    if answer > INLINE_LIMIT:
        problem = (
            f"the answer could have {answer} bytes, and RunPod keeps {INLINE_LIMIT}: ask for url, for a smaller size, "
            "fewer pictures, webp, or jpeg of a quality below 90"
        )
        raise bad_input([{"field": "output", "problem": problem}])
