"""The numbers as one HTML page that asks for nothing: plotly.js is in it, and its policy allows no address."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from ops.report.numbers import MAX_EVENTS, MAX_LIVES, Life, Numbers
from ops.report.read import MEMORY, NOT_TOLD, OTHER, PARTS, STAGES

# After Okabe and Ito, whose colours colour-blind people can tell apart; each shows on white and on black.
BLUE, ORANGE, GREEN, RED = "#2186c4", "#e69f00", "#009e73", "#d55e00"
SKY, PINK, YELLOW, GREY, BROWN = "#56b4e9", "#cc79a7", "#c9b800", "#8a8a8a", "#8c5a2b"
STAGE_COLOURS = dict(zip(STAGES, (GREY, SKY, PINK, YELLOW, ORANGE, BLUE, GREEN, RED), strict=True))
PART_COLOURS = dict(zip(PARTS, (GREY, SKY, PINK, ORANGE, BLUE, GREEN, RED), strict=True))
MEMORY_LINES = {
    "host": ("host", GREEN, "solid"),
    "gpu": ("GPU", BLUE, "solid"),
    "gpu_peak": ("GPU peak", ORANGE, "dot"),
}
NONE = "-"
NBSP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Table:
    """Cells are text; the first of a row is its heading."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Plot:
    """As plotly takes it; `label` says in words what there is to see."""

    id: str
    label: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 280


@dataclass(frozen=True)
class Section:
    """A heading, sentences, plots and tables; where nothing is to be shown, what is missing."""

    id: str
    title: str
    says: Sequence[str]
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()


def html(numbers: Numbers) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("ops.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [
        _latency(numbers),
        _queue(numbers),
        _throughput(numbers),
        _errors(numbers),
        _cache(numbers),
        _memory(numbers),
        _starts(numbers),
        _cost(numbers),
        _workers(numbers),
        _events(numbers),
    ]
    plots = [plot for section in sections for plot in section.plots]
    scripts = [get_plotlyjs(), (files("ops.report") / "page.js").read_text()]
    return environment.get_template("page.html.jinja").render(
        head=numbers.head,
        tiles=_tiles(numbers),
        read=numbers.read,
        span=_span(numbers.over_time.bin_s),
        sections=sections,
        plots=[{"id": plot.id, "data": plot.data, "layout": plot.layout} for plot in plots],
        scripts=scripts,
        digests=[_digest(script) for script in scripts],
    )


def _digest(script: str) -> str:
    """By which a policy allows a script: no other one runs, whatever gets into the page."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _tiles(numbers: Numbers) -> list[tuple[str, str, str]]:
    """Name, value, and what else is to be said."""
    head, cost = numbers.head, numbers.cost
    same_day = head.begin[:10] == head.end[:10]
    end = _when(head.end)[11 if same_day else 0 : 16]
    failed = [f"{head.failed:,} failed", *([f"{head.partial:,} in part"] if head.partial else [])]
    return [
        ("Period", _span(head.seconds), f"{_when(head.begin)[:16]} to {end} UTC"),
        ("Workers", f"{head.workers:,}", f"{head.starts:,} {'start' if head.starts == 1 else 'starts'} in the log"),
        ("Jobs", f"{head.jobs:,}", ", ".join(failed)),
        ("Success", _percent(head.success_share), f"{head.done:,} of {head.jobs:,} jobs"),
        ("Pictures made", f"{head.made:,}", f"{head.reused:,} reused"),
        ("GPU seconds", _amount(head.gpu_seconds), f"{_percent(cost.busy_share)} of the workers' time"),
        ("Cost of jobs", _usd(cost.usd), f"{_usd(cost.usd_per_made)} a picture made"),
        ("Cost of workers", _usd(cost.whole_usd), f"{_usd(cost.whole_usd_per_made)} a picture made"),
    ]


def _latency(numbers: Numbers) -> Section:
    title, latency = "Latency by stage", numbers.latency
    if latency is None:
        return Section("latency", title, ["No job for pictures was done and told its timings_ms."])
    total = latency.stages["total"]
    operations = list(reversed(latency.share))
    names = [_broken(one) for one in operations]
    shares = [
        _bars(stage, [latency.share[one].get(stage, 0.0) for one in operations], names, colour, across=True)
        for stage, colour in STAGE_COLOURS.items()
        if any(stage in one for one in latency.share.values())
    ]
    middles = [begin + latency.bin_s / 2 for begin in latency.begins_s]
    totals = [_bars("pictures made", middles, latency.made, BLUE), _bars("all reused", middles, latency.reused, ORANGE)]
    longer = f" {latency.longer:,} took longer than the second plot is wide." if latency.longer else ""
    plots = [
        Plot(
            "plot-share",
            "Share of each stage in the time of jobs, by operation",
            shares,
            {"barmode": "stack", "xaxis": {"tickformat": ".0%", "range": [0, 1]}},
            _high(operations),
        ),
        Plot(
            "plot-total",
            f"How many jobs took how long: half up to {_ms(total.p50)}, 95 % up to {_ms(total.p95)}",
            totals,
            {"barmode": "stack", "bargap": 0, "xaxis": _titled("seconds in the worker"), "yaxis": _titled("jobs")},
        ),
    ]
    all_ms = sum(one.sum for stage, one in latency.stages.items() if stage != "total")
    rows = [
        (
            stage,
            f"{one.count:,}",
            _ms(one.p50),
            _ms(one.p95),
            _ms(one.p99),
            _ms(one.highest),
            NONE if stage == "total" or not all_ms else _percent(one.sum / all_ms),
        )
        for stage, one in latency.stages.items()
    ]
    says = (
        f"Of {total.count:,} jobs for pictures that were done, half took up to {_ms(total.p50)}, 95 % up to "
        f"{_ms(total.p95)}, and the longest {_ms(total.highest)}.{longer}"
    )
    table = Table("Time of each stage", ("stage", "jobs", "p50", "p95", "p99", "longest", "share"), rows)
    return Section("latency", title, [says], plots, [table])


def _queue(numbers: Numbers) -> Section:
    title, queue, over = "Waiting for the GPU", numbers.queue, numbers.over_time
    if queue is None:
        return Section("queue", title, ["No job for pictures tells timings_ms.queue."])
    lines = [
        _line("p50", over.begins, _seconds(over.queue_p50_ms), BLUE),
        _line("p95", over.begins, _seconds(over.queue_p95_ms), ORANGE),
        _line("longest", over.begins, _seconds(over.queue_highest_ms), RED, dash="dot"),
    ]
    plot = Plot(
        "plot-queue",
        f"Seconds that jobs waited in the worker: 95 % up to {_ms(queue.p95)}",
        lines,
        {"yaxis": _titled("seconds")},
    )
    says = (
        f"In the worker, half of the jobs waited up to {_ms(queue.p50)}, 95 % up to {_ms(queue.p95)}, the longest "
        f"{_ms(queue.highest)}. Of what a job waits for a worker the log tells nothing."
    )
    rows = [
        (_when(begin), _ms(p50), _ms(p95), _ms(highest))
        for begin, p50, p95, highest in zip(
            over.begins, over.queue_p50_ms, over.queue_p95_ms, over.queue_highest_ms, strict=True
        )
        if p50 is not None
    ]
    return Section("queue", title, [says], [plot], [Table("Waits over time", ("from", "p50", "p95", "longest"), rows)])


def _throughput(numbers: Numbers) -> Section:
    over = numbers.over_time
    kinds = (("done", over.done, BLUE), ("in part", over.partial, ORANGE), ("failed", over.failed, RED))
    bars = [
        _bars(name, over.begins, [jobs * 60 / over.bin_s for jobs in counts], colour)
        for name, counts, colour in kinds
        if name != "in part" or any(counts)
    ]
    peak = max(over.per_minute)
    plot = Plot(
        "plot-throughput",
        f"Jobs a minute over time, at most {_amount(peak)}",
        bars,
        {"barmode": "stack", "yaxis": _titled("jobs a minute")},
    )
    says = f"At most {_amount(peak)} jobs a minute; each bar is {_span(over.bin_s)}."
    rows = [
        (_when(begin), f"{done:,}", f"{partial:,}", f"{failed:,}", _amount(rate))
        for begin, done, partial, failed, rate in zip(
            over.begins, over.done, over.partial, over.failed, over.per_minute, strict=True
        )
        if rate
    ]
    table = Table("Jobs over time", ("from", "done", "in part", "failed", "jobs a minute"), rows)
    return Section("throughput", "Throughput", [says], [plot], [table])


def _errors(numbers: Numbers) -> Section:
    title, errors = "Errors", numbers.errors
    if not errors.by_stage:
        return Section("errors", title, ["No job failed."])
    kinds = list(reversed(errors.by_stage))
    stages = [*STAGES, OTHER, NOT_TOLD]
    colours = {**STAGE_COLOURS, OTHER: BROWN, NOT_TOLD: BROWN}
    bars = [
        _bars(stage, [errors.by_stage[kind].get(stage, 0) for kind in kinds], kinds, colours[stage], across=True)
        for stage in stages
        if any(stage in one for one in errors.by_stage.values())
    ]
    plot = Plot(
        "plot-errors",
        "Jobs that failed, by type and stage",
        bars,
        {"barmode": "stack", "xaxis": _titled("jobs")},
        _high(kinds),
    )
    by_stage = [
        (kind, stage, f"{count:,}")
        for kind, some in errors.by_stage.items()
        for stage, count in sorted(some.items(), key=lambda pair: -pair[1])
    ]
    reasons = [
        (one.type, one.stage, one.text or NONE, f"{one.count:,}", f"{one.retryable:,}", _when(one.last))
        for one in errors.reasons
    ]
    failed = sum(sum(some.values()) for some in errors.by_stage.values())
    says = f"{failed:,} jobs failed, wholly or in part, for {errors.kinds_of_reasons:,} kinds of reasons."
    if errors.kinds_of_reasons > len(reasons):
        says += f" The {len(reasons)} most frequent are shown."
    columns = ("type", "stage", "reason, the last of its kind", "jobs", "retryable", "last")
    tables = [
        Table("Most frequent reasons", columns, reasons),
        Table("By type and stage", ("type", "stage", "jobs"), by_stage),
    ]
    return Section("errors", title, [says], [plot], tables)


def _cache(numbers: Numbers) -> Section:
    title, cache, over = "Cache", numbers.cache, numbers.over_time
    if not cache.sources and not cache.pictures:
        return Section("cache", title, ["No job tells its sources, or which of its pictures were reused."])
    lines = [
        _line("sources from the bucket", over.begins, over.source_share, BLUE),
        _line("results reused", over.begins, over.reused_share, ORANGE, dash="dash"),
    ]
    plot = Plot(
        "plot-cache",
        "Share of sources from the bucket and of results reused, over time",
        lines,
        {"yaxis": {"tickformat": ".0%", "range": [0, 1.02]}},
    )
    says = (
        f"Of {cache.sources:,} sources {cache.hits:,} came from the bucket "
        f"({_percent(cache.hits / cache.sources if cache.sources else None)}). Of {cache.pictures:,} pictures "
        f"{cache.reused:,} were reused ({_percent(cache.reused / cache.pictures if cache.pictures else None)})."
    )
    rows = [
        (_when(begin), _percent(sources), _percent(reused))
        for begin, sources, reused in zip(over.begins, over.source_share, over.reused_share, strict=True)
        if not sources is reused is None
    ]
    table = Table("Shares over time", ("from", "sources from the bucket", "results reused"), rows)
    return Section("cache", title, [says], [plot], [table])


def _memory(numbers: Numbers) -> Section:
    title, lives = "Memory", [life for life in numbers.lives if life.memory]
    if not lives:
        return Section("memory", title, ["No job tells the memory of its worker."])
    plots = []
    # Apart, since a leak on the host is small beside the model.
    for place, kinds in (("host", MEMORY[:1]), ("gpu", MEMORY[1:])):
        if lines := [line for kind in kinds if (line := _memory_line(lives, kind))]:
            label = f"Memory ({place}) of the workers after each job, over time"
            plots.append(Plot(f"plot-memory-{place}", label, lines, {"yaxis": _titled("GB")}, 240))
    columns = [f"{name}, {which}" for name, _, _ in MEMORY_LINES.values() for which in ("p50", "most")]
    rows = [
        (
            life.name,
            f"{life.jobs:,}",
            *(
                _size(getattr(life.memory[kind], which)) if kind in life.memory else NONE
                for kind in MEMORY_LINES
                for which in ("p50", "highest")
            ),
        )
        for life in lives
    ]
    says = "After each job, per process of a worker. Where jobs are many, the most of several is drawn."
    return Section("memory", title, [says], plots, [Table("Memory of each worker", ("worker", "jobs", *columns), rows)])


def _memory_line(lives: Sequence[Life], kind: str) -> dict[str, Any] | None:
    """One line for all workers, with a gap between them."""
    name, colour, dash = MEMORY_LINES[kind]
    points = [
        (at, _gigabytes(size), life.name)
        for life in lives
        for at, size in [*zip(life.times, life.drawn[kind], strict=True), (life.end, None)]
    ]
    if all(size is None for _, size, _ in points):
        return None
    times, sizes, names = zip(*points, strict=True)
    line = _line(name, times, sizes, colour, dash)
    return {**line, "text": names, "hovertemplate": "%{y:.2f} GB, %{text}"}


def _starts(numbers: Numbers) -> Section:
    title, starts = "Cold starts", numbers.starts
    lives = [life for life in numbers.lives if life.parts]
    if starts is None or not lives:
        return Section("starts", title, ["No worker ready with seconds_from_process_start is in the log."])
    names = [life.name for life in reversed(lives)]
    lengths: list[dict[str, float]] = []
    for life in lives:
        ends = [0.0, *life.parts.values()]
        lengths.append({part: end - begin for part, begin, end in zip(life.parts, ends, ends[1:], strict=False)})
    bars = [
        _bars(part, [one.get(part, 0.0) for one in reversed(lengths)], names, colour, across=True)
        for part, colour in PART_COLOURS.items()
        if any(part in one for one in lengths)
    ]
    plot = Plot(
        "plot-starts",
        f"Seconds of each part of a start: half took up to {starts.p50:.1f} s",
        bars,
        {"barmode": "stack", "xaxis": _titled("seconds")},
        _high(names),
    )
    says = (
        f"Of {starts.count:,} starts half took up to {starts.p50:.1f} s, the longest {starts.highest:.1f} s, from the "
        "start of the process. A part's time is what it took after the part that was done before it."
    )
    shown = [part for part in PARTS if any(part in life.parts for life in lives)]
    rows = [
        (life.name, _when(life.begin), *(f"{life.parts[part]:.1f} s" if part in life.parts else NONE for part in shown))
        for life in lives
    ]
    table = Table("Seconds until each part was done", ("worker", "began", *shown), rows)
    return Section("starts", title, [says], [plot], [table])


def _cost(numbers: Numbers) -> Section:
    title, cost, over = "Cost", numbers.cost, numbers.over_time
    busy = (
        f"The GPU was busy for {_amount(numbers.head.gpu_seconds)} s of the {_amount(cost.whole_seconds)} s that the "
        f"workers lived ({_percent(cost.busy_share)})."
    )
    rows = [
        (name, f"{one.jobs:,}", f"{one.made:,}", f"{_amount(one.gpu_s)} s", _usd(one.usd), _usd(one.usd_per_made))
        for name, one in cost.operations.items()
    ]
    columns = ("operation", "jobs", "pictures made", "GPU", "cost of jobs", "a picture made")
    table = Table("By operation", columns, rows)
    if cost.usd is None and cost.whole_usd is None:
        none = "There is no price in the log: neither cost_usd nor usd_per_second."
        return Section("cost", title, [none, busy], [], [table])
    lines = []
    if cost.whole_usd is not None:
        lines.append(_line("workers' whole time", over.ends, over.whole_usd, ORANGE, "dash"))
    if cost.usd is not None:
        lines.append(_line("jobs' turns on the GPU", over.ends, over.usd, BLUE))
    label = f"Cost so far: of jobs {_usd(cost.usd)} in all, of workers {_usd(cost.whole_usd)}"
    plots = [Plot("plot-cost", label, lines, {"yaxis": _titled("US dollars")})]
    if priced := {name: one.usd for name, one in reversed(cost.operations.items()) if one.usd is not None}:
        names = [_broken(name) for name in priced]
        bars = [_bars("cost of jobs", list(priced.values()), names, BLUE, across=True)]
        layout = {"xaxis": _titled("US dollars")}
        plots.append(Plot("plot-operations", "Cost of jobs, by operation", bars, layout, _high(names)))
    spent = (
        f"The jobs' turns on the GPU cost {_usd(cost.usd)}, {_usd(cost.usd_per_made)} a picture made. The workers' "
        f"whole time, from the start of the process to the last line, cost {_usd(cost.whole_usd)}, "
        f"{_usd(cost.whole_usd_per_made)} a picture made. {busy}"
    )
    if not cost.jobs_without_price and not cost.lives_without_price:
        return Section("cost", title, [spent], plots, [table])
    without = (
        f"Without a price, and in no sum: {cost.jobs_without_price:,} of {numbers.head.jobs:,} jobs, and the time of "
        f"{cost.lives_without_price:,} of {numbers.all_lives:,} processes of workers."
    )
    return Section("cost", title, [spent, without], plots, [table])


def _workers(numbers: Numbers) -> Section:
    says = [] if numbers.all_lives <= MAX_LIVES else [f"The last {MAX_LIVES} of {numbers.all_lives:,}, here and above."]
    if any(not life.start_is_known for life in numbers.lives):
        says.append("Where a start is not in the log, a worker's time is counted from its first line (*).")
    columns = ("worker", "from", "time", "jobs", "GPU busy", "cost", "model", "preset", "profile", "device", "versions")
    rows = [
        (
            life.name,
            _when(life.begin) + ("" if life.start_is_known else " *"),
            _span(life.seconds),
            f"{life.jobs:,}",
            _percent(life.busy_share),
            _usd(life.whole_usd),
            *(life.about.get(key) or NONE for key in ("model", "preset", "profile", "device", "versions")),
        )
        for life in numbers.lives
    ]
    return Section("workers", "Workers", says, [], [Table("Processes of workers", columns, rows)])


def _events(numbers: Numbers) -> Section:
    title = "Lines to look at"
    if not numbers.events:
        return Section("events", title, ["No line is CRITICAL, no job was stopped, and every answer was delivered."])
    says = [] if numbers.all_events <= MAX_EVENTS else [f"The last {MAX_EVENTS} of {numbers.all_events:,}."]
    rows = [(_when(one.at), one.worker, one.level or NONE, one.text) for one in numbers.events]
    return Section("events", title, says, [], [Table("Lines", ("when", "worker", "level", "what"), rows)])


def _bars(name: str, x: Sequence[Any], y: Sequence[Any], colour: str, *, across: bool = False) -> dict[str, Any]:
    """One colour of bars; `across`: from left to right."""
    return {
        "type": "bar",
        "name": name,
        "x": x,
        "y": y,
        "marker": {"color": colour},
        **({"orientation": "h"} if across else {}),
    }


def _line(name: str, x: Sequence[Any], y: Sequence[Any], colour: str, dash: str = "solid") -> dict[str, Any]:
    """Markers show what has no neighbour."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": x,
        "y": y,
        "line": {"color": colour, "dash": dash, "width": 2},
        "marker": {"size": 4 if len(x) > 1 else 9},
    }


def _broken(name: str) -> str:
    """A long name on two lines, for the side of a plot."""
    return name.replace("_", "_<br>")


def _titled(title: str) -> dict[str, Any]:
    return {"title": {"text": title}, "rangemode": "tozero"}


def _high(bars: Sequence[object]) -> int:
    """Pixels for so many bars, one below the other."""
    return 70 + 34 * max(len(bars), 2)


def _when(iso: str) -> str:
    return iso[:19].replace("T", " ")


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest if not hours else 0, "s"))
    return " ".join(f"{number:,} {unit}" for number, unit in parts if number) or "0 s"


def _ms(ms: float | None) -> str:
    if ms is None:
        return NONE
    return f"{ms:.0f}{NBSP}ms" if ms < 1000 else f"{_amount(ms / 1000)}{NBSP}s"


def _seconds(values: Sequence[float | None]) -> list[float | None]:
    return [None if ms is None else ms / 1000 for ms in values]


def _gigabytes(size: float | None) -> float | None:
    return None if size is None else size / 1e9


def _size(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.1%}"


def _amount(value: float) -> str:
    """Three digits that count, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _usd(value: float | None) -> str:
    if value is None:
        return "no price"
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.2g}" if value < 0.01 else f"${value:.3f}"
