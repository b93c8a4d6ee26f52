"""What this worker is made of: two workers of the same versions make the same picture of the same request."""

import hashlib
from importlib.metadata import version
from pathlib import Path

from qwen_worker import __version__

LIBRARIES = (
    "torch", "diffusers", "transformers", "accelerate", "peft", "cache-dit", "torchao", "bitsandbytes", "Pillow",
    "opencv-python-headless", "numpy",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Of the worker, of its code as it is on the disk (a digest), and of the libraries that touch a picture."""
    code = hashlib.sha256()
    home = Path(__file__).parent
    for file in sorted(home.rglob("*.py")):
        code.update(f"{file.relative_to(home)}\0".encode() + file.read_bytes() + b"\0")
    return {"worker": __version__, "code": code.hexdigest()[:16], **{name: version(name) for name in LIBRARIES}}
