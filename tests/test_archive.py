"""Finished pictures in the bucket, against a real S3 server, and one that lies."""

import hashlib
import io
import json
from collections.abc import Callable

import pytest
import requests

from local.bucket import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, LocalBucket
from local.hostile_server import HostileServer, Peer
from qwen_worker.archive import Archive, Finished, object_key
from qwen_worker.errors import BadInput, CacheReadFailed, StorageError
from qwen_worker.images.encode import Encoded
from qwen_worker.result import Meta, Picture, Timings
from qwen_worker.storage import Bucket
from tests.sources.test_cache import bucket_of

pytestmark = pytest.mark.slow

DIGEST = "d" * 64
MANIFEST = f"test/results/{DIGEST}/manifest.json"


def encoded(data: bytes = b"picture") -> Encoded:
    return Encoded(data, hashlib.sha256(data).hexdigest(), "image/png", "png")


def finished(key: str, data: bytes = b"picture") -> Finished:
    meta = Meta(
        operation="edit", prompt="x", negative_prompt=" ", seed=1, num_inference_steps=2, true_cfg_scale=1.0,
        scheduler="FlowMatchEuler", strength=None, mask_feather=None, lora={}, model_id="m", model_revision="r",
        preset="exact", profile="bf16",
        warnings=(), cache=None, reused=False, sources=(), mask=None, geometry=None, timings_ms=Timings(total=1.0),
        gpu_s=1.0, cost_usd=None,
        output=Picture(width=1, height=1, format="png", sha256=hashlib.sha256(data).hexdigest()),
    )  # fmt: skip
    return Finished(key=key, content_type="image/png", size=len(data), meta=meta)


@pytest.fixture
def archive(own_bucket: LocalBucket) -> Archive:
    """Empty."""
    return Archive(bucket_of(own_bucket), {"torch": "2"})


def test_what_was_remembered_is_found(archive: Archive, own_bucket: LocalBucket) -> None:
    """By its number; the manifest tells the versions and every meta."""
    one, other = (archive.store(DIGEST, "job", number, encoded()) for number in (0, 2))
    archive.remember(DIGEST, {0: finished(one), 2: finished(other)})
    manifest = json.loads(own_bucket.client.get_object(BUCKET, MANIFEST).read())

    assert archive.find(DIGEST).finished == {0: finished(one), 2: finished(other)}
    assert archive.find("e" * 64).finished == {}
    assert manifest["versions"] == {"torch": "2"}
    assert manifest["finished"]["2"]["meta"] == finished(other).model_dump(mode="json", by_alias=True)["meta"]
    assert archive.read(finished(one)) == b"picture"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("picture", None),
        ("picture", b"picture"),
        ("manifest", b'{"finished": 1}'),
        ("manifest", b"\xff"),
        ("manifest", None),
    ],
)
def test_what_is_gone_or_changed_is_not_found(
    archive: Archive, own_bucket: LocalBucket, name: str, data: bytes | None
) -> None:
    """It is made again, rather than linked to; even the same bytes, if someone else wrote them."""
    key = archive.store(DIGEST, "job", 0, encoded())
    archive.remember(DIGEST, {0: finished(key)})
    target = MANIFEST if name == "manifest" else f"test/{key}"
    if data is None:
        own_bucket.client.remove_object(BUCKET, target)
    else:
        own_bucket.client.put_object(BUCKET, target, io.BytesIO(data), len(data))
    found = archive.find(DIGEST).finished

    assert not found or (name == "picture" and archive.read(found[0]) is None)


@pytest.mark.parametrize(
    "damage", [lambda said: said.replace(b'"seed":1', b'"seed":2'), lambda said: said + b" " * 10**6]
)
def test_a_damaged_manifest_is_none(
    archive: Archive, own_bucket: LocalBucket, damage: Callable[[bytes], bytes]
) -> None:
    """Even if it can be read."""
    archive.remember(DIGEST, {0: finished(archive.store(DIGEST, "job", 0, encoded()))})
    said = own_bucket.client.get_object(BUCKET, MANIFEST).read()
    bad = damage(said)
    digest = {"sha256": hashlib.sha256(bad if len(bad) > 10**6 else said).hexdigest()}
    own_bucket.client.put_object(BUCKET, MANIFEST, io.BytesIO(bad), len(bad), metadata=dict(digest))

    assert archive.find(DIGEST).finished == {}


def test_a_damaged_file_is_not_read(archive: Archive, own_bucket: LocalBucket) -> None:
    """It is as if it were not there."""
    key = archive.store(DIGEST, "job", 0, encoded())
    digest = {"sha256": encoded().sha256}
    own_bucket.client.put_object(BUCKET, f"test/{key}", io.BytesIO(b"erutcip"), 7, metadata=dict(digest))
    archive.remember(DIGEST, {0: finished(key)})

    assert archive.find(DIGEST).finished
    assert archive.read(finished(key)) is None


def test_a_file_that_was_exchanged_is_not_read(archive: Archive, own_bucket: LocalBucket) -> None:
    """Though its own digest is beside it."""
    key = archive.store(DIGEST, "job", 0, encoded())
    digest = {"sha256": hashlib.sha256(b"erutcip").hexdigest()}
    own_bucket.client.put_object(BUCKET, f"test/{key}", io.BytesIO(b"erutcip"), 7, metadata=dict(digest))

    assert archive.read(finished(key)) is None


@pytest.mark.parametrize(
    "key", ["x", f"results/{'e' * 64}/job.png", f"sources/{DIGEST}", f"results/{DIGEST}/manifest.json"]
)
def test_a_manifest_names_only_results_of_its_request(archive: Archive, key: str) -> None:
    """Whoever wrote it."""
    archive.bucket.put(key, b"picture", "image/png")
    archive.remember(DIGEST, {0: finished(key)})

    assert archive.find(DIGEST).finished == {}


def test_a_bucket_that_is_down(archive: Archive, own_bucket: LocalBucket, caplog: pytest.LogCaptureFixture) -> None:
    """Finding fails, before any model time; that a manifest cannot be written costs nobody a picture."""
    own_bucket.kill()
    with pytest.raises(CacheReadFailed):
        archive.find(DIGEST)
    with pytest.raises(StorageError):
        archive.store(DIGEST, "job", 0, encoded())
    archive.remember(DIGEST, {})

    assert "manifest could not be written" in caplog.text


class Liar(HostileServer):
    """A bucket that acknowledges every write; what it then has is told by `kept`, the last of it for ever."""

    def __init__(self, *kept: bytes | None) -> None:
        self.writes = 0
        self._kept = kept
        super().__init__(self._lie)

    def _lie(self, peer: Peer) -> None:
        peer.hear()
        peer.hear_body()
        if peer.heard.startswith(b"PUT"):
            self.writes += 1
            peer.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            return
        data = self._kept[min(self.writes, len(self._kept)) - 1]
        status = "404 No" if data is None else f"200 OK\r\nContent-Length: {len(data)}"
        digest = hashlib.sha256(data or b"").hexdigest()
        peer.send(f"HTTP/1.1 {status}\r\nConnection: close\r\nx-amz-meta-sha256: {digest}\r\n\r\n".encode())

    @property
    def archive(self) -> Archive:
        bucket = Bucket(
            f"127.0.0.1:{self.port}", ACCESS_KEY, SECRET_KEY, name=BUCKET, region=REGION, secure=False,
            prefix="test/", timeout_s=5, expires_s=60,
        )  # fmt: skip
        return Archive(bucket, {})


@pytest.mark.parametrize("kept", [None, b"pic", b"erutcip"])
def test_what_a_bucket_acknowledges_is_looked_at(kept: bytes | None) -> None:
    """Before a link is given: its size, and its digest. It is written three times, and no more."""
    with Liar(kept) as liar, pytest.raises(StorageError, match="does not have what it acknowledged") as caught:
        liar.archive.store(DIGEST, "job", 0, encoded())

    assert (caught.value.retryable, caught.value.attempts, liar.writes) == (True, 3, 3)


def test_what_was_acknowledged_but_not_kept_is_written_again() -> None:
    """Something before the bucket may have answered in its place."""
    with Liar(None, b"picture") as liar:
        assert liar.archive.store(DIGEST, "job", 0, encoded()) == f"results/{DIGEST}/job.png"

    assert liar.writes == 2


def test_a_fresh_link_to_a_result(archive: Archive) -> None:
    """It opens, and says when it ends."""
    key = archive.store(DIGEST, "job", 1, encoded())
    link = archive.presign(f"test/{key}")

    assert link.object_key == f"test/results/{DIGEST}/job-1.png"
    assert (link.content_type, link.expires_in, link.bucket) == ("image/png", 60, BUCKET)
    assert requests.get(link.presigned_url, timeout=5).content == b"picture"


@pytest.mark.parametrize(
    "key",
    [
        f"results/{DIGEST}/job.png",
        f"other/results/{DIGEST}/job.png",
        f"test/sources/{DIGEST}",
        f"test/results/{DIGEST}/manifest.json",
        f"test/results/{DIGEST}/../../sources/{DIGEST}",
        f"test/results/{DIGEST}/../{DIGEST}/job.png",
        f"test/results/{DIGEST}/a/job.png",
        f"test//results/{DIGEST}/job.png",
        f"test/results/{DIGEST}/job.png\n",
        f"test/test/results/{DIGEST}/job.png",
        "test/",
        "",
    ],
)
def test_nothing_else_is_linked_to(archive: Archive, key: str) -> None:
    """Neither the sources of other callers, nor what lies outside the prefix, nor a manifest."""
    for name in ("sources", "test/sources"):
        archive.bucket.put(f"{name}/{DIGEST}", b"private", "image/png")
    archive.store(DIGEST, "job", 0, encoded())
    with pytest.raises(BadInput, match="is not the key of a result"):
        archive.presign(key)


def test_a_result_that_is_gone_is_told(archive: Archive) -> None:
    """With what to do."""
    with pytest.raises(BadInput, match="send the request again"):
        archive.presign(f"test/results/{DIGEST}/gone.png")


@pytest.mark.parametrize("job_id", ["../../etc/passwd", "a/b", "", ".", "ü", "a" * 500, "a\x00b", "\ud800", "manifest"])
def test_a_strange_job_id_makes_an_ordinary_key(job_id: str) -> None:
    """The id comes from outside."""
    key = object_key("0" * 64, job_id, 0, "png")

    assert key.startswith("results/" + "0" * 64 + "/")
    assert key.count("/") == 2
    assert len(key) < 250
    assert all(sign.isascii() and (sign.isalnum() or sign in "-_./") for sign in key)
    assert ".." not in key
    assert key != object_key("0" * 64, job_id + "x", 0, "png")


def test_no_two_pictures_have_the_same_key() -> None:
    """The second of job a is not the first of job a-1."""
    ids = ["a", "a-1", "a-2", "a-1-1", "a-"]
    keys = [object_key("0" * 64, job_id, number, "png") for job_id in ids for number in range(4)]

    assert len(set(keys)) == len(keys)
    assert keys[:2] == [f"results/{'0' * 64}/a.png", f"results/{'0' * 64}/a-1.png"]
