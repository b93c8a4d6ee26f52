"""Decoding in processes that are limited: what a picture may cost, and who pays for it."""

import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from qwen_worker.errors import BadInput, ModelError
from qwen_worker.images.decoder import ENVIRONMENT, PROCESSES, ROOT, Decoder, Limits, image_of
from tests.pictures import file_of, photo

MEMORY = 512_000_000


Processes = Callable[[], list[psutil.Process]]


def decodes(process: psutil.Process) -> bool:
    try:
        return "qwen_worker.images.decoder_process" in process.cmdline()
    except psutil.Error:  # it is gone meanwhile
        return False


@pytest.fixture
def processes() -> Processes:
    """Lists the decoding processes that this test started."""

    def all_of_them() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if decodes(child)]

    before = all_of_them()
    return lambda: [child for child in all_of_them() if child not in before]


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    """One with ordinary limits."""
    made = Decoder(Limits(50_000_000, MEMORY, 2))
    yield made
    made.close()


@pytest.fixture(scope="module")
def huge() -> bytes:
    """A PNG of 48 megapixels."""
    return file_of(Image.new("RGB", (8000, 6000), "teal"), compress_level=1)


def is_at_work(process: psutil.Process) -> bool:
    """Whether it holds a huge picture."""
    try:
        return bool(process.memory_info().rss > 120_000_000)
    except psutil.Error:
        return False


def works(decoder: Decoder) -> bool:
    """Whether an ordinary picture comes out as it is."""
    return bool((np.asarray(decoder.decode(file_of(photo())).image) == np.asarray(photo())).all())


def test_a_process_is_kept_for_the_next_picture(decoder: Decoder, processes: Processes) -> None:
    """Starting one costs more than most pictures do."""
    decoder.warm_up()
    warm = processes()

    assert works(decoder)
    assert works(decoder)
    assert processes() == warm
    assert len(warm) == 1


@pytest.mark.slow
def test_several_pictures_are_decoded_at_once_and_no_more_than_two(
    decoder: Decoder, huge: bytes, processes: Processes
) -> None:
    """So many processes, and so much memory; each thread gets its own picture."""
    sizes: list[tuple[int, int]] = []
    seen = 0

    def one(width: int) -> None:
        decoder.decode(huge)
        sizes.append((width, decoder.decode(file_of(photo(width, 10))).image.width))

    threads = [threading.Thread(target=one, args=(width,)) for width in range(10, 14)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen = max(seen, len(processes()))
        time.sleep(0.01)

    assert sorted(sizes) == [(width, width) for width in range(10, 14)]
    assert seen == PROCESSES


def test_a_picture_that_takes_too_long_is_refused(huge: bytes) -> None:
    """The process dies of it, not the worker, and the next picture gets another."""
    hasty = Decoder(Limits(50_000_000, MEMORY, 0.1))
    with pytest.raises(BadInput, match=r"more than 0\.1 s"):
        hasty.decode(huge)

    assert works(hasty)
    hasty.close()


@pytest.mark.slow
def test_a_process_that_is_stopped_is_not_waited_for(huge: bytes, processes: Processes) -> None:
    """Computing time says nothing of one that does not run."""
    decoder = Decoder(Limits(50_000_000, MEMORY, 0.2))
    decoder.warm_up()
    processes()[0].suspend()

    with pytest.raises(BadInput, match=r"more than 0\.2 s"):
        decoder.decode(huge)

    assert works(decoder)
    decoder.close()


def test_a_picture_that_takes_too_much_memory_is_refused(huge: bytes) -> None:
    """With a sentence of its own; the process goes on."""
    tight = Decoder(Limits(50_000_000, 150_000_000, 2))
    with pytest.raises(BadInput, match="too much memory"):
        tight.decode(huge)

    assert works(tight)
    tight.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_memory_is_what_the_process_has_resident(decoder: Decoder, kind: str, processes: Processes) -> None:
    """The largest picture that is let in stays below the limit."""
    picture = Image.new("RGB" if kind == "JPEG" else "RGBA", (8000, 6250), "teal")
    data = file_of(picture, kind, **({"method": 0} if kind == "WEBP" else {}))
    decoder.warm_up()
    status = Path(f"/proc/{processes()[0].pid}/status")

    assert decoder.decode(data).image.size == picture.size
    peak = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    assert 300_000_000 < int(peak) * 1024 < MEMORY


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGSEGV, signal.SIGKILL])
def test_a_decoder_that_dies_costs_one_picture(
    decoder: Decoder, huge: bytes, end: signal.Signals, caplog: pytest.LogCaptureFixture, processes: Processes
) -> None:
    """As a defect of a library would have it, each time. How they ended is in the log."""
    done = threading.Event()

    def kill() -> None:
        while not done.wait(0.005):
            for process in filter(is_at_work, processes()):
                process.send_signal(end)

    killer = threading.Thread(target=kill)
    killer.start()
    with caplog.at_level(logging.WARNING), pytest.raises(BadInput, match="broke down"):
        decoder.decode(huge)
    done.set()
    killer.join()

    assert {getattr(record, "how", None) for record in caplog.records} == {end.name}
    assert works(decoder)


def test_a_process_that_died_meanwhile_costs_nothing(decoder: Decoder, processes: Processes) -> None:
    """As when the machine is short of memory: the picture is decoded by another."""
    for _ in range(10):
        assert works(decoder)
        (victim,) = processes()
        victim.kill()


def test_a_machine_without_files_to_spare_says_so(decoder: Decoder) -> None:
    """It is no picture's fault, and passes."""
    assert works(decoder)
    kept = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open("/", os.O_RDONLY)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, kept[1]))
    try:
        with pytest.raises(ModelError) as caught:
            decoder.decode(file_of(photo()))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, kept)

    assert caught.value.retryable
    assert works(decoder)


@pytest.mark.slow
def test_what_is_closed_keeps_no_process(decoder: Decoder, huge: bytes, processes: Processes) -> None:
    """Not even one that was at work."""
    decoder.warm_up()
    working = threading.Thread(target=decoder.decode, args=(huge,))
    working.start()
    while not is_at_work(processes()[0]):
        time.sleep(0.005)
    decoder.close()
    working.join()

    assert processes() == []


def test_the_process_has_no_secret_no_child_and_no_file(decoder: Decoder, processes: Processes) -> None:
    """What a library's defect could reach is next to nothing."""
    decoder.warm_up()
    process = processes()[0]
    limits = {name: process.rlimit(getattr(psutil, f"RLIMIT_{name}")) for name in ("NPROC", "CORE", "FSIZE")}

    assert {**process.environ(), "LC_CTYPE": ""} == {**ENVIRONMENT, "LC_CTYPE": ""}
    assert limits == {"NPROC": (0, 0), "CORE": (0, 0), "FSIZE": (150_000_000, 150_000_000)}
    assert process.cwd() == "/"
    assert process.open_files() == []


@pytest.mark.slow
def test_no_process_outlives_its_worker() -> None:
    """Not even one that is killed."""
    code = (
        "import os, psutil, signal; from qwen_worker.images.decoder import Decoder, Limits;"
        "decoder = Decoder(Limits(10**6, 512_000_000, 2)); decoder.warm_up();"
        "print(psutil.Process().children()[0].pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    child = int(done.stdout)

    deadline = time.monotonic() + 5
    while psutil.pid_exists(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not psutil.pid_exists(child)


def test_a_process_that_cannot_start_is_an_error_at_once() -> None:
    """A worker that could decode nothing must not take jobs."""
    hopeless = Decoder(Limits(10**6, 10**30, 2))

    with pytest.raises(OSError, match="did not start"):
        hopeless.warm_up()


def test_nobody_takes_the_pixels_away_while_they_are_read() -> None:
    """Reading on would end the worker; and fewer pixels than were told are no picture."""
    file = os.memfd_create("pixels", os.MFD_ALLOW_SEALING)
    os.write(file, bytes(range(12)))

    assert image_of(file, 2, 2).getpixel((1, 1)) == (9, 10, 11)
    with pytest.raises(PermissionError):
        os.ftruncate(file, 3)
    with pytest.raises(ValueError, match="not enough"):
        image_of(file, 3, 3)
    os.close(file)
