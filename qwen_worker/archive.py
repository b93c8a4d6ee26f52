"""Finished pictures: stored once, named by a manifest, found again by the digest of their request.

    results/<digest>/<job id>[-n].<extension>   a picture
    results/<digest>/manifest.json              which pictures are finished, and how each was made

Backblaze B2 refuses conditional writes. So a picture's key is its job's own, and the manifest, which is written after
the picture, is the only key that is written again: of two workers that do so at the same time one is forgotten, and
its picture is at worst made once more.
"""

import contextlib
import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError

from qwen_worker.errors import BadInput, StorageError, bad_input
from qwen_worker.images.encode import Encoded
from qwen_worker.result import Link, Meta
from qwen_worker.schema import Frozen
from qwen_worker.storage import Bucket, reading_cache

log = logging.getLogger(__name__)

RESULT_KEY = re.compile(r"results/[0-9a-f]{64}/[A-Za-z0-9_-]{1,150}\.(png|jpg|webp)")
MOST_STARTED = 20  # jobs of one request whose workers were not heard of again
MAX_MANIFEST_BYTES = 1_000_000


class Finished(BaseModel):
    """One picture of a request; `key` is below the prefix, `size` in bytes."""

    model_config = Frozen

    key: str
    content_type: str
    size: int
    meta: Meta


class Manifest(BaseModel):
    """The finished pictures of one request by their numbers, and the versions of all that made them.

    `started`: job → how often a worker began to make some for it and was not heard of again.
    """

    model_config = Frozen

    versions: dict[str, str]
    finished: dict[int, Finished]
    started: dict[str, int] = {}


@dataclass(frozen=True)
class Archive:
    """The finished pictures of a bucket.

    Attributes:
        bucket: where they are.
        versions: of the worker and its libraries, for the manifest.
    """

    bucket: Bucket
    versions: Mapping[str, str]

    def find(self, digest: str) -> Manifest:
        """The manifest of a request; `read` tells whether its pictures are still there.

        Raises:
            CacheReadFailed: the bucket could not be read.
        """
        with reading_cache():
            stored = self.bucket.get(_manifest_key(digest), MAX_MANIFEST_BYTES)
            if stored is None:
                return self._manifest({}, {})
            try:
                found = Manifest.model_validate_json(stored.data) if stored.intact else None
            except ValidationError:
                found = None
            if found is None:
                log.warning("manifest is damaged", extra={"object_key": _manifest_key(digest)})
                return self._manifest({}, {})
            own = {number: one for number, one in found.finished.items() if _is_of(digest, one)}
            return found.model_copy(update={"finished": own})

    def seconds(self, size: int = 0) -> float:
        """What writing or reading a file of so many bytes may take."""
        return self.bucket.seconds(size)

    def begin(self, digest: str, finished: Mapping[int, Finished], started: Mapping[str, int]) -> None:
        """Note in the manifest that the making of pictures begins, until `settle`, or `remember` with all of them.

        Raises:
            StorageError: the bucket could not be written: the pictures could not be stored either.
        """
        self._write(digest, self._manifest(finished, started))

    def store(self, digest: str, job_id: str, number: int, encoded: Encoded) -> str:
        """Write a picture, make sure that it is there, and return its key.

        Raises:
            StorageError: the bucket could not be written, or does not have what was written.
        """
        key = object_key(digest, job_id, number, encoded.extension)
        self.bucket.put(key, encoded.data, encoded.content_type, proven=True)
        return key

    def remember(self, digest: str, finished: Mapping[int, Finished], started: Mapping[str, int] | None = None) -> None:
        """Write the manifest; a failure is logged, since the pictures are there.

        Args:
            digest: of the request.
            finished: its pictures.
            started: what is being made.
        """
        try:
            self._write(digest, self._manifest(finished, started or {}))
        except StorageError as error:
            reason = {"object_key": _manifest_key(digest), "reason": error.message}
            log.warning("manifest could not be written", extra=reason)

    def settle(self, digest: str, finished: Mapping[int, Finished], started: Mapping[str, int]) -> None:
        """Take the note of `begin` away after a failure: the manifest too, if there is nothing else in it."""
        with contextlib.suppress(StorageError):
            if not (finished or started):
                self.bucket.delete(_manifest_key(digest))
                return
        # Not everybody who may write may delete.
        self.remember(digest, finished, started)

    def read(self, finished: Finished) -> bytes | None:
        """The file of a picture, or None if it is not there as it was written: a link would show something else.

        Raises:
            CacheReadFailed: the bucket could not be read.
        """
        with reading_cache():
            stored = self.bucket.get(finished.key, finished.size, known=True)
        if stored is None or not stored.intact or _sha256(stored.data) != finished.meta.output.sha256:
            log.warning("stored result is damaged or gone", extra={"object_key": finished.key})
            return None
        return stored.data

    def link(self, key: str, content_type: str) -> Link:
        """Where an object is."""
        url, expires_at = self.bucket.presign(key)
        return Link(
            presigned_url=url,
            bucket=self.bucket.name,
            object_key=self.bucket.prefix + key,
            content_type=content_type,
            expires_in=self.bucket.expires_s,
            expires_at=expires_at,
        )

    def presign(self, object_key: str) -> Link:
        """A fresh link to a picture.

        Args:
            object_key: with the prefix, as in an answer.

        Raises:
            BadInput: it is not the key of a result of this worker, or there is none.
            CacheReadFailed: the bucket could not be read.
        """
        key = object_key.removeprefix(self.bucket.prefix)
        if not (object_key.startswith(self.bucket.prefix) and RESULT_KEY.fullmatch(key)):
            raise _no_key("is not the key of a result of this worker: send object_key as it was in the answer")
        with reading_cache():
            found = self.bucket.stat(key)
        if found is None:
            raise _no_key("is not there (any more): send the request again that made it")
        return self.link(key, found.content_type)

    def _manifest(self, finished: Mapping[int, Finished], started: Mapping[str, int]) -> Manifest:
        last = dict(list(started.items())[-MOST_STARTED:])
        return Manifest(versions=dict(self.versions), finished=dict(sorted(finished.items())), started=last)

    def _write(self, digest: str, said: Manifest) -> None:
        self.bucket.put(_manifest_key(digest), said.model_dump_json(by_alias=True).encode(), "application/json")


def object_key(digest: str, job_id: str, number: int, extension: str) -> str:
    """Where a picture goes, below the prefix.

    Args:
        digest: of the request.
        job_id: of the job that made it.
        number: of the picture in its request, from 0.
        extension: of the file.
    """
    return f"results/{digest}/{word_of(job_id)}{f'-{number}' if number else ''}.{extension}"


def word_of(job_id: str) -> str:
    """A job's id as a word. One that is none, or ends as if it had a number, is told apart by a digest of itself."""
    word = re.sub(r"[^A-Za-z0-9_-]", "_", job_id)[:100]
    if word != job_id or re.search(r"-[1-3]$", word):
        word = f"{word}-{hashlib.sha256(job_id.encode(errors='replace')).hexdigest()[:16]}"
    return word


def _is_of(digest: str, one: Finished) -> bool:
    return bool(RESULT_KEY.fullmatch(one.key)) and one.key.startswith(f"results/{digest}/")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _manifest_key(digest: str) -> str:
    return f"results/{digest}/manifest.json"


def _no_key(problem: str) -> BadInput:
    return bad_input([{"field": "object_key", "problem": problem}])
