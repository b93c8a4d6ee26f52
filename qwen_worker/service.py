"""The way of a request: sources → pictures → edit → file → bucket. Raises WorkerError only, where it foresees."""

import asyncio
import base64
import contextlib
import contextvars
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from qwen_worker.archive import Archive, Finished, Manifest, word_of
from qwen_worker.company import Company, Member
from qwen_worker.deadlines import cut_when_cancelled, uncut
from qwen_worker.errors import ModelError, StorageError
from qwen_worker.gpu import GPU, Editor
from qwen_worker.images.encode import encode, largest
from qwen_worker.images.geometry import plan
from qwen_worker.inline import check_answer
from qwen_worker.intake import Intake
from qwen_worker.ledger import Ledger
from qwen_worker.originals import Originals, SpoiltError
from qwen_worker.prepared import Prepared, prepare
from qwen_worker.request import ImageRequest, Knobs
from qwen_worker.result import CacheState, ImageResult, Link, Meta, Picture, Timings
from qwen_worker.sources import Source
from qwen_worker.stopwatch import Stopwatch
from qwen_worker.threads import off
from qwen_worker.upload import Uploader

log = logging.getLogger(__name__)

SETTLE_S = 1.0  # that a failure's answer waits for its traces to be gone
MOST_STARTS = 10  # that came to nothing, of one request: each costs the start of a worker


@dataclass(frozen=True)
class _Work:
    """One job; `finish` is called with each of its pictures as soon as it is stored."""

    request: ImageRequest
    digest: str
    job_id: str
    sources: Sequence[Source]
    watch: Stopwatch
    finish: Callable[["Done"], None]

    @property
    def job(self) -> str:
        """What the manifest calls it."""
        return word_of(self.job_id)


@dataclass(frozen=True)
class Done:
    """One picture of a job; `data` is its file, empty unless the request needs files."""

    finished: Finished
    data: bytes
    reused: bool


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
        ledger: counts the GPU's time, and knows its price.
        intake: closed while a job must be alone, given up when no more can be done.
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
        ledger: Ledger | None = None,
        intake: Intake | None = None,
    ) -> None:
        self._originals = originals
        self._editor = editor
        self._archive = archive
        self._uploader = uploader
        self._io = io
        intake = intake or Intake()
        self._ledger = ledger or Ledger()
        self._gpu = GPU(editor, gpu, io, intake, self._ledger)
        self._max_output_pixels = max_output_pixels
        self._company = Company(intake)
        self._running: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._settling: dict[str, Future[None]] = {}  # what takes a failed job's traces away

    async def presign(self, object_key: str) -> Link:
        """A fresh link to a result; errors as Archive.presign."""
        return await off(self._io, self._archive.presign, object_key)

    async def images(
        self, request: ImageRequest, job_id: str, watch: Stopwatch, deliver: Callable[[ImageResult], None]
    ) -> None:
        """Make the pictures that a request asks for, or find them where they were made before.

        Args:
            request: what to make.
            job_id: names what is made.
            watch: told of the stages.
            deliver: called with each result as soon as it is stored, in the order of their seeds.

        Raises:
            WorkerError: BadInput, DownloadFailed, CacheReadFailed, ModelError or StorageError. What was delivered
                by then holds.
        """
        if request.upload_url:
            await off(self._io, self._uploader.check, request.upload_url)
        if self._company.is_closed:
            watch.begin("queue")
        async with self._company.present() as member:
            try:
                await self._images(request, job_id, watch, deliver, member)
            except SpoiltError:
                await self._images(request, job_id, watch, deliver, member, anew=True)

    async def _images(
        self,
        request: ImageRequest,
        job_id: str,
        watch: Stopwatch,
        deliver: Callable[[ImageResult], None],
        member: Member,
        *,
        anew: bool = False,
    ) -> None:
        watch.begin("fetch")
        sources = await self._originals.fetched(request, anew=anew)
        hits = [source.hit for source in sources]
        watch.spent.sources, watch.spent.cache_hits = len(hits), sum(hits)
        watch.spent.bytes_in = sum(len(source.data) for source in sources)
        cache: CacheState = ("hit" if all(hits) else "miss") if hits else None
        digest = self._digest(request, sources)

        def finish(done: Done) -> None:
            if not request.upload_url:
                deliver(self._result(request, done, cache, watch))

        work = _Work(request, digest, job_id, sources, watch, finish)
        async with self._only(work, member):
            done = await self._done(work, member)
        if request.upload_url:
            # A single result; and nobody who asks for the same waits for the caller's host.
            watch.begin("upload", self._uploader.timeout_s)
            told = await self._upload(request.upload_url, done, watch)
            deliver(self._result(request, done, cache, watch, uploaded=not told, warnings=told))

    @contextlib.asynccontextmanager
    async def _only(self, work: _Work, member: Member) -> AsyncIterator[None]:
        """Of jobs that ask for the same, one works, and the others find what it made."""
        lock = self._running.setdefault(work.digest, asyncio.Lock())
        if lock.locked():
            work.watch.begin("queue")
        self._company.leave(member)
        async with lock:
            await self._company.enter(member)
            # What a job that failed has left in the bucket is gone before the next one looks.
            if settling := self._settling.get(work.digest):
                await asyncio.wait([asyncio.wrap_future(settling)])
            work.watch.begin("lookup")
            yield

    def _digest(self, request: ImageRequest, sources: Sequence[Source]) -> str:
        """Of all that decides the pictures of a request."""
        images, masks = sources[: len(request.images)], sources[len(request.images) :]
        # A picture made from nothing has seen parts of both models.
        models = [self._editor.made_by(request), (self._editor.model_id, self._editor.model_revision)]
        loras = [self._editor.loras[name] for name in request.lora]
        maker = json.dumps([models, loras, dict(self._editor.making), dict(self._archive.versions)], sort_keys=True)
        return request.digest([one.sha256 for one in images], [one.sha256 for one in masks], maker)

    async def _done(self, work: _Work, member: Member) -> Done:
        """The pictures of a request, one after the other; returns the last."""
        request = work.request
        known = await off(self._io, self._archive.find, work.digest)
        found = await self._found(work, known.finished)
        if len(found) == request.num_images:
            check_answer(request, [found[number].finished.size for number in range(request.num_images)])
            # Of another address perhaps, but the same bytes: they were decoded when the result was made.
            meta = found[0].finished.meta
            self._originals.keep(work.sources, [*meta.sources, *filter(None, [meta.mask])])
            for number in range(request.num_images):
                work.finish(found[number])
            return found[request.num_images - 1]
        async with contextlib.AsyncExitStack() as stack:
            if suspicion := known.started.get(work.job, 0):
                _check_starts(suspicion)
                work.watch.begin("queue")
                await stack.enter_async_context(self._company.alone(member, suspicion))
            prepared = await self._prepared(work, found)
            return await self._made(work, prepared, known, found)

    async def _made(self, work: _Work, prepared: Prepared, known: Manifest, found: Mapping[int, Done]) -> Done:
        """Make what was not found. Should the process end meanwhile, the manifest says that it was at it."""
        finished = dict(known.finished)
        others = {job: count for job, count in known.started.items() if job != work.job}
        started = {**others, work.job: known.started.get(work.job, 0) + 1}
        missing = work.request.num_images - len(found)
        try:
            await off(self._io, self._archive.begin, work.digest, finished, started)
            for number in range(work.request.num_images):
                if number in found:
                    done = found[number]
                else:
                    work.watch.image(number + 1, work.request.num_images)
                    done = await self._one(work, number, prepared)
                    # At once: what is finished is found again, whatever becomes of this job.
                    finished[number] = done.finished
                    missing -= 1
                    left = started if missing else others
                    await off(self._io, self._archive.remember, work.digest, finished, left)
                work.finish(done)
        except BaseException as error:
            # If the process goes on, it was not this job that ended it.
            if not (getattr(error, "refresh_worker", False) or work.watch.is_stuck):
                settling = self._settle(work.digest, finished, others)
                if not isinstance(error, asyncio.CancelledError):
                    await asyncio.wait([asyncio.wrap_future(settling)], timeout=SETTLE_S)
            raise
        return done

    def _settle(self, digest: str, finished: Mapping[int, Finished], started: Mapping[str, int]) -> "Future[None]":
        run = contextvars.copy_context().run
        settling = self._settling[digest] = self._io.submit(run, uncut, self._archive.settle, digest, finished, started)
        settling.add_done_callback(lambda _: self._settling.pop(digest, None))
        return settling

    async def _found(self, work: _Work, known: Mapping[int, Finished]) -> dict[int, Done]:
        """Those of the pictures that need not be made, each seen to be what it was."""
        found, request = {}, work.request
        for number in range(request.num_images):
            if request.reuse and number in known:
                work.watch.allow(self._archive.seconds(known[number].size))
                data = await off(self._io, self._archive.read, known[number])
                if data is not None:
                    found[number] = Done(known[number], data if request.needs_files else b"", reused=True)
        return found

    async def _prepared(self, work: _Work, found: Mapping[int, Done]) -> Prepared:
        """Everything that can be refused is refused here, before the GPU's turn."""
        request, sources = work.request, work.sources
        work.watch.begin("decode")
        originals = await self._originals.decoded(request, sources)
        images = [original.image.size for original in originals[: len(request.images)]]
        planned = plan(request, images, grid=self._editor.grid, max_output_pixels=self._max_output_pixels)
        self._editor.check(request, planned.target.canvas, [one.canvas for one in planned.references])
        bound = largest(planned.delivered, request.output_format, request.output_quality)
        sizes = [found[n].finished.size if n in found else bound for n in range(request.num_images)]
        check_answer(request, sizes)
        self._originals.keep(sources, [original.told() for original in originals])
        prepared = await off(self._io, prepare, request, planned, originals, self._editor.grid)
        ready = await off(self._io, self._editor.ready, request, prepared.references, prepared.cells)
        return replace(prepared, ready=ready)

    async def _one(self, work: _Work, number: int, prepared: Prepared) -> Done:
        request, watch = work.request.numbered(number), work.watch
        bound = largest(prepared.plan.delivered, request.output_format, request.output_quality)
        reserve_s = self._archive.seconds(bound) - self._archive.seconds()
        before_s = watch.spent.gpu_s
        made = await self._gpu.edit(request, prepared, watch, reserve_s)
        gpu_s = watch.spent.gpu_s - before_s
        watch.begin("encode")
        image, geometry, warnings = await off(self._io, prepared.delivered, request, made)
        encoded = await off(self._io, encode, image, request.output_format, request.output_quality)
        # And the manifest.
        watch.begin("upload", self._archive.seconds(len(encoded.data)) + self._archive.seconds())
        key = await off(self._io, self._archive.store, work.digest, work.job_id, number, encoded)
        model_id, revision = self._editor.made_by(request)
        told = [original.told() for original in prepared.originals]
        meta = Meta(
            model_id=model_id,
            model_revision=revision,
            preset=self._editor.preset,
            profile=self._editor.profile,
            **request.model_dump(include=set(Knobs.model_fields)),
            warnings=(*prepared.warnings, *warnings),
            cache=None,
            reused=False,
            sources=tuple(told[: len(request.images)]),
            mask=told[-1] if request.mask else None,
            output=Picture(width=image.width, height=image.height, format=request.output_format, sha256=encoded.sha256),
            geometry=geometry,
            gpu_s=round(gpu_s, 3),
            cost_usd=self._ledger.cost(gpu_s),
            timings_ms=Timings.model_validate(watch.milliseconds()),
        )
        finished = Finished(key=key, content_type=encoded.content_type, size=len(encoded.data), meta=meta)
        return Done(finished, encoded.data if request.needs_files else b"", reused=False)

    def _result(
        self,
        request: ImageRequest,
        done: Done,
        cache: CacheState,
        watch: Stopwatch,
        *,
        uploaded: bool | None = None,
        warnings: Sequence[str] = (),
    ) -> ImageResult:
        finished, said = done.finished, done.finished.meta
        watch.spent.bytes_out += finished.size
        changes: dict[str, object] = {
            "warnings": (*request.warnings, *warnings, *said.warnings),
            "cache": cache,
            "reused": done.reused,
            "timings_ms": Timings.model_validate(watch.milliseconds()),
        }
        if done.reused:
            changes |= {"gpu_s": 0.0, "cost_usd": self._ledger.cost(0.0)}
        url = f"data:{finished.content_type};base64,{base64.b64encode(done.data).decode()}"
        return ImageResult(
            **self._archive.link(finished.key, finished.content_type).model_dump(),
            data_url=url if request.inline else None,
            uploaded=uploaded,
            meta=said.model_copy(update=changes),
        )

    async def _upload(self, url: str, done: Done, watch: Stopwatch) -> list[str]:
        """Warnings. The result is in the bucket: that it did not arrive elsewhere too is said, and loses nothing."""
        try:
            with cut_when_cancelled():
                async with asyncio.timeout(watch.left):
                    await off(self._io, self._uploader.put, url, done.data, done.finished.content_type)
        except StorageError as error:
            log.warning("result was not uploaded", extra={"reason": error.message}, exc_info=error)
            return [error.message]
        except TimeoutError:
            log.warning("result was not uploaded: the job's time was up")
            return ["upload_url: the job's time was up"]
        return []


def _check_starts(started: int) -> None:
    """A request that ends every process which makes its picture is not tried for ever."""
    if started >= MOST_STARTS:
        raise ModelError(
            f"the worker ended {started} times while it made this picture: change the request", attempts=started
        )
