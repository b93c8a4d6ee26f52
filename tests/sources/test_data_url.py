"""Pictures that come in the request itself."""

import base64
import hashlib
import io

import pytest

from local.bucket import BUCKET, LocalBucket
from qwen_worker.errors import BadInput, CacheReadFailed
from qwen_worker.sources.data_url import decoded
from tests.sources.test_cache import bucket_of, sources_of


def data_url(data: bytes, head: str = "data:image/png;base64") -> str:
    return f"{head},{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("head", ["data:image/png;base64", "DATA:;BASE64", "data:image/jpeg;name=a.jpg;base64"])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_the_bytes_are_what_was_encoded(head: str, size: int) -> None:
    """Whatever it calls them: what they are is found when they are decoded."""
    assert decoded(data_url(b"\xfb\xff" * size, head), 2 * size) == b"\xfb\xff" * size


@pytest.mark.parametrize("text", ["", "abc", "ab cd", "ab\ncd", "-_-_", "ab%3D", "\u00fc" * 4])
def test_what_is_no_base64_is_refused(text: str) -> None:
    """Nothing is guessed, and it is said what to send."""
    with pytest.raises(BadInput, match="send the whole file"):
        decoded(f"data:image/png;base64,{text}", 1000)


def test_the_cap_is_on_the_bytes() -> None:
    """Exactly; what is far too long is refused before it is decoded."""
    assert decoded(data_url(b"x" * 100), 100) == b"x" * 100
    for size in (101, 102, 103, 10_000):
        with pytest.raises(BadInput, match="longer than 100 bytes"):
            decoded(data_url(b"x" * size), 100)


def test_it_is_kept_by_the_digest_of_its_bytes(shared_bucket: LocalBucket) -> None:
    """However they were encoded; and written once."""
    sources = sources_of(bucket_of(shared_bucket))
    first = sources.load(data_url(b"these bytes"))
    sources.keep(first, "image/png")
    second = sources.load(data_url(b"these bytes", "data:;base64"))
    key = f"test/sources/{hashlib.sha256(b'these bytes').hexdigest()}"

    assert (first.data, first.hit, second.data, second.hit) == (b"these bytes", False, b"these bytes", True)
    assert shared_bucket.client.stat_object(BUCKET, key).size == len(b"these bytes")


@pytest.mark.parametrize(("kept", "digest"), [(b"egamad!", b"egamad!"), (b"dam", b"damaged")])
def test_a_damaged_copy_is_written_again(shared_bucket: LocalBucket, kept: bytes, digest: bytes) -> None:
    """Other bytes of the same length, or some of them under the digest of all."""
    sources = sources_of(bucket_of(shared_bucket))
    key = f"test/sources/{hashlib.sha256(b'damaged').hexdigest()}"
    told = {"sha256": hashlib.sha256(digest).hexdigest()}
    shared_bucket.client.put_object(BUCKET, key, io.BytesIO(kept), len(kept), metadata=dict(told))

    assert not sources.load(data_url(b"damaged")).hit


@pytest.mark.slow
def test_it_needs_the_bucket(own_bucket: LocalBucket) -> None:
    """Without which its result could not be stored: no model time is spent."""
    sources = sources_of(bucket_of(own_bucket))
    own_bucket.kill()
    with pytest.raises(CacheReadFailed):
        sources.load(data_url(b"x"))
