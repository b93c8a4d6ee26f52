"""Address → bytes: out of the address itself, out of the bucket if they were fetched before, else from their host."""

import hashlib
from dataclasses import dataclass

from qwen_worker.schema import is_data
from qwen_worker.sources.cache import SourceCache
from qwen_worker.sources.data_url import decoded
from qwen_worker.sources.fetch import Fetcher


@dataclass(frozen=True)
class Source:
    """The bytes of one source and their digest in hex.

    `key` is the digest by which the bucket keeps it; `hit`: it is there.
    """

    key: str
    data: bytes
    sha256: str
    hit: bool


class Sources:
    """Loads sources, and keeps those that turned out to be pictures."""

    def __init__(self, fetcher: Fetcher, cache: SourceCache) -> None:
        self._fetcher = fetcher
        self._cache = cache

    def load(self, url: str, *, anew: bool = False) -> Source:
        """The bytes at `url`. `anew`: as their host has them, whatever the bucket keeps.

        Raises:
            CacheReadFailed: the bucket could not be read.
            DownloadFailed: the host did not deliver.
            BadInput: the address or the length is not acceptable.
        """
        if is_data(url):
            data = decoded(url, self._fetcher.max_bytes)
            digest = _sha256(data)
            return Source(digest, data, digest, hit=not anew and self._cache.has(digest, len(data)))
        # The bucket may hold a copy from before the operator closed its host.
        self._fetcher.check(url)
        key = _sha256(url.encode())
        kept = None if anew else self._cache.get(key)
        data = self._fetcher.fetch(url) if kept is None else kept
        return Source(key, data, _sha256(data), hit=kept is not None)

    def keep(self, source: Source, content_type: str) -> None:
        """Put a source into the cache, unless it is there. Call it once the bytes have been decoded."""
        if not source.hit:
            self._cache.put(source.key, source.data, content_type)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
