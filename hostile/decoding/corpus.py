"""Other people's test pictures, fetched by the machine's own package clients into out/corpus.

They come in source packages: Pillow's through pip, those of the C libraries through apt. What cannot be fetched is an
error: attacks that were not made must not look as if nothing had got through.
"""

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

from hostile.outcome import UnableError

ROOT = Path("out/corpus")
#: Debian's source packages whose tests come with pictures
DEBIAN = ("libpng1.6", "libjpeg-turbo", "tiff", "libwebp", "libgd2", "exiv2", "gdk-pixbuf", "libheif")
APT = Path("/etc/apt")
# What nobody would send for a picture: sources, build files, texts.
NOT_PICTURES = {
    *(".c", ".h", ".cc", ".cpp", ".hpp", ".in", ".am", ".ac", ".m4", ".cmake", ".py", ".pyi", ".sh", ".po", ".pot"),
    *(".html", ".htm", ".rst", ".txt", ".md", ".1", ".3", ".js", ".java", ".asm", ".S", ".inc", ".man", ".cs", ".go"),
}
SECONDS = 600  # for one client to do one thing


class CorpusError(UnableError):
    """A source of test pictures could not be had; the text says which, and why."""


def fetch(root: Path = ROOT) -> dict[str, int]:
    """Bring what is not there yet.

    Returns:
        how many files there are of each source.

    Raises:
        CorpusError: a client is not installed, or could not fetch.
    """
    sources: dict[str, Callable[[Path], None]] = {
        "pillow": _pillow,
        **{name: partial(_debian, package=name) for name in DEBIAN},
    }
    for name, bring in sources.items():
        if not (root / name).is_dir():
            _whole(root / name, bring)
    return {name: len(list(_files(root / name))) for name in sources}


def files(root: Path = ROOT) -> Iterator[Path]:
    """All of them, in the same order each time."""
    for folder in sorted(path for path in root.iterdir() if not path.name.startswith(".")):
        yield from _files(folder)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _may_be_picture(name: str) -> bool:
    return Path(name).suffix not in NOT_PICTURES


def _whole(folder: Path, bring: Callable[[Path], None]) -> None:
    """Fetch under another name: what broke off does not look complete the next time."""
    part = folder.with_name(f".{folder.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    bring(part)
    if not any(_files(part)):
        raise CorpusError(f"{folder.name}: its source package holds no pictures")
    part.rename(folder)


def _pillow(folder: Path) -> None:
    """The tests of the very version that is under attack."""
    wanted = f"Pillow=={version('Pillow')}"
    _client([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", wanted], folder)
    _unpack(folder, re.compile(r"[^/]+/Tests/(images|icc)/"))


def _debian(folder: Path, package: str) -> None:
    options = _apt_of_its_own(folder.parent / ".apt")
    _client(["apt-get", *options, "--quiet", "--tar-only", "--download-only", "source", package], folder)
    _unpack(folder, re.compile(r""))


def _apt_of_its_own(state: Path) -> list[str]:
    """Options by which apt knows the sources of the machine's packages, and leaves the machine's own state alone."""
    state = state.resolve()
    sources = state / "sources"
    options = [f"Dir::State={state}", f"Dir::Cache={state}", f"Dir::Etc::SourceParts={sources}"]
    options += ["Dir::Etc::SourceList=/dev/null", "Dir::State::Status=/dev/null", "APT::Sandbox::User="]
    flags = [part for option in options for part in ("-o", option)]
    if not sources.is_dir():
        (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        part = state / "part"
        part.mkdir(exist_ok=True)
        for path in [APT / "sources.list", *(APT / "sources.list.d").glob("*")]:
            if path.suffix in {".list", ".sources"} and path.is_file():
                (part / path.name).write_text(re.sub(r"(?m)^(Types: *)?deb( |$)", r"\1deb-src\2", path.read_text()))
        _client(["apt-get", *flags, "-o", f"Dir::Etc::SourceParts={part}", "--quiet", "update"], state)
        part.rename(sources)
    return flags


def _client(command: Sequence[str], folder: Path) -> None:
    """Run it in the folder."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=SECONDS)
    except FileNotFoundError as error:
        raise CorpusError(f"{folder.name}: {command[0]} is not installed") from error
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        told = str(error.stderr or "").strip().splitlines()[-3:]
        raise CorpusError(f"{folder.name}: {command[0]} could not fetch it: {' '.join(told) or error}") from error


def _unpack(folder: Path, wanted: re.Pattern[str]) -> None:
    """Take the files out of the source archives, and throw away the rest."""
    archives = [path for path in folder.iterdir() if ".orig" in path.name or path.name.endswith(".tar.gz")]
    for path in (path for path in archives if ".tar." in path.name and path.suffix != ".asc"):
        with tarfile.open(path) as archive:
            members = [one for one in archive if one.isfile() and wanted.match(one.name)]
            archive.extractall(
                folder, (one for one in members if Path(one.name).suffix not in NOT_PICTURES), filter="data"
            )
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
