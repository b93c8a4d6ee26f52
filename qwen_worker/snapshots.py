"""Where models lie on this machine, found out with the standard library alone: what loads them takes seconds to import.

A cache has the layout of huggingface_hub, which is that of RunPod's cached models too:
`models--org--name/snapshots/<commit>`.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

FILES = ("*.json", "*.txt", "*.jinja", "*.safetensors")
# Of a text-to-image model. The rest of it, some 17 GB, is loaded with the edit model already.
TEXT_TO_IMAGE_FILES = ("model_index.json", "scheduler/*.json", "transformer/*.json", "transformer/*.safetensors")
# Folders of the networks of a model, in the order in which they are loaded.
NETWORKS = ("transformer", "vae", "text_encoder")
# Without its configuration a tokenizer does not know the marks of pictures.
VOCABULARIES = ({"tokenizer.json", "tokenizer_config.json"}, {"vocab.json", "merges.txt", "tokenizer_config.json"})
# Folders of the other parts → what must lie in one, in any of these sets.
SMALL_PARTS: dict[str, Sequence[set[str]]] = {
    "scheduler": ({"scheduler_config.json"},),
    "tokenizer": VOCABULARIES,
    "processor": [{"preprocessor_config.json", *files} for files in VOCABULARIES],
}
LISTING_FORMAT = 1  # TREE_CACHE_FORMAT_VERSION of huggingface_hub 2


@dataclass(frozen=True)
class Origin:
    """A repository on the Hub at a commit, or a folder, of which `revision` says nothing."""

    id: str
    revision: str


def own_cache() -> Path:
    """Where huggingface_hub keeps what it downloads, if HF_HOME is not set: of an image, what was baked into it."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(named or home / "hub").expanduser()


def find(origin: Origin, patterns: Sequence[str], caches: Sequence[Path]) -> Path | None:
    """The first folder in which a model is whole, of its files those that match a pattern."""
    if Path(origin.id).is_dir():
        return Path(origin.id)
    places = (_snapshot(origin, cache) for cache in caches)
    return next((folder for folder in places if is_whole(folder, patterns)), None)


def find_file(origin: Origin, name: str, caches: Sequence[Path]) -> Path | None:
    """One file of a repository or a folder."""
    folders = [Path(origin.id)] if Path(origin.id).is_dir() else [_snapshot(origin, cache) for cache in caches]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def is_whole(snapshot: Path, patterns: Sequence[str]) -> bool:
    """Whether a snapshot has all files that match a pattern.

    huggingface_hub 2 keeps the repository's listing beside its snapshots. Where something else put them there, the
    files of the snapshot themselves name what there must be. What is damaged or may not be read is not whole.
    """
    try:
        listed = _listed(snapshot)
        return _has_every_part(snapshot, patterns) if listed is None else _has_files(snapshot, listed, patterns)
    except (OSError, AttributeError, LookupError, TypeError):
        return False


def weights(part: Path) -> list[Path]:
    """The files of a network's weights, as its index names them, whether they are there or not; [] without any."""
    for name in ("diffusion_pytorch_model.safetensors", "model.safetensors"):
        index = _json(part / f"{name}.index.json").get("weight_map")
        if isinstance(index, dict):
            return [part / shard for shard in sorted(set(index.values()))]
        if (part / name).exists():
            return [part / name]
    return []


def weight_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Those of a model's weights that match a pattern, in the order in which they are loaded."""
    networks = [name for name in NETWORKS if _matches(f"{name}/config.json", patterns)]
    return [file for name in networks for file in weights(folder / name)]


def repository(origin: Origin, cache: Path) -> Path:
    """The folder of all that a cache has of a repository."""
    return cache / f"models--{origin.id.replace('/', '--')}"


def _snapshot(origin: Origin, cache: Path) -> Path:
    return repository(origin, cache) / "snapshots" / origin.revision


def _listed(snapshot: Path) -> dict[str, int] | None:
    """The repository's files → bytes, if they are known."""
    listing = _json(snapshot.parent.parent / "trees" / f"{snapshot.name}.json")
    if listing.get("format_version") != LISTING_FORMAT:
        return None
    return {name: file["size"] for name, file in listing["files"].items()}


def _has_files(snapshot: Path, listed: dict[str, int], patterns: Sequence[str]) -> bool:
    sizes = {name: size for name, size in listed.items() if _matches(name, patterns)}
    there = (_is_readable(snapshot / name) and (snapshot / name).stat().st_size == sizes[name] for name in sizes)
    return bool(sizes) and all(there)


def _has_every_part(snapshot: Path, patterns: Sequence[str]) -> bool:
    index = _json(snapshot / "model_index.json")
    # A part is named by its library and its class. There are lists of other things too.
    parts = [name for name, said in index.items() if isinstance(said, list) and len(said) == 2 and _are_words(said)]
    wanted = [snapshot / name for name in parts if _matches(f"{name}/config.json", patterns)]
    return bool(wanted) and all(map(_is_whole_part, wanted))


def _are_words(said: list[Any]) -> bool:
    return all(isinstance(word, str) and word for word in said)


def _is_whole_part(part: Path) -> bool:
    if not part.is_dir() or not all(file.exists() for file in part.iterdir()):  # a link into nothing does not exist
        return False
    if part.name in NETWORKS:
        needed = [part / "config.json", *weights(part)]
        return len(needed) > 1 and all(map(_is_readable, needed))
    there = {file.name for file in part.iterdir()}
    return any(files <= there for files in SMALL_PARTS.get(part.name, [set()]))


def _is_readable(file: Path) -> bool:
    """Of a worker that is not root, another user may have kept it to himself."""
    return file.is_file() and os.access(file, os.R_OK, effective_ids=True)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """As huggingface_hub chooses: `*` goes over folders too."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def _json(file: Path) -> dict[str, Any]:
    """An object; {} where there is none that can be read."""
    try:
        said = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
