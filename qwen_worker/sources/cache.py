"""Sources kept in the bucket, by a digest: of their URL, or of their bytes where the URL holds those."""

import logging

from qwen_worker.errors import StorageError
from qwen_worker.storage import Bucket, reading_cache

log = logging.getLogger(__name__)


class SourceCache:
    """Bytes by digest. A damaged object counts as missing, so that it is fetched again and overwritten.

    Args:
        bucket: where they are.
        max_bytes: longest source; what is longer counts as damaged.
    """

    def __init__(self, bucket: Bucket, max_bytes: int) -> None:
        self._bucket = bucket
        self._max_bytes = max_bytes

    def get(self, digest: str) -> bytes | None:
        """The bytes kept under `digest`, if any, proven equal to what was written.

        Raises:
            CacheReadFailed: the bucket could not be read.
        """
        with reading_cache():
            stored = self._bucket.get(_key(digest), self._max_bytes)
        if stored is None:
            return None
        if not stored.intact:
            log.warning("cached source is damaged", extra={"object_key": _key(digest)})
            return None
        return stored.data

    def has(self, digest: str, size: int) -> bool:
        """Whether bytes whose own sha256 is `digest` are kept under it, without reading them.

        Raises:
            CacheReadFailed: the bucket could not be read.
        """
        with reading_cache():
            found = self._bucket.stat(_key(digest))
        return found is not None and (found.size, found.sha256) == (size, digest)

    def put(self, digest: str, data: bytes, content_type: str) -> None:
        """Keep the bytes; a failure is logged, since the job does not need it."""
        try:
            self._bucket.put(_key(digest), data, content_type)
        except StorageError as error:
            log.warning("source could not be cached", extra={"object_key": _key(digest), "reason": error.message})


def _key(digest: str) -> str:
    return f"sources/{digest}"
