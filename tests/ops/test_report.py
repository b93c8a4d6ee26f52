"""What `python -m ops.report` reads from a log, and what it comes to."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from local.runpod_rest import LocalRest
from local.worker import ROOT
from ops.report import page
from ops.report.__main__ import app
from ops.report.numbers import MAX_BINS, MAX_LIVES, MEMORY_POINTS, Numbers, compute
from ops.report.read import Log, read
from tests.ops import logs
from tests.ops.conftest import deployed
from tests.ops.logs import GB, PRICE, done, failed, line, ready

HOSTILE = "</script><script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'>\"'\u202e{{ 7 * 7 }}"


def log_of(tmp_path: Path, *lines: dict[str, Any]) -> Log:
    file = tmp_path / "worker.log"
    file.write_text(logs.text(list(lines)))
    return read([str(file)])


def numbers_of(tmp_path: Path, *lines: dict[str, Any]) -> Numbers:
    return compute(log_of(tmp_path, *lines))


def said(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_head(tmp_path: Path) -> None:
    """Jobs by their outcome, pictures made and reused, the seconds of the GPU."""
    head = numbers_of(
        tmp_path,
        ready(40),
        done(60),
        done(70, reused=[True, False], gpu_s=4.0),
        done(80, status="partial", type="ModelError"),
        failed(90),
        done(100, operation="health", reused=None, gpu_s=None, cost_usd=None),
    ).head

    assert (head.begin, head.end) == ("2026-11-21T05:00:06Z", "2026-11-21T05:01:40Z")
    assert head.seconds == pytest.approx(93.1)
    assert (head.workers, head.starts, head.jobs, head.done, head.partial, head.failed) == (1, 1, 5, 3, 1, 1)
    assert (head.success_share, head.made, head.reused, head.gpu_seconds) == (0.6, 3, 1, 16.0)


def test_quantiles_are_values_that_were_measured(tmp_path: Path) -> None:
    """Of a hundred the 50th, the 95th and the 99th; health and what failed is not among them."""
    jobs = [done(number, timings_ms={"edit": number * 10.0, "total": number * 1000.0}) for number in range(1, 101)]
    others = [done(101, operation="health", timings_ms={"total": 1.0}), failed(102)]
    latency = numbers_of(tmp_path, *jobs[::-1], *others).latency

    assert latency
    total = latency.stages["total"]
    assert (total.count, total.p50, total.p95, total.p99, total.highest) == (100, 50_000, 95_000, 99_000, 100_000)
    assert list(latency.stages) == ["edit", "total"]
    assert latency.share == {"edit": {"edit": 1.0}}
    assert (sum(latency.made) + latency.longer, latency.longer, latency.bin_s) == (100, 1, 5.0)
    assert latency.made[1] == 5


def test_the_share_of_stages_and_the_jobs_that_were_reused(tmp_path: Path) -> None:
    """By operation; a job is reused if all of its pictures are."""
    reused = done(2, operation="inpaint", reused=[True], timings_ms={"fetch": 50.0, "lookup": 150.0, "total": 200.0})
    latency = numbers_of(tmp_path, done(1), reused).latency

    assert latency
    assert latency.share["inpaint"] == {"fetch": 0.25, "lookup": 0.75}
    assert latency.share["edit"]["edit"] == 0.75
    assert (sum(latency.made) + latency.longer, sum(latency.reused)) == (1, 1)


def test_each_worker_ready_begins_a_life(tmp_path: Path) -> None:
    """It began when its process did; without a start in the log, with its first line. Each has its price."""
    numbers = numbers_of(
        tmp_path,
        done(100), done(110),
        line(165, "weights read ahead"),  # of the process that is ready at 190
        ready(190), done(200),
        ready(1033.1, usd_per_second=0.002, seconds_from_process_start={"load": 30.0, "ready": 33.1}), done(1100),
    )  # fmt: skip
    first, second, third = numbers.lives

    assert [life.name for life in numbers.lives] == ["worker.log #1", "worker.log #2", "worker.log #3"]
    assert [life.jobs for life in numbers.lives] == [2, 1, 1]
    assert [life.start_is_known for life in numbers.lives] == [False, True, True]
    assert (first.seconds, first.whole_usd) == (10.0, None)
    assert second.seconds == pytest.approx(200 - 156.9)
    assert second.whole_usd == pytest.approx((200 - 156.9) * PRICE)
    assert third.begin == "2026-11-21T05:16:40Z"
    assert third.seconds == pytest.approx(100.0)
    assert third.busy_share == pytest.approx(0.06)
    assert third.parts == {"load": 30.0, "ready": 33.1}
    assert numbers.cost.whole_usd == pytest.approx((200 - 156.9) * PRICE + 100 * 0.002)
    assert numbers.cost.lives_without_price == 1
    assert numbers.over_time.whole_usd[-1] == pytest.approx(numbers.cost.whole_usd)
    assert numbers.starts
    assert (numbers.starts.count, numbers.starts.highest) == (2, 33.1)


def test_workers_are_told_apart_by_their_id_or_their_file(tmp_path: Path) -> None:
    """Two files of the same name are two workers."""
    names = []
    for folder, number in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "worker.log"
        file.write_text(logs.text([done(number), {**done(number + 10), "worker": "k3x9"}]))
        names.append(str(file))

    assert sorted(read(names).times) == ["k3x9", "worker.log", "worker.log 2"]


def test_a_cancelled_job_is_one_that_failed(tmp_path: Path) -> None:
    """Of a type that is no error; what it took of the GPU counts."""
    cancelled = line(50, "job cancelled", status="cancelled", operation="edit", stage="edit", gpu_s=1.5, cost_usd=0.25)
    numbers = numbers_of(tmp_path, done(40), cancelled)

    assert numbers.errors.by_stage == {"cancelled": {"edit": 1}}
    assert (numbers.head.jobs, numbers.head.failed, numbers.head.gpu_seconds) == (2, 1, 7.5)


def test_the_report_reads_what_logs_prints(rest: LocalRest, made: Callable[..., str], tmp_path: Path) -> None:
    """The lines inside, of the workers that they are of; the same lines as the worker wrote them are there twice."""
    rest.workers[made()] = [{"id": "w1", "status": "IDLE"}]
    plain = [json.dumps(one) for one in (ready(33.1), done(40), {**failed(50), "worker": "inner"})]
    rest.lines, rest.breaks = ["no JSON", "", *plain], True
    wrapped, written = tmp_path / "wrapped.log", tmp_path / "written.log"
    wrapped.write_text(deployed("logs").out)
    written.write_text("\n".join(plain))

    log = read([str(wrapped), str(written)])

    assert {name: len(times) for name, times in log.times.items()} == {"w1": 2, "inner": 1}
    assert [(job.outcome, job.worker) for job in log.jobs] == [("done", "w1"), ("failed", "inner")]
    assert (log.counts.lines, log.counts.used, log.counts.no_json, log.counts.repeated) == (7, 3, 1, 3)


def test_what_failed_by_type_stage_and_reason(tmp_path: Path) -> None:
    """Reasons that differ in numbers only are one, the last of them is shown."""
    numbers = numbers_of(
        tmp_path,
        done(1),
        *(failed(number, reason=f"took longer than {number}.5 s", retryable=True) for number in (10, 20, 30)),
        failed(40, type="ModelError", stage="edit", reason="out of memory"),
        done(50, status="partial", type="ModelError", stage="upload", reason="gone"),
    )

    assert numbers.errors.by_stage == {"DownloadFailed": {"fetch": 3}, "ModelError": {"edit": 1, "upload": 1}}
    first = numbers.errors.reasons[0]
    assert (first.text, first.count, first.retryable) == ("took longer than 30.5 s", 3, 3)
    assert (first.first, first.last) == ("2026-11-21T05:00:10Z", "2026-11-21T05:00:30Z")
    assert numbers.errors.kinds_of_reasons == 3


def test_over_time(tmp_path: Path) -> None:
    """Rates, shares, waits and costs of each bin; nothing where there was no job."""
    assert numbers_of(tmp_path, done(0), done(119)).over_time.bin_s == 1
    waits = ({"queue": 100.0, "total": 1.0}, {"queue": 300.0, "total": 1.0})
    over = numbers_of(
        tmp_path, done(0, sources=2, cache_hits=1, timings_ms=waits[0], reused=[True, False]),
        done(1, sources=2, cache_hits=0, timings_ms=waits[1], reused=[False, False]),
        failed(11), done(130, cost_usd=None),
    ).over_time  # fmt: skip
    assert (over.bin_s, len(over.begins), over.begins[1]) == (5, 27, "2026-11-21T05:00:05Z")
    assert over.per_minute[:3] == [24.0, 0.0, 12.0]
    assert (over.done[0], over.failed[2], over.done[-1]) == (2, 1, 1)
    assert (over.source_share[:2], over.reused_share[:2]) == ([0.25, None], [0.25, None])
    assert (over.queue_p50_ms[0], over.queue_highest_ms[0], over.queue_p95_ms[1]) == (100.0, 300.0, None)
    assert over.usd == pytest.approx([12 * PRICE] * 27)


def test_what_is_drawn_is_never_much(tmp_path: Path) -> None:
    """However long the time is, and however many jobs and workers there are."""
    years = numbers_of(tmp_path, *(done(day * 86400.0) for day in range(0, 3000, 50)))
    assert len(years.over_time.begins) <= MAX_BINS
    assert sum(years.over_time.done) == 60

    many = numbers_of(tmp_path, *(done(number, memory={"host": number}) for number in range(2000)))
    assert len(many.lives[0].times) <= MEMORY_POINTS + 1
    assert max(size or 0 for size in many.lives[0].drawn["host"]) == 1999

    starts = numbers_of(
        tmp_path, *(one for number in range(200) for one in (ready(number * 50), done(number * 50 + 1)))
    )
    assert (len(starts.lives), starts.all_lives, starts.starts and starts.starts.count) == (MAX_LIVES, 200, 200)
    assert starts.lives[-1].name == "worker.log #200"


def test_memory_of_each_life(tmp_path: Path) -> None:
    """Host and GPU; on a CPU there is no GPU's."""
    numbers = numbers_of(tmp_path, done(1), done(2, memory={"host": 7 * GB}))
    memory = numbers.lives[0].memory

    assert (memory["host"].count, memory["host"].p50, memory["host"].highest) == (2, 6e9, 7e9)
    assert (memory["gpu_peak"].count, memory["gpu_peak"].highest) == (1, 66e9)


def test_what_it_costs(tmp_path: Path) -> None:
    """By operation, and for a picture that was made; what has no price is told."""
    cost = numbers_of(
        tmp_path,
        ready(33.1),
        done(100, reused=[False, False]),
        done(110, operation="generate", cost_usd=None),
        failed(120, operation="unknown"),
        failed(120, operation="paint"),
    ).cost

    assert cost.usd == pytest.approx(6 * PRICE)
    assert cost.usd_per_made == pytest.approx(2 * PRICE)
    assert (cost.jobs_without_price, cost.lives_without_price) == (1, 0)
    assert cost.operations["edit"].usd_per_made == pytest.approx(3 * PRICE)
    assert cost.operations["generate"].usd is None
    assert {name: one.jobs for name, one in cost.operations.items()} == {
        "edit": 1,
        "generate": 1,
        "unknown": 1,
        "other": 1,
    }
    assert cost.whole_usd == pytest.approx(120 * PRICE)
    assert cost.busy_share == pytest.approx(0.1)


def test_lines_to_look_at(tmp_path: Path) -> None:
    """What is CRITICAL, jobs that were stopped, and answers that nobody took."""
    numbers = numbers_of(
        tmp_path, done(1), line(2, "job stopped"), line(3, "this process ends", level="CRITICAL"),
        line(4, "answer not delivered: gone"), line(5, "answer delivered"),
    )  # fmt: skip

    assert [one.text for one in numbers.events] == ["job stopped", "this process ends", "answer not delivered: gone"]
    assert numbers.events[1].level == "CRITICAL"


def test_what_is_no_line_of_the_worker_is_skipped_and_counted(tmp_path: Path) -> None:
    """A console's prefix is not; a line that is there twice counts once."""
    good = json.dumps(done(1))
    file = tmp_path / "worker.log"
    parts = [
        good, f'2026-11-21 [info] {good[:-1]}, "requestId": "2"}} trailing', good, "", "no JSON", good[:-5], "{'a': 1}",
        "[" * 10**5, "{" * 10**5, '{"a": ' * 10**5, "{}", '{"message": "job done", "time": 5, "logger": "a"}',
        '{"message": "job done", "logger": "a", "time": "0001-01-01T00:00:00+14:00"}', json.dumps(line(2, "other")),
        '{"message": "job done", "n": ' + "9" * 5000 + "}", '{"x": "' + "x" * 2**21 + '"}' + good,
    ]  # fmt: skip
    file.write_bytes("\n".join(parts).encode() + b"\n\xff\xfe{\xff}\n")
    counts = read([str(file)]).counts

    assert (counts.lines, counts.used, counts.unused, counts.repeated) == (16, 2, 1, 1)
    assert (counts.no_json, counts.broken, counts.foreign) == (2, 7, 3)
    assert counts.skipped == 12


def test_values_that_cannot_be_are_none(tmp_path: Path) -> None:
    """Wrong types, numbers that nothing measures, and names that are none."""
    strange: tuple[Any, ...] = (float("nan"), float("inf"), -1, 10**400, "7", True, [], {}, None, HOSTILE)
    for value in strange:
        numbers = numbers_of(
            tmp_path,
            ready(
                40, worker=value, seconds_from_process_start={"load": value}, usd_per_second=value, device=value,
                versions={"torch": value}, model_id=value, preset=value,
            ),
            ready(41, seconds_from_process_start=value, worker="w"),
            done(
                50, operation=value, reused=[value], sources=value, cache_hits=value, gpu_s=value, cost_usd=value,
                timings_ms={"total": value, "queue": value}, memory={"host": value}, requestId=value, worker=value,
            ),
            done(51, timings_ms=value, memory=value, reused=value, worker="w", status=value),
            failed(52, type=value, stage=value, reason=value, retryable=value),
        )  # fmt: skip
        assert numbers.head.jobs == 3
        assert (numbers.head.gpu_seconds, numbers.queue, numbers.cost.jobs_without_price) == (6.0, None, 1)
        assert json.dumps(asdict(numbers), allow_nan=False)
        assert "\u202e" not in page.html(numbers)


def test_a_page_says_what_is_missing(tmp_path: Path) -> None:
    """One job of nothing but its outcome: no empty plot."""
    html = page.html(numbers_of(tmp_path, line(1, "job done", status="success")))

    for sentence in (
        "No job for pictures was done and told its timings_ms.", "No job for pictures tells timings_ms.queue.",
        "No job failed.", "No job tells its sources, or which of its pictures were reused.",
        "No job tells the memory of its worker.", "No worker ready with seconds_from_process_start is in the log.",
        "There is no price in the log: neither cost_usd nor usd_per_second.",
    ):  # fmt: skip
        assert sentence in html
    assert html.count('class="plot"') == 1


def test_hostile_text_is_text(tmp_path: Path) -> None:
    """It is shown, and is neither markup nor the end of a script."""
    html = page.html(numbers_of(tmp_path, done(1), failed(2, reason=HOSTILE), line(3, HOSTILE, level="CRITICAL")))

    assert html.count("&lt;/script&gt;&lt;script&gt;window.harmed = 1") == 2
    assert "<img" not in html.partition("<script type")[0]
    assert html.count("</script>") == 3
    assert "{{ 7 * 7 }}" in html


def test_the_command_writes_the_page_and_says_what_it_read(tmp_path: Path) -> None:
    """Several files, one of them compressed, one of them cut off."""
    plain, packed, cut = (tmp_path / name for name in ("a.log", "b.log.gz", "c.log.gz"))
    plain.write_text(logs.text([ready(33.1), done(40)]) + "noise\n")
    packed.write_bytes(gzip.compress(logs.text([done(50)]).encode()))
    cut.write_bytes(gzip.compress(logs.text([done(60), done(70)]).encode())[:-12])
    out = tmp_path / "new" / "page.html"
    code, stdout, stderr = said(plain, packed, cut, "-o", out)

    assert (code, stdout) == (0, "")
    assert stderr.startswith("Read 5 lines of 3 files: 4 used, 0 other lines of the worker, 0 repeated, 1 skipped (1 ")
    assert f"{cut} ends too early" in stderr
    assert f"{out} is written" in stderr
    assert out.read_text().startswith("<!doctype html>")


def test_the_command_prints_the_numbers(tmp_path: Path) -> None:
    """The same that the page shows; nothing is written."""
    file = tmp_path / "worker.log"
    file.write_text(logs.text(list(logs.day(60))))
    code, stdout, _ = said(file, "--json")

    assert code == 0
    assert json.loads(stdout) == json.loads(json.dumps(asdict(compute(read([str(file)])))))


@pytest.mark.parametrize("empty", ["", "noise\n", logs.text([ready(40)])])
def test_a_log_without_a_job(tmp_path: Path, empty: str) -> None:
    """One sentence, and no page."""
    file = tmp_path / "worker.log"
    file.write_text(empty)
    code, _, stderr = said(file, "-o", tmp_path / "page.html")

    assert code == 1
    assert stderr.splitlines()[1:] == ["There is no job in it: no line says job done or job failed."]
    assert not (tmp_path / "page.html").exists()


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    """All are named at once."""
    file = tmp_path / "worker.log"
    file.write_text(logs.text([done(1)]))

    code, _, stderr = said(tmp_path / "none.log", file, tmp_path)
    assert (code, stderr) == (1, f"{tmp_path}/none.log: there is no such file; {tmp_path}: is a folder.\n")
    code, _, stderr = said(file, "-o", tmp_path)
    assert code == 1
    assert stderr.splitlines()[1:] == [f"{tmp_path} cannot be written: Is a directory."]


def test_it_runs_without_the_worker_and_reads_stdin(tmp_path: Path) -> None:
    """As a process, with nothing of the worker, its stand-ins or torch."""
    code = (
        "import sys; from ops.report.__main__ import app; app(standalone_mode=False); "
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'qwen_worker', 'local', 'torch', 'numpy'}))"
    )
    command = [sys.executable, "-c", code, "-", "-o", str(tmp_path / "page.html")]
    done_ = subprocess.run(
        command, cwd=ROOT, input=logs.text([done(1)]), capture_output=True, text=True, check=True, timeout=60
    )

    assert done_.stdout == "[]\n"
    assert "Read 1 lines of 1 file: 1 used" in done_.stderr
