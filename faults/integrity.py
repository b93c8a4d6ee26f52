"""S8: what the bucket keeps is damaged between two jobs. It is found, made anew and repaired, and never delivered."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from minio.error import S3Error

from faults.parts import FORMATS, PREFIX, Answer, Ground, on_lanes, picture, sha256
from hostile.outcome import Outcome, Suite
from local.bucket import BUCKET
from local.fault_plays import flipped

WORKERS, EACH = 2, 5
FLIPS = 100  # of a picture of each format
PARTS = range(1, 100)  # percent
HUGE = 64 * 1024**2  # bytes
MADE_ANEW = {
    "timings_ms",
    "reused",
    "cache",
    "gpu_s",
    "cost_usd",
}  # what an answer about the same picture may tell otherwise
REPAIRED_S = 10.0


@dataclass(frozen=True)
class Damage:
    """What becomes of an object.

    Attributes:
        name: for people.
        data: from the old bytes; None: there is no object any more.
        digest: what its metadata say of the new ones, from the digest of the old; None: they say nothing.
    """

    name: str
    data: Callable[[bytes], bytes | None]
    digest: Callable[[str, bytes], str | None] = lambda old, _new: old


def flip(step: int, steps: int) -> Damage:
    """One bit of the object; the steps are spread over it."""
    return Damage(f"bit {step}/{steps}", lambda data: flipped(data, len(data) * 8 * step // steps))


def cut(percent: int) -> Damage:
    """So much is left."""
    return Damage(f"{percent} %", lambda data: data[: max(1, len(data) * percent // 100)])


OTHER = b"nobody wrote this"
DAMAGES = (
    Damage("empty", lambda _: b""),
    Damage("empty, by its own digest", lambda _: b"", lambda _, new: sha256(new)),
    Damage("no metadata", lambda data: data, lambda *_: None),
    Damage("empty metadata", lambda data: data, lambda *_: ""),
    Damage("metadata of other bytes", lambda data: data, lambda *_: sha256(OTHER)),
    Damage("a digest of another length", lambda data: data, lambda old, _: old[:32]),
    Damage("longer", lambda data: data + b"\0"),
    Damage("twice", lambda data: data * 2),
    Damage("huge", lambda data: data.ljust(HUGE)),
    Damage("other bytes", lambda _: OTHER),
    Damage("other bytes, by their own digest", lambda _: OTHER, lambda _, new: sha256(new)),
)


def sources() -> Iterator[tuple[str, Damage]]:
    """What happens to sources of which format."""
    for kind in FORMATS:
        yield from ((kind, flip(step, FLIPS)) for step in range(FLIPS))
        yield from ((kind, damage) for damage in DAMAGES)
    yield from ((FORMATS[percent % len(FORMATS)], cut(percent)) for percent in PARTS)


def source(ground: Ground, case: tuple[str, Damage]) -> Outcome:
    """The next job of its address fetches it once, the job after that takes it from the bucket."""
    kind, damage = case
    said = ground.request(kind)
    target = said["image_url"].removeprefix(ground.host.url(""))
    key = f"sources/{sha256(said['image_url'].encode())}"
    _damage(ground, key, damage, picture(kind), sha256(picture(kind)))
    first = ground.answer(said)
    fetched = ground.host.requests.count(target)
    repaired = _within(REPAIRED_S, lambda: ground.read(key) == (picture(kind), sha256(picture(kind))))
    second = ground.answer(ground.varied(said))
    through = [
        ground.wrong(first, kind),
        None if first.result.get("meta", {}).get("cache") == "miss" else "it was not missed",
        None if fetched == 1 else f"fetched {fetched} times",
        None if repaired else "not repaired",
        None if (puts := ground.proxy.count(key, "PUT")) == 1 else f"written {puts} times",
        ground.wrong(second, kind),
        None if second.result.get("meta", {}).get("cache") == "hit" else "the next job missed it",
        None if ground.host.requests.count(target) == fetched else "the next job fetched it",
    ]
    return Outcome(f"{kind} source, {damage.name}", "; ".join(filter(None, through)) or None, first.seconds)


def results() -> Iterator[tuple[str, Damage, str]]:
    """What happens to a finished picture, and how it is asked for."""
    damages = (
        *(flip(step, 20) for step in range(20)),
        *(cut(percent) for percent in range(5, 100, 10)),
        *DAMAGES,
        Damage("another picture, by its own digest", lambda _: picture("PNG"), lambda _, new: sha256(new)),
        Damage("gone", lambda _: None),
    )
    yield from (("result", damage, output) for output in ("url", "inline") for damage in damages)


def manifests() -> Iterator[tuple[str, Damage, str]]:
    """What happens to a manifest; with the digest of what it was, or by its own."""
    stale = (*(flip(step, 60) for step in range(60)), *(cut(percent) for percent in range(5, 100, 10)), *DAMAGES)
    written = (
        *(Damage(word, partial(_said, word)) for word in ("null", "[]", "{}", "0", '"a"', "NaN", '{"finished": {}}')),
        Damage("not UTF-8", lambda data: data.replace(b'"key"', b'"\xff"')),
        Damage("UTF-16", lambda data: data.decode().encode("utf-16")),
        Damage("deep", lambda _: b'{"finished":' * 100_000),
        Damage("a long number", lambda data: data.replace(b'"size":', b'"size":' + b"9" * 100_000)),
        Damage("spaces", lambda data: data + b" " * HUGE),
        Damage("of another size", lambda data: _with(data, size=1)),
        Damage("names no key", lambda data: _with(data, key="")),
        Damage("names itself", lambda data: _with(data, key="manifest.json", other=True)),
        Damage("names a source", lambda data: _with(data, key="sources/" + "0" * 64)),
        Damage("climbs", lambda data: _with(data, key="../../../other/a.png", other=True)),
        Damage("names another result", lambda data: _with(data, key=f"results/{'0' * 64}/a.png")),
        Damage("names what is not there", lambda data: _with(data, key="gone.png", other=True)),
        Damage("of many", _of_many),
        Damage("of numbers that are none", lambda data: data.replace(b'"finished":{"0"', b'"finished":{"-1"')),
    )
    owned = (Damage(f"{one.name}, by its own digest", one.data, lambda _, new: sha256(new)) for one in written)
    yield from (("manifest", damage, "url") for damage in (*stale, *owned, Damage("gone", lambda _: None)))


def repeat(ground: Ground, case: tuple[str, Damage, str]) -> Outcome:
    """The next job that asks for the same delivers the right picture, and the job after that finds it again."""
    what, damage, output = case
    said = ground.request("PNG", output=output)
    made = ground.answer(said)
    if wrong := ground.wrong(made, "PNG"):
        return Outcome(f"{what}, {damage.name}, {output}", f"before: {wrong}", made.seconds)
    key = made.result["object_key"].removeprefix(PREFIX)
    if what == "manifest":
        key = key.rpartition("/")[0] + "/manifest.json"
    _damage(ground, key, damage, *ground.read(key))
    second, third = ground.answer(said), ground.answer(said)
    through = [
        *(_unlike(ground, made, answer) for answer in (second, third)),
        None if third.result.get("meta", {}).get("reused") else "it is not found again",
    ]
    return Outcome(f"{what}, {damage.name}, {output}", "; ".join(filter(None, through)) or None, second.seconds)


def _damage(ground: Ground, key: str, damage: Damage, data: bytes, digest: str | None) -> None:
    new = damage.data(data)
    if new is None:
        ground.bucket.client.remove_object(BUCKET, PREFIX + key)
    else:
        ground.write(key, new, damage.digest(digest or "", new))


def _unlike(ground: Ground, made: Answer, answer: Answer) -> str | None:
    """What is wrong with an answer about a picture that was made before."""
    if wrong := ground.wrong(answer, "PNG"):
        return wrong
    if url := answer.result.get("data_url"):
        data = base64.b64decode(url.partition(",")[2])
        return None if sha256(data) == ground.right["PNG"] else "the answer holds other bytes"
    old, new = made.result["meta"], answer.result["meta"]
    told = [name for name in old if name not in MADE_ANEW and old[name] != new[name]]
    return f"other {', '.join(told)}" if told else None


def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if holds():
                return True
        except S3Error:
            pass
        time.sleep(0.1)
    return False


def _said(word: str, _data: bytes) -> bytes:
    return word.encode()


def _with(data: bytes, *, other: bool = False, **fields: Any) -> bytes:
    """A manifest whose picture has other fields; `other`: the key is meant beside the old one."""
    said = json.loads(data)
    one = said["finished"]["0"]
    if other:
        fields["key"] = f"{one['key'].rpartition('/')[0]}/{fields['key']}"
    one.update(fields)
    return json.dumps(said).encode()


def _of_many(data: bytes) -> bytes:
    said = json.loads(data)
    said["finished"] = {str(number): said["finished"]["0"] for number in range(20_000)}
    return json.dumps(said).encode()


def run(_candidate: str) -> Iterator[Outcome]:
    """Every case."""
    yield from on_lanes(sources(), source, workers=WORKERS, each=EACH)
    yield from on_lanes((*results(), *manifests()), repeat, workers=WORKERS, each=EACH)


SUITE = Suite("S8", "damage is found, made anew, repaired once, and never delivered", run)
