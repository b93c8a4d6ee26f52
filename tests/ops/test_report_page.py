"""The page of `python -m ops.report` in a browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from local import browser
from local.browser import Browser, BrowserError
from ops.report import page
from ops.report.numbers import Numbers, compute
from ops.report.read import read
from tests.ops import logs
from tests.ops.test_report import HOSTILE, numbers_of

pytestmark = pytest.mark.slow
DESK, PHONE = (1280, 900), (360, 740)
# Of each plot how many bars and points it has drawn.
DRAWN = (
    "Object.fromEntries([...document.querySelectorAll('.plot')].map(plot => "
    "[plot.id, plot.querySelectorAll('.point path, path.point').length]))"
)
TOO_WIDE = "document.documentElement.scrollWidth - innerWidth"
MAX_PAGE = 8_000_000  # bytes


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for all tests of this module."""
    with Browser(browser.install()) as running:
        yield running


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> tuple[Numbers, Path]:
    """Three workers, 900 jobs."""
    return written(numbers_of(tmp_path_factory.mktemp("log"), *logs.day(900)), tmp_path_factory.mktemp("page"))


def written(numbers: Numbers, folder: Path) -> tuple[Numbers, Path]:
    file = folder / "page.html"
    file.write_text(page.html(numbers))
    return numbers, file


def test_every_plot_is_drawn_and_nothing_is_asked_for(chromium: Browser, day: tuple[Numbers, Path]) -> None:
    """Without a word in the console; the numbers of the log are there to read."""
    numbers, file = day
    chromium.show(file, DESK)
    drawn = chromium.value(DRAWN)
    text = chromium.value("document.body.innerText")

    assert chromium.errors == []
    assert chromium.requests == [file.as_uri()]
    assert len(drawn) == 11
    assert all(drawn.values()), drawn
    assert drawn["plot-throughput"] == 2 * sum(map(bool, numbers.over_time.begins))
    assert drawn["plot-starts"] == 7 * len(numbers.lives)
    for shown in ("Jobs\n900\n", f"{numbers.head.success_share:.1%}", f"{numbers.head.made:,}", "k3x9worker0002 #2"):
        assert shown in text


def test_each_plot_has_a_label_and_a_table(chromium: Browser, day: tuple[Numbers, Path]) -> None:
    """For who does not see it; and every section a heading by which it is named."""
    chromium.show(day[1], DESK)

    assert chromium.value("[...document.querySelectorAll('.plot')].every(plot => plot.ariaLabel.length > 20)")
    assert chromium.value(
        "[...document.querySelectorAll('section')].every(one => one.querySelectorAll('tbody tr').length > 0 "
        "|| !one.querySelector('.plot'))"
    )
    assert chromium.value("document.querySelectorAll('section > h2').length") == 10
    assert chromium.value("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")


def test_on_a_phone_nothing_is_wider_than_the_page(chromium: Browser, day: tuple[Numbers, Path]) -> None:
    """Tables scroll in their own places, also when they are unfolded."""
    chromium.show(day[1], PHONE)
    chromium.value("document.querySelectorAll('details').forEach(one => { one.open = true; })")

    assert chromium.value("innerWidth") == PHONE[0]
    assert chromium.value(TOO_WIDE) <= 0
    assert all(chromium.value(DRAWN).values())
    assert chromium.errors == []


def test_light_and_dark(chromium: Browser, day: tuple[Numbers, Path]) -> None:
    """The page's ground and the ink of the plots are each other's opposites."""
    look = (
        "[getComputedStyle(document.body).backgroundColor, "
        "document.querySelector('.xtick text').style.fill].map(one => Math.max(...one.match(/[\\d.]+/g).map(Number)))"
    )
    chromium.show(day[1], DESK)
    ground, ink = chromium.value(look)
    assert ground > 240
    assert ink < 60
    chromium.show(day[1], DESK, dark=True)
    ground, ink = chromium.value(look)
    assert ground < 60
    assert ink > 200


def test_hostile_text_does_nothing(chromium: Browser, tmp_path: Path) -> None:
    """In every field at once; it is read as it was written."""
    lines = [
        {**line, **{key: HOSTILE for key in ("worker", "type", "operation", "preset", "reason") if key in line}}
        for line in (
            {**logs.ready(40), "worker": HOSTILE},
            {**logs.done(50), "worker": HOSTILE},
            {**logs.failed(51), "worker": HOSTILE},
            {**logs.line(52, HOSTILE, level="CRITICAL"), "worker": HOSTILE},
        )
    ]
    chromium.show(written(numbers_of(tmp_path, *lines), tmp_path)[1], DESK)

    assert chromium.errors == []
    assert len(chromium.requests) == 1
    assert chromium.value("window.harmed") is None
    assert chromium.value("document.body.innerText.split('</script><script>window.harmed').length") == 4
    assert all(chromium.value(DRAWN).values())


def test_the_policy_stops_what_gets_into_the_page(chromium: Browser, day: tuple[Numbers, Path], tmp_path: Path) -> None:
    """Neither a script of another's nor an address: the tests above would see it."""
    file = tmp_path / "page.html"
    foreign = "<script>window.harmed = 1</script><img src='http://127.0.0.1:9/x.png'>"
    file.write_text(day[1].read_text().replace("<main>", f"<main>{foreign}"))
    chromium.show(file, DESK)

    assert chromium.value("window.harmed") is None
    assert len([one for one in chromium.errors if "Content Security Policy" in one]) == 2


def test_a_page_of_little(chromium: Browser, tmp_path: Path) -> None:
    """One job that tells nothing of itself: one plot, and words for the others."""
    numbers = numbers_of(tmp_path, logs.line(1, "job done", status="success"))
    chromium.show(written(numbers, tmp_path)[1], PHONE)

    assert chromium.errors == []
    assert chromium.value(DRAWN) == {"plot-throughput": 2}
    assert chromium.value(TOO_WIDE) <= 0


def test_a_long_log(chromium: Browser, tmp_path: Path) -> None:
    """100,000 jobs: the page is not much larger than plotly.js is, and is drawn."""
    file = tmp_path / "worker.log"
    file.write_text(logs.text(list(logs.day(100_000))))
    numbers, shown = written(compute(read([str(file)])), tmp_path)
    chromium.show(shown, DESK)

    assert numbers.head.jobs > 99_000
    assert shown.stat().st_size < MAX_PAGE
    assert all(chromium.value(DRAWN).values())


def test_the_browser_tells_what_goes_wrong(chromium: Browser, tmp_path: Path) -> None:
    """A page that is not there, an exception, an error of the console, a request."""
    with pytest.raises(BrowserError, match="FILE_NOT_FOUND"):
        chromium.show(tmp_path / "none.html", DESK)
    file = tmp_path / "page.html"
    file.write_text("<img src='none.png'><script>console.error('one', 2); throw new Error('three')</script>")
    chromium.show(file, DESK)

    assert {"one 2", "Error: three"} < {one.partition("\n")[0] for one in chromium.errors}
    assert chromium.requests == [file.as_uri(), (tmp_path / "none.png").as_uri()]
    with pytest.raises(BrowserError, match="nothing is not defined"):
        chromium.value("nothing.at.all")
