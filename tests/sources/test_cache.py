"""Sources kept in the bucket, and the bucket itself, against a real S3 server."""

import hashlib
import io
import logging
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest

from local.bucket import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, LocalBucket
from local.web import ImageHost
from qwen_worker.errors import BadInput, CacheReadFailed
from qwen_worker.hosts import HostList
from qwen_worker.sources import Sources
from qwen_worker.sources.cache import SourceCache
from qwen_worker.sources.fetch import Fetcher
from qwen_worker.storage import Bucket


def bucket_of(local: LocalBucket, *, secret: str = SECRET_KEY, name: str = BUCKET, timeout_s: float = 5.0) -> Bucket:
    return Bucket(
        local.host,
        ACCESS_KEY,
        secret,
        name=name,
        region=REGION,
        secure=False,
        prefix="test/",
        timeout_s=timeout_s,
        expires_s=60,
    )


def sources_of(bucket: Bucket) -> Sources:
    fetcher = Fetcher(max_bytes=1000, timeout_s=5, private=(ip_network("127.0.0.0/8"),), ports=(range(1, 65536),))
    return Sources(fetcher, SourceCache(bucket, 1000))


def key_of(url: str) -> str:
    return f"test/sources/{hashlib.sha256(url.encode()).hexdigest()}"


@pytest.fixture
def sources(shared_bucket: LocalBucket) -> Sources:
    """Sources over the shared bucket."""
    return sources_of(bucket_of(shared_bucket))


def test_a_second_load_comes_from_the_bucket(sources: Sources, host: ImageHost) -> None:
    """The host is asked once."""
    url = host.put("/a?signature=1", b"picture")
    first = sources.load(url)
    sources.keep(first, "image/png")
    second = sources.load(url)

    assert (first.data, first.hit) == (b"picture", False)
    assert (second.data, second.hit) == (b"picture", True)
    assert first.sha256 == second.sha256 == hashlib.sha256(b"picture").hexdigest()
    assert host.requests == ["/a?signature=1"]


def test_a_copy_of_a_host_that_was_closed_since_is_not_used(shared_bucket: LocalBucket, host: ImageHost) -> None:
    """What the operator closes is closed for those who asked before, too."""
    sources = sources_of(bucket_of(shared_bucket))
    url = host.put("/closed", b"picture")
    sources.keep(sources.load(url), "image/png")
    closed = Fetcher(max_bytes=1000, timeout_s=5, ports=(range(1, 65536),), hosts=HostList.parse("!127.0.0.1"))
    with pytest.raises(BadInput, match="not one that this worker fetches from"):
        Sources(closed, SourceCache(bucket_of(shared_bucket), 1000)).load(url)


def test_what_was_not_kept_is_fetched_again(sources: Sources, host: ImageHost) -> None:
    """Only what decodes is kept, and the caller of `keep` knows."""
    url = host.put("/a", b"not a picture")
    sources.load(url)

    assert not sources.load(url).hit


def test_the_object_carries_its_type_and_digest(sources: Sources, shared_bucket: LocalBucket, host: ImageHost) -> None:
    """Under a key made of hex digits only."""
    url = host.put("/a", b"picture")
    sources.keep(sources.load(url), "image/webp")
    found = shared_bucket.client.stat_object(BUCKET, key_of(url))

    assert found.content_type == "image/webp"
    assert found.metadata is not None
    assert found.metadata["x-amz-meta-sha256"] == hashlib.sha256(b"picture").hexdigest()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data * 1000,
        lambda _: b"",
    ],
)
def test_a_damaged_object_is_fetched_again_and_overwritten(
    sources: Sources, shared_bucket: LocalBucket, host: ImageHost, damage: Callable[[bytes], bytes]
) -> None:
    """One flipped bit in a JPEG decodes without an error; the digest finds it."""
    url = host.put("/a", b"picture")
    sources.keep(sources.load(url), "image/png")
    digest = {"sha256": hashlib.sha256(b"picture").hexdigest()}
    bad = damage(b"picture")
    shared_bucket.client.put_object(BUCKET, key_of(url), io.BytesIO(bad), len(bad), metadata=dict(digest))

    again = sources.load(url)
    sources.keep(again, "image/png")

    assert (again.data, again.hit) == (b"picture", False)
    assert sources.load(url).hit


def test_an_object_without_a_digest_is_not_trusted(
    sources: Sources, shared_bucket: LocalBucket, host: ImageHost
) -> None:
    """Someone else wrote it."""
    url = host.put("/a", b"picture")
    shared_bucket.client.put_object(BUCKET, key_of(url), io.BytesIO(b"other"), 5)

    assert sources.load(url).data == b"picture"


# pragma: allowlist nextline secret
@pytest.mark.parametrize("wrong", [{"secret": "wrong-secret"}, {"name": "no-such-bucket"}])
def test_a_bucket_that_cannot_be_read_fails_before_the_host_is_asked(
    shared_bucket: LocalBucket, host: ImageHost, wrong: dict[str, Any]
) -> None:
    """Neither heals by itself."""
    url = host.put("/a", b"picture")
    with pytest.raises(CacheReadFailed) as caught:
        sources_of(bucket_of(shared_bucket, **wrong)).load(url)

    assert not caught.value.retryable
    assert host.requests == []


@pytest.mark.slow
def test_a_bucket_that_is_down_fails_retryably(own_bucket: LocalBucket, host: ImageHost) -> None:
    """And the same client works again when it is back."""
    sources = sources_of(bucket_of(own_bucket))
    url = host.put("/a", b"picture")
    sources.keep(sources.load(url), "image/png")
    own_bucket.kill()
    with pytest.raises(CacheReadFailed) as caught:
        sources.load(url)
    own_bucket.start()

    assert caught.value.retryable
    assert sources.load(url).hit


def test_what_came_from_the_bucket_is_not_written_again(
    own_bucket: LocalBucket, host: ImageHost, caplog: pytest.LogCaptureFixture
) -> None:
    """B2 keeps every version of an object."""
    sources = sources_of(bucket_of(own_bucket))
    url = host.put("/a", b"picture")
    sources.keep(sources.load(url), "image/png")
    hit = sources.load(url)
    own_bucket.kill()
    with caplog.at_level(logging.WARNING):
        sources.keep(hit, "image/png")

    assert caplog.text == ""


@pytest.mark.slow
def test_a_write_that_fails_is_a_warning(
    own_bucket: LocalBucket, host: ImageHost, caplog: pytest.LogCaptureFixture
) -> None:
    """The job has what it needs."""
    sources = sources_of(bucket_of(own_bucket))
    source = sources.load(host.put("/a", b"picture"))
    own_bucket.kill()
    with caplog.at_level(logging.WARNING):
        sources.keep(source, "image/png")

    assert "could not be cached" in caplog.text
