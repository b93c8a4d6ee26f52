"""Sources kept in the bucket, by the sha256 of their URL."""

import hashlib
import logging

from qwen_worker.errors import CacheReadFailed, StorageError
from qwen_worker.storage import Bucket

log = logging.getLogger(__name__)


class SourceCache:
    """Bytes by URL. A damaged object counts as missing, so that it is fetched again and overwritten."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def get(self, url: str) -> bytes | None:
        """The bytes kept for `url`, if any, proven equal to what was written.

        Raises:
            CacheReadFailed: the bucket could not be read.
        """
        try:
            stored = self._bucket.get(_key(url))
        except StorageError as error:
            raise CacheReadFailed(error.message, retryable=error.retryable, **error.details) from error
        if stored is None:
            return None
        if not stored.intact:
            log.warning("cached source is damaged", extra={"object_key": _key(url)})
            return None
        return stored.data

    def put(self, url: str, data: bytes, content_type: str) -> None:
        """Keep the bytes; a failure is logged, since the job does not need it."""
        try:
            self._bucket.put(_key(url), data, content_type)
        except StorageError as error:
            log.warning("source could not be cached", extra={"object_key": _key(url), "reason": error.message})


def _key(url: str) -> str:
    return f"sources/{hashlib.sha256(url.encode()).hexdigest()}"
