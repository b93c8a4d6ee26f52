"""A fair sample of the hostile pictures, and what it is worth: that the harness sees what gets through."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hostile.decoding import corpus, looks
from hostile.decoding import ordinary as ordinary_pictures
from hostile.decoding.caller import PILLOW
from hostile.decoding.hard import Limits, put
from hostile.decoding.harness import Decoding
from hostile.outcome import WORKER
from hostile.pictures import broken, foreign, jpeg, png, profiles, scans, webp
from hostile.pictures.parts import Named, file_of, photo, photo_file

SMALL = 100_000  # bytes


@pytest.fixture(scope="module")
def worker() -> Iterator[Decoding]:
    """This worker's decoder."""
    with Decoding(WORKER) as decoding:
        yield decoding


def failures(decoding: Decoding, cases: Iterable[Named], limits: Limits | None = None) -> dict[str, str]:
    # How long it takes is for the report: here other work may hold the machine up.
    found = put(decoding, cases, limits or Limits(seconds=20))
    return {one.name: one.through for one in found if one.through}


def small(*cases: Iterable[Named], step: int = 1) -> list[Named]:
    return [case for case in islice(chain(*cases), 0, None, step) if len(case[1]) < SMALL]


def test_lies_end_in_a_picture_or_a_refusal(worker: Decoding) -> None:
    """Soon, within memory, and the next picture is decoded: whatever sizes, colours and tags are claimed."""
    lies = small(png.palettes(), jpeg.tables(), png.exif(), jpeg.exif(), webp.exif(), jpeg.phones(), step=2)

    assert len(lies) > 150
    assert failures(worker, lies) == {}


@pytest.mark.parametrize("case", ["png-palette-missing", "png-1x178000000", "png-claims-50-megapixels"])
def test_a_png_of_a_few_bytes_is_refused(worker: Decoding, case: str) -> None:
    """One of 69 bytes takes others 3.4 GB."""
    answer = worker.put(dict(chain(png.sizes(), png.palettes()))[case]).answer

    assert answer.refused
    assert answer.after is None


def test_damage_ends_in_a_picture_or_a_refusal(worker: Decoding) -> None:
    """Cut off, a bit flipped, bytes overwritten."""
    assert failures(worker, small(broken.all_of_them(), step=20)) == {}


def test_what_is_no_picture_is_refused(worker: Decoding) -> None:
    """Whatever it is instead."""
    refused = {name for name, data in small(foreign.TEXTS.items()) if worker.put(data).answer.refused}

    assert refused == {name for name, _ in small(foreign.TEXTS.items())}


@pytest.mark.parametrize("marker", [0x02, 0x4F, 0xBF])
def test_scans_are_counted_behind_a_marker_that_libjpeg_skips(worker: Decoding, marker: int) -> None:
    """Where a restart is due: who believes that marker's length misses thousands of scans."""
    answer = worker.put(scans.hidden_scans(800, 800, marker, 1)).answer

    assert answer.refused
    assert "scans" in answer.refused


@pytest.mark.slow
def test_a_profile_of_endless_steps_is_not_waited_for(worker: Decoding) -> None:
    """A PNG of 823 bytes whose colours take lcms seconds to think about."""
    endless = [("png", profiles.in_png(profiles.long(200_000)))]

    assert failures(worker, endless) == {}


def test_the_harness_sees_what_is_slow_or_large(worker: Decoding) -> None:
    """Limits that nothing can keep are kept by nothing; the others tell what does not hold them."""
    honest = [("a", photo_file("PNG"))]

    assert failures(worker, honest) == {}
    assert "it took" in failures(worker, honest, Limits(seconds=-1))["a"]
    assert "MB" in failures(worker, honest, Limits(peak_mb=1))["a"]


def test_the_harness_sees_what_unfolds() -> None:
    """Pillow alone takes 100 MB for a WebP of 34 bytes, and raises what nobody expects."""
    bombs = [("webp", webp.flat(3000, 3000)), ("odd", dict(png.palettes())["png-palette-257-clear-None"])]

    with Decoding(PILLOW) as decoding:
        found = failures(decoding, bombs, Limits(peak_mb=100, seconds=20))

    assert "a process held" in found["webp"]
    assert "ValueError" in found["odd"]


def test_the_harness_sees_a_death() -> None:
    """And puts the next picture to a new process."""
    with Decoding(WORKER) as decoding:
        decoding._caller.kill()
        died, next_one = decoding.put(photo_file("PNG")).answer, decoding.put(photo_file("PNG")).answer

    assert died.untyped
    assert "died" in died.untyped
    assert next_one.decoded


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_ordinary_picture_has_a_reference(kind: str) -> None:
    """A whole one; not half of one, nor one of another format."""
    data = photo_file(kind)

    assert ordinary_pictures.ordinary(data) is not None
    assert ordinary_pictures.ordinary(data[:-30]) is None
    assert ordinary_pictures.ordinary(photo_file("BMP")) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_other_pixels_than_the_reference_are_seen(kind: str) -> None:
    """One pixel is enough."""
    data = photo_file(kind)
    reference = ordinary_pictures.ordinary(data)
    assert reference is not None
    pixels = reference[..., ::-1].copy()

    assert ordinary_pictures.difference(data, reference, pixels) is None
    pixels[5, 5, 1] ^= 64
    assert "differ" in str(ordinary_pictures.difference(data, reference, pixels))


@pytest.mark.slow
def test_pictures_look_as_meant() -> None:
    """Turns, tones, transparency and colours are those of the definitions, and no metadata reach a result."""
    assert {one.name: one.through for one in looks.attack(WORKER) if one.through} == {}


@pytest.mark.slow
def test_what_looks_wrong_is_seen() -> None:
    """Pillow alone neither turns pictures nor minds their colours."""
    wrong = {one.name for one in looks.attack(PILLOW) if one.through}

    assert {"PNG of orientation 6", "grey of 16 bits", "PNG RGBA on white", "JPEG of Display P3"} <= wrong


def test_test_pictures_that_cannot_be_fetched_are_an_error(tmp_path: Path) -> None:
    """It names the client that is missing: attacks that were not made must not pass."""
    with pytest.raises(corpus.CorpusError, match="no-such-client is not installed"):
        corpus._client(["no-such-client"], tmp_path)
    with pytest.raises(corpus.CorpusError, match="could not fetch it: sorry"):
        corpus._client(["sh", "-c", "echo sorry >&2; exit 1"], tmp_path)


def test_test_pictures_are_fetched_once(tmp_path: Path) -> None:
    """What is there is counted, not asked for again."""
    for name in ("pillow", *corpus.DEBIAN):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"")

    assert corpus.fetch(tmp_path) == {"pillow": 1, **dict.fromkeys(corpus.DEBIAN, 1)}
    assert len(list(corpus.files(tmp_path))) == 1 + len(corpus.DEBIAN)


def test_the_generator_makes_the_same_each_time() -> None:
    """A failure can be made again."""
    assert list(jpeg.tables()) == list(jpeg.tables())
    assert list(islice(broken.flipped(), 50)) == list(islice(broken.flipped(), 50))


def test_a_flat_webp_is_what_it_says(worker: Decoding) -> None:
    """34 bytes written by hand are a true picture."""
    picture = Image.frombytes("RGB", (40, 30), bytes([9, 99, 199]) * 1200)

    pixels = worker.put(webp.flat(40, 30), wants_pixels=True).answer.pixels

    assert pixels is not None
    assert np.array_equal(pixels, np.asarray(picture))
    assert len(webp.flat(40, 30)) < len(file_of(photo(), "WEBP"))
