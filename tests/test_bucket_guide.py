"""docs/bucket.md: what it says of the worker's requests is what arrives at a real S3 server."""

import base64
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from local.bucket import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, LocalBucket
from local.exchange import Exchange
from local.hostile_server import HostileServer, Peer
from local.stack import Stack
from local.worker import ROOT
from qwen_worker.archive import Archive
from qwen_worker.build import build_bucket
from qwen_worker.errors import CacheReadFailed
from qwen_worker.fitness import Unfit, bucket_works
from qwen_worker.settings import Settings
from qwen_worker.sources.cache import SourceCache
from qwen_worker.storage import Bucket
from tests.pictures import file_of, photo
from tests.test_archive import encoded, finished

GUIDE = (ROOT / "docs" / "bucket.md").read_text()
ASKED = set(re.findall(r"^\| (`[A-Z]+`(?: by link)?) \| `([^`]+)` \|", GUIDE, re.MULTILINE))
RIGHTS = dict(re.findall(r"^\| (`[A-Z]+`)(?: by link)? \| `[^`]+` \| [^|]+ \| (\w+) \|$", GUIDE, re.MULTILINE))
SERVERS = re.findall(r"^\| ([\w ]+) \| `([^`]+)` \| `([^`]+)` \| `(true|false)` \| `([^`]+)` \|$", GUIDE, re.MULTILINE)
# A result's address in the bucket's own terms: what is below the prefix.
KINDS = {
    r"health/check": "health/check",
    r"health/nothing": "health/nothing",
    r"sources/[0-9a-f]{64}": "sources/DIGEST",
    r"results/[0-9a-f]{64}/manifest\.json": "results/DIGEST/manifest.json",
    r"results/[0-9a-f]{64}/[\w-]+\.(png|jpg|webp)": "results/DIGEST/JOB.EXTENSION",
}
HEADERS = {
    "accept-encoding", "authorization", "content-length", "content-md5", "content-type", "host", "user-agent",
    "x-amz-content-sha256", "x-amz-date", "x-amz-meta-sha256",
}  # fmt: skip
KEYS = {"S3_ACCESS_KEY": "id", "S3_SECRET_KEY": "key"}  # pragma: allowlist secret
FORBIDDEN = b"<Error><Code>AccessDenied</Code><Message>not allowed</Message></Error>"


class Gate(HostileServer):
    """Stands before a bucket and writes down what is asked; it may refuse some of it, as for a key of fewer rights.

    Args:
        port: of the bucket's server.
        refused: methods.
        lists: whether the key may list: else what is missing is forbidden.

    Attributes:
        asked: requests, as the guide writes them: method, and kind of key.
        headers: names of all that came.
    """

    def __init__(self, port: int = 0, refused: frozenset[str] = frozenset(), *, lists: bool = True) -> None:
        self.asked: list[tuple[str, str]] = []
        self.headers: set[str] = set()
        self.port_behind = port
        self._refused, self._lists = refused, lists
        super().__init__(self._pass)
        self.host = f"127.0.0.1:{self.port}"

    def _pass(self, peer: Peer) -> None:
        while True:
            peer.heard = b""
            peer.hear()
            exchange = Exchange(peer, self.port_behind, "")
            self.asked.append(as_written(exchange.method, peer.target))
            self.headers |= {
                line.partition(b":")[0].decode().lower() for line in exchange.head.splitlines()[1:] if line
            }
            exchange.body()
            if exchange.method in self._refused:
                peer.send(forbidden(exchange.method))
                continue
            head, body = exchange.answer()
            missing = head.split(b" ", 2)[1] == b"404"
            peer.send(forbidden(exchange.method) if missing and not self._lists else head + body)


def forbidden(method: str) -> bytes:
    body = b"" if method == "HEAD" else FORBIDDEN
    head = f"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def as_written(method: str, target: str) -> tuple[str, str]:
    """A request as the guide's table has it; what is in no row of it stands there as it came."""
    path, _, query = target.partition("?")
    names = set(parse_qs(query, keep_blank_values=True))
    by_link = bool(names) and all(name.startswith("X-Amz-") for name in names)
    key = re.sub(rf"^/{BUCKET}/qwen-image-edit/", "", unquote(path))
    kind = next((kind for pattern, kind in KINDS.items() if re.fullmatch(pattern, key)), target)
    if names and not by_link:
        kind = target
    return f"`{method}`{' by link' if by_link else ''}", kind


def bucket_at(host: str) -> Bucket:
    return Bucket(
        host, ACCESS_KEY, SECRET_KEY, name=BUCKET, region=REGION, secure=False, prefix="qwen-image-edit/",
        timeout_s=5, expires_s=60,
    )  # fmt: skip


def everything(bucket: Bucket, digest: str) -> None:
    """All that the worker's parts do with a bucket."""
    bucket_works(bucket)
    cache, archive = SourceCache(bucket, 10_000_000), Archive(bucket, {})
    assert cache.get(digest) is None
    assert not cache.has(digest, 1)
    cache.put(digest, b"x" * 6_000_000, "image/png")  # several parts, by the client's default
    assert cache.get(digest)
    assert archive.find(digest).finished == {}
    archive.begin(digest, {}, {"job": 1})
    archive.settle(digest, {}, {})
    archive.begin(digest, {}, {"job": 1})
    one = finished(archive.store(digest, "job", 0, encoded()))
    archive.remember(digest, {0: one})
    assert archive.find(digest).finished == {0: one}
    assert archive.read(one)
    assert archive.presign(bucket.prefix + one.key)
    assert archive.link(one.key, "image/png")


@pytest.mark.slow
def test_the_table_is_what_the_parts_ask(shared_bucket: LocalBucket) -> None:
    """All of it, and nothing else: no request about a bucket, none with a query but a link's, no other header."""
    with Gate(shared_bucket.port) as gate:
        everything(bucket_at(gate.host), "a" * 64)

    assert set(gate.asked) == ASKED
    assert gate.headers <= HEADERS


@pytest.fixture(scope="module")
def watched(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Gate]]:
    """A whole worker whose bucket is behind a gate."""
    with Gate() as gate:
        stack = Stack(tmp_path_factory.mktemp("stack"), model=tiny, more={"S3_ENDPOINT": gate.host})
        gate.port_behind = stack.bucket.port
        with stack:
            yield stack, gate


@pytest.mark.slow
def test_the_table_is_what_a_worker_asks(watched: tuple[Stack, Gate]) -> None:
    """From its start on; and the guide's numbers of requests are right."""
    stack, gate = watched
    checked = [("`PUT`", "check"), ("`GET`", "check"), ("`GET`", "nothing"), ("`GET` by link", "check")]
    assert gate.asked == [(asked, f"health/{key}") for asked, key in checked]
    source = file_of(photo(seed=5))
    request: dict[str, Any] = {
        "image_url": stack.host.put("/a.png", source), "prompt": "x", "seed": 1,
        "num_inference_steps": 2, "width": 256, "height": 256, "true_cfg_scale": 1.0,
    }  # fmt: skip

    def asks(**fields: Any) -> tuple[int, int, str]:
        """Requests that read and that write, and the key of the result."""
        before = len(gate.asked)
        job = stack.run({**request, **fields})
        assert job["status"] == "COMPLETED", job
        verbs = Counter(method for method, _ in gate.asked[before:])
        return verbs["`GET`"] + verbs["`HEAD`"], verbs["`PUT`"], job["output"]["result"]["object_key"]

    new, known, again = asks(), asks(seed=2), asks()
    asks(image_url="data:image/png;base64," + base64.b64encode(source).decode())
    stack.run({"operation": "presign", "object_key": new[2]})

    assert (new[:2], known[:2], again[:2]) == ((3, 4), (3, 3), (3, 0))
    assert (
        "3 requests that read and 4 that write, of a picture that is kept already 3 and 3, the same request again 3"
        in " ".join(GUIDE.split())
    )
    assert set(gate.asked) == ASKED - {("`DELETE`", "results/DIGEST/manifest.json")}
    assert gate.headers <= HEADERS


@pytest.mark.slow
@pytest.mark.parametrize(("method", "step"), [("PUT", "put"), ("GET", "get")])
def test_a_key_that_may_not_read_or_write(shared_bucket: LocalBucket, method: str, step: str) -> None:
    """Is found out at the start."""
    with Gate(shared_bucket.port, frozenset({method})) as gate, pytest.raises(Unfit, match=f"not work, {step}: "):
        bucket_works(bucket_at(gate.host))


@pytest.mark.slow
def test_a_key_that_may_not_list(shared_bucket: LocalBucket) -> None:
    """Is found out at the start, if the server tells it less: each new job would fail."""
    with Gate(shared_bucket.port, lists=False) as gate:
        bucket = bucket_at(gate.host)
        with pytest.raises(Unfit, match=r"not work, get what is missing: .* Look at listFiles: "):
            bucket_works(bucket)
        with pytest.raises(CacheReadFailed) as caught:
            SourceCache(bucket, 1000).get("b" * 64)

    assert (caught.value.details["code"], caught.value.retryable) == ("AccessDenied", False)


@pytest.mark.slow
def test_a_key_that_may_not_delete(shared_bucket: LocalBucket) -> None:
    """An empty manifest stays, and all else works."""
    with Gate(shared_bucket.port, frozenset({"DELETE"})) as gate:
        bucket = bucket_at(gate.host)
        everything(bucket, "c" * 64)
        archive = Archive(bucket, {})
        archive.begin("d" * 64, {}, {"job": 1})
        archive.settle("d" * 64, {}, {})
        left = archive.find("d" * 64)

    assert (left.finished, left.started) == ({}, {})
    assert "qwen-image-edit/results/" + "d" * 64 + "/manifest.json" in shared_bucket.keys("qwen-image-edit/results/")


def test_every_request_has_a_right() -> None:
    """Three of them are in the command that makes the key, and the right to delete versions is not."""
    capabilities = re.findall(r"b2 key create .* (\S+)$", GUIDE, re.MULTILINE)

    assert len(ASKED) == 13
    assert set(RIGHTS.values()) == {"readFiles", "writeFiles"}
    assert {RIGHTS[f"`{verb}`"] for verb in ("PUT", "DELETE")} == {"writeFiles"}
    assert capabilities == ["readFiles,writeFiles,listFiles"]


def test_the_rules_cover_all_that_is_written_and_none_covers_another() -> None:
    """Below the default prefix; and results live longer than the longest link that is made by default."""
    rules = [json.loads(said) for said in re.findall(r"--lifecycle-rule '([^']+)'", GUIDE)]
    prefix = Settings.model_fields["s3_object_prefix"].default
    kept = {rule["fileNamePrefix"].removeprefix(prefix): rule["daysFromUploadingToHiding"] for rule in rules}

    assert set(kept) == {f"{kind.partition('/')[0]}/" for kind in KINDS.values()}
    assert {rule["daysFromHidingToDeleting"] for rule in rules} == {1}
    assert kept["results/"] * 86400 > Settings.model_fields["presign_expiry"].default
    assert f"--name-prefix {prefix} " in GUIDE


def test_the_rule_for_browsers_is_json() -> None:
    """For reading alone."""
    (rule,) = json.loads(re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)[0])

    assert set(rule["allowedOperations"]) == {"s3_get", "s3_head"}
    assert len(json.dumps(rule)) < 1000


@pytest.mark.parametrize("row", SERVERS, ids=[row[0] for row in SERVERS])
def test_the_variables_of_every_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, row: tuple[str, ...]) -> None:
    """Are accepted together, and make links that begin as the guide says."""
    _, endpoint, region, secure, begin = row
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    said = {"S3_ENDPOINT": endpoint, "S3_REGION": region, "S3_SECURE": secure, "S3_BUCKET": "my-pictures"}
    for name, value in {**said, **KEYS}.items():
        monkeypatch.setenv(name, value)
    link = build_bucket(Settings()).presign("results/a.png")[0]

    assert link.startswith(f"{begin}qwen-image-edit/results/a.png?")
    assert f"/{region}/s3/" in parse_qs(urlsplit(link).query)["X-Amz-Credential"][0]
    assert len(SERVERS) == 4
    # Those of the first steps are those of the table.
    (first,) = re.findall(r"```ini\n(.*?)```", GUIDE, re.DOTALL)
    _, endpoint, region, _, _ = SERVERS[0]
    assert first == f"S3_ENDPOINT={endpoint}\nS3_REGION={region}\nS3_BUCKET=my-pictures\n"
