"""Build the image and do jobs in it: `make image-check`, as root on a Debian with buildah and debootstrap.

    python -m local.image_check [--base IMAGE] [--out FILE]

No engine is needed: buildah builds in a chroot, on a base that debootstrap makes, or on --base. The image has a tiny
model baked in, which it downloads from a local stand-in of the Hub. A worker in it does a job against a local bucket:
its root is read-only but for /tmp, where no file may be left, its user is not root, it is offline. It does so with the
model that was baked in, with one that `python -m qwen_worker.download` put onto a volume, and with one laid out as
RunPod's cached models are. What it found and measured is printed and written to out/image.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from local import tiny_model
from local.demo import example_picture
from local.hub import COMMIT, LocalHub
from local.in_image import ids
from local.stack import Stack
from local.web import ImageHost
from local.worker import ROOT

# Of the image without weights and without its base, uncompressed. Nearly all of it are CUDA's libraries.
BUDGET_GB = 6.5
SUITE = "trixie"
BASE, IMAGE = "localhost/qwen-worker-base", "localhost/qwen-worker-check"
MODEL = "tiny/edit"
TOKEN = "hf_not-a-real-token"  # noqa: S105 - what must not be found in the image
VOLUME = "/runpod-volume"
CACHE = "huggingface-cache/hub"  # below the volume
OUT = Path("out") / "image.json"
IN_IMAGE = str(ROOT / "local" / "in_image.py")
WHOLE = {"handler.py", "LICENSE", "qwen_worker", "requirements.lock", "__pycache__"}
NOT_IN_IT = {"pytest", "mypy", "ruff", "hypothesis", "plotly", "typer_cli", "juicefs", "local", "bench", "ops", "tests"}


class CheckError(Exception):
    """The image is not as it must be; one sentence."""


def run(*command: str, **options: Any) -> str:
    """A command's stdout; what it says on stderr is shown."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options)
    return str(done.stdout).strip()


def base(folder: Path) -> str:
    """A Debian with nothing but Python, as an image; made once."""
    if BASE not in run("buildah", "images", "--format", "{{.Name}}").splitlines():
        root = folder / "base"
        run("debootstrap", "--variant=minbase", "--include=python3-venv,ca-certificates", SUITE, str(root))
        run("chroot", str(root), "python3", "-m", "venv", "/py")
        container = run("buildah", "from", "scratch")
        run("buildah", "add", "--quiet", container, str(root), "/")
        path = "/py/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        run("buildah", "config", "--env", f"PATH={path}", container)
        run("buildah", "commit", "--quiet", "--rm", container, BASE)
        shutil.rmtree(root)
    return BASE


def build(base_image: str, hub: ImageHost, folder: Path) -> float:
    """Build IMAGE with a baked model; returns the seconds that it took."""
    token = folder / "token"
    token.write_text(TOKEN)
    arguments = {
        "BASE_IMAGE": base_image,
        "BAKE_MODEL": "1",
        "MODEL_ID": MODEL,
        "MODEL_REVISION": COMMIT,
        "MODEL_CLASS": "QwenImageEditPipeline",
        "HF_ENDPOINT": hub.url("").rstrip("/"),
    }
    # Whoever signs for the package index here signs for it there.
    certificates = "/etc/ssl/certs:/etc/ssl/certs:ro"
    begin = time.perf_counter()
    run(
        *("buildah", "bud", "--quiet", "--isolation", "chroot", "--network", "host", "--volume", certificates),
        *("--secret", f"id=HF_TOKEN,src={token}"),
        *(part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")),
        *("-t", IMAGE, "."),
        cwd=ROOT,
    )
    return time.perf_counter() - begin


@contextmanager
def unpacked(image: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files of an image, and its configuration."""
    container = run("buildah", "from", image)
    try:
        config = json.loads(run("buildah", "inspect", "--type", "image", image))["OCIv1"]["config"]
        yield Path(run("buildah", "mount", container)), config
    finally:
        run("buildah", "rm", container)


def size(folder: Path) -> int:
    """Bytes of all files below, as they lie on the disk; a file of several names counts once."""
    files = {(status.st_dev, status.st_ino): status.st_blocks * 512
             for path in folder.rglob("*") if (status := path.lstat())}  # fmt: skip
    return sum(files.values())


def check_contents(root: Path, config: dict[str, Any]) -> None:
    """Nothing in it but what the worker is made of.

    Raises:
        CheckError: there is something else.
    """
    packages = {path.name for path in root.glob("py/lib/python3*/site-packages/*")}
    packages |= {path.name for path in root.glob("usr/local/lib/python3*/site-packages/*")}
    if more := {path.name for path in (root / "worker").iterdir()} - WHOLE:
        raise CheckError(f"/worker holds {', '.join(sorted(more))}")
    if more := packages & NOT_IN_IT:
        raise CheckError(f"what is for development is in the image: {', '.join(sorted(more))}")
    if (root / "root/.cache").exists() or (root / "home/worker/.cache").exists():
        raise CheckError("a cache was left in the image")
    if config["User"] in {"", "0", "root"}:
        raise CheckError("its user is root")
    history = run("buildah", "inspect", IMAGE)
    places = [root / "models", root / "worker", root / "home", root / "etc/environment", root / "run"]
    told = [path for place in places for path in [place, *place.rglob("*")] if path.is_file() and _tells(path)]
    if TOKEN in history or told:
        raise CheckError(f"the token is in the image: {told or 'its history'}")


def _tells(path: Path) -> bool:
    return TOKEN.encode() in path.read_bytes()


def tmp(folder: Path) -> Path:
    """For /tmp: torch insists on a folder that it could write to when it is imported."""
    made = folder / "tmp"
    made.mkdir(parents=True)
    made.chmod(0o1777)
    return made


def job(image: Path, folder: Path, model: Path, *places: str) -> tuple[str, dict[str, float]]:
    """One job in a worker in the image, offline: the digest of its picture, and the seconds of its start.

    Raises:
        CheckError: the job failed.
    """
    variables = {"MODEL_ID": MODEL, "MODEL_REVISION": COMMIT, "MODEL_CLASS": "QwenImageEditPipeline"}
    temporary = tmp(folder)
    program = (IN_IMAGE, str(image), f"{temporary}:/tmp", *places)
    begin = time.perf_counter()
    with Stack(folder, model=model, more=variables, program=program) as stack:
        taken_s = time.perf_counter() - begin
        url = stack.host.put("/image.jpg", example_picture())
        done = stack.run({"image_url": url, "prompt": "make it warmer", "seed": 7, "num_inference_steps": 4})
        if done["status"] != "COMPLETED":
            raise CheckError(f"the job failed: {done}")
        code = stack.stop_worker()
        lines = [json.loads(line) for line in stack.log.read_text().splitlines()]
    if left := [path.name for path in temporary.rglob("*") if path.is_file()]:
        raise CheckError(f"the worker left files in /tmp: {', '.join(left)}")
    if code:
        raise CheckError(f"the worker ended with {code} when it was told to end")
    (ready,) = (line for line in lines if line["message"] == "worker ready")
    seconds = {**ready["seconds_from_process_start"], "first_question_for_a_job": round(taken_s, 2)}
    return done["output"]["result"]["meta"]["output"]["sha256"], seconds


def cached_by_runpod(model: Path, volume: Path) -> None:
    """A model as the platform puts it there: files, and which commit is the newest; no listing of huggingface_hub."""
    repository = volume / CACHE / f"models--{MODEL.replace('/', '--')}"
    shutil.copytree(model, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    run("chmod", "-R", "a+rX", str(volume))


def check(base_image: str | None, folder: Path) -> dict[str, Any]:
    """All of it; what was measured.

    Raises:
        CheckError: the image is not as it must be.
    """
    models = [tiny_model.make(folder / f"model-{seed}", seed=seed) for seed in range(3)]
    base_image = base_image or base(folder)
    with ImageHost() as host:
        LocalHub(host, models[0], MODEL)
        build_s = build(base_image, host, folder)
    with unpacked(base_image) as (root, _):
        base_bytes = size(root)
    with unpacked(IMAGE) as (root, config):
        check_contents(root, config)
        weights = size(root / "models")
        without = size(root) - weights - base_bytes
        print(f"image: {without / 1e9:.2f} GB without weights, on a base of {base_bytes / 1e9:.2f} GB", flush=True)
        image = folder / "image.json"
        image.write_text(json.dumps({"root": str(root), "config": config}))
        pictures, starts = {}, {}
        pictures["baked"], starts["baked"] = job(image, folder / "baked", models[0])
        print(f"baked: a job is done; start {starts['baked']}", flush=True)
        volume = folder / "volume"
        volume.mkdir()
        os.chown(volume, int(ids(root, config["User"]).split(":")[0]), 0)
        fill(image, volume, models[1])
        pictures["volume"], starts["volume"] = job(image, folder / "on-volume", models[1], f"{volume}:{VOLUME}")
        print("network volume: a job is done", flush=True)
        cached = folder / "cached"
        cached_by_runpod(models[2], cached)
        pictures["cached"], starts["cached"] = job(image, folder / "on-cached", models[2], f"{cached}:{VOLUME}")
        print("RunPod's cached model: a job is done", flush=True)
    if len(set(pictures.values())) < len(pictures):
        raise CheckError(f"another model was loaded than the one of the place that goes first: {pictures}")
    if without > BUDGET_GB * 1e9:
        raise CheckError(f"the image takes {without / 1e9:.2f} GB without weights: its budget is {BUDGET_GB} GB")
    return {
        "command": "python -m local.image_check",
        "cores": os.cpu_count(),
        "base": base_image,
        "base_bytes": base_bytes,
        "bytes_without_weights_and_base": without,
        "budget_bytes": int(BUDGET_GB * 1e9),
        "build_s": round(build_s),
        "user": config["User"],
        "root": "read-only",
        "start_s": starts,
    }


def fill(image: Path, volume: Path, model: Path) -> None:
    """Download a model onto a volume, as an operator does before the first start."""
    with ImageHost() as host:
        LocalHub(host, model, MODEL)
        said = json.loads(image.read_text())
        said["config"]["Cmd"] = ["python", "-m", "qwen_worker.download"]
        other = image.with_name("download.json")
        other.write_text(json.dumps(said))
        variables = {
            **os.environ,
            "MODEL_ID": MODEL, "MODEL_REVISION": COMMIT, "MODEL_CLASS": "QwenImageEditPipeline",
            # Else the model that was baked in would do.
            "HF_HUB_CACHE": "/nowhere", "HF_ENDPOINT": host.url("").rstrip("/"),
        }  # fmt: skip
        run(sys.executable, IN_IMAGE, str(other), f"{tmp(image.parent)}:/tmp", f"{volume}:{VOLUME}", env=variables)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m local.image_check", description="build the image, do jobs in it")
    parser.add_argument("--base", metavar="IMAGE", help="build on this instead of a Debian made by debootstrap")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help="(default: %(default)s)")
    asked = parser.parse_args(arguments)
    missing = [tool for tool in ("buildah", "debootstrap", "unshare") if not shutil.which(tool)]
    if missing or os.geteuid():
        print(f"this needs root, and {', '.join(missing or ['nothing else'])}: apt-get install buildah debootstrap")
        return 2
    with tempfile.TemporaryDirectory() as name:
        try:
            found = check(asked.base, Path(name))
        except CheckError as error:
            print(f"FAILED: {error}")
            return 1
        finally:
            subprocess.run(["buildah", "rmi", "--force", IMAGE], capture_output=True, check=False)  # noqa: S607
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
