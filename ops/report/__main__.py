"""See how a worker does, by its log: `python -m ops.report LOGFILE...`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ops.report import page
from ops.report.numbers import NothingToTell, compute
from ops.report.read import Log, ReadError, read

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def report(
    logfiles: Annotated[list[str], typer.Argument(help="the worker's log, JSON lines, gzip or not; - is stdin")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the page to write")] = Path("out/report.html"),
    as_json: Annotated[bool, typer.Option("--json", help="print the numbers instead of writing a page")] = False,  # noqa: FBT002 - a switch
) -> None:
    """Read a worker's log and write one HTML page with plots, which needs nothing but itself."""
    try:
        log = read(logfiles)
    except ReadError as error:
        _end(f"{error}.")
    print(_told(log), file=sys.stderr)
    try:
        numbers = compute(log)
    except NothingToTell:
        _end("There is no job in it: no line says job done or job failed.")
    if as_json:
        print(json.dumps(asdict(numbers), indent=1, allow_nan=False))
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page.html(numbers))
    except OSError as error:
        _end(f"{out} cannot be written: {error.strerror or error}.")
    print(f"{out} is written, {out.stat().st_size / 1e6:.1f} MB: open it in a browser.", file=sys.stderr)


def _told(log: Log) -> str:
    """What was read, and what was not."""
    counts = log.counts
    told = (
        f"Read {counts.lines} lines of {counts.files} {'file' if counts.files == 1 else 'files'}: "
        f"{counts.used} used, {counts.unused} other lines of the worker, {counts.repeated} repeated, "
        f"{counts.skipped} skipped ({counts.no_json} without JSON, {counts.broken} broken or cut off, "
        f"{counts.foreign} not the worker's)."
    )
    return "\n".join([told, *(f"{name} ends too early: it was read as far as it goes." for name in log.damaged)])


def _end(why: str) -> NoReturn:
    print(why, file=sys.stderr)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
