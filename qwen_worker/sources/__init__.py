"""URL → bytes: out of the bucket if they were fetched before, else from their host."""

import hashlib
from dataclasses import dataclass

from qwen_worker.sources.cache import SourceCache
from qwen_worker.sources.fetch import Fetcher


@dataclass(frozen=True)
class Source:
    """The bytes of one source and their digest in hex; `hit`: they came out of the cache."""

    url: str
    data: bytes
    sha256: str
    hit: bool


class Sources:
    """Loads sources, and keeps those that turned out to be pictures."""

    def __init__(self, fetcher: Fetcher, cache: SourceCache) -> None:
        self._fetcher = fetcher
        self._cache = cache

    def load(self, url: str) -> Source:
        """The bytes at `url`.

        Raises:
            CacheReadFailed: the bucket could not be read.
            DownloadFailed: the host did not deliver.
            BadInput: the address or the length is not acceptable.
        """
        kept = self._cache.get(url)
        data = self._fetcher.fetch(url) if kept is None else kept
        return Source(url, data, hashlib.sha256(data).hexdigest(), hit=kept is not None)

    def keep(self, source: Source, content_type: str) -> None:
        """Put a source into the cache, unless it came from there. Call it once the bytes have been decoded."""
        if not source.hit:
            self._cache.put(source.url, source.data, content_type)
